"""One exception for mistakes a user can fix; the commands print it as one line."""

LONGEST = 2000  # characters of a message


class DraftError(Exception):
    """Its message is one line: what is wrong, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text that may quote other people's files: without line ends and control characters, and not endless."""
    shown = "".join(c if c.isprintable() else " " if c in "\r\n\t" else repr(c)[1:-1] for c in text)
    half = LONGEST // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"

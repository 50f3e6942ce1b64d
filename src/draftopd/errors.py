"""One exception for mistakes a user can fix; the commands print it as one line."""


class DraftError(Exception):
    """Its message is one line: what is wrong, and what to do."""

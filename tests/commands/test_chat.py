"""The chat command: answers as they are written, whose token is whose, and what stays in the conversation."""

from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from draftopd import chat
from draftopd.chat import Chat, Screen
from draftopd.decoding.settings import Decoding
from draftopd.evaluation.run import Subject

WORDS = ("logger=none", "decoding.max_new_tokens=12")


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """What comes from the keyboard, and then Ctrl-D."""
    waiting = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(waiting)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)


@pytest.fixture
def session(target, eager_drafter) -> Chat:
    return Chat(Subject(target, eager_drafter, None, Decoding(), None), Decoding(max_new_tokens=12), None, True)


def test_one_prompt_is_answered_with_its_figures(command, checkpoint, capsys):
    text = "which is odd: ${red}, 'dog' = x?"  # none of it is Hydra's
    assert command(f"checkpoint={checkpoint}", *WORDS, "--prompt", text, main=chat.main) == 0
    legend, _answer, figures = capsys.readouterr().out.splitlines()
    assert legend.startswith("[in brackets]: drafts that the target accepted")
    assert figures.startswith("12 tokens in ")
    assert all(f" · {word} " in figures for word in ("τ", "plain", "speedup"))
    assert command(f"checkpoint={checkpoint}", *WORDS, "prompt=hello", "plain=false", main=chat.main) == 0
    assert "speedup" not in capsys.readouterr().out


def test_a_conversation_goes_on_until_it_is_ended(session, monkeypatch, capsys):
    typed(monkeypatch, "red", KeyboardInterrupt, "", "dog")
    session.talk()
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    assert len(session.messages[1]["content"]) > 5
    assert capsys.readouterr().out.count("speedup") == 2
    typed(monkeypatch, chat.NEW, "cat", "\N{SNOWMAN}" * 40_000)
    monkeypatch.setattr(session, "decoding", Decoding(max_new_tokens=12, memory_gib=0.02))
    session.talk()
    assert [message["content"] for message in session.messages][::2] == ["cat"]  # and what was refused is not in it
    assert "error: one response of up to" in capsys.readouterr().out


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(session, monkeypatch, capsys):
    whole = chat.stream

    def cut(target, drafter, *rest) -> Iterator:
        for number, commit in enumerate(whole(target, drafter, *rest)):
            if number == 2 and drafter is not None:
                raise KeyboardInterrupt
            yield commit

    monkeypatch.setattr(chat, "stream", cut)
    session.answer("red")
    figures = capsys.readouterr().out.splitlines()[-1]
    assert "tokens in 1 verifications" in figures
    assert "speedup" in figures
    assert session.messages[-1]["role"] == "assistant"


class Bytes:
    """A tokenizer whose characters may take several tokens."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def shown(*pieces: tuple[bytes, bool], **console: bool) -> str:
    file = StringIO()
    screen = Screen(Console(file=file, **console), Bytes())
    for piece, drafted in pieces:
        screen.add(list(piece), drafted)
    screen.add([], False, last=True)
    return file.getvalue()


def test_it_shows_who_wrote_what_with_and_without_colours():
    pieces = ((b"I", False), (b" am \xc3", True), (b"\xa9", True), (b"\x1b[2J [x]", False), (b"\xc3", False))
    assert shown(*pieces) == "I[ am é]\N{SYMBOL FOR ESCAPE}[2J [x]\N{REPLACEMENT CHARACTER}"
    coloured = shown((b"I", False), (b" am", True), force_terminal=True)
    assert "\x1b[32m am" in coloured
    assert "\x1b[1;34mI" in coloured


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "hello"], "checkpoint must be given"),
        (["checkpoint=a.ckpt", "--prompt"], "--prompt needs a text"),
        (["checkpoint=a.ckpt", "--prompt="], "--prompt needs a text"),
        (["checkpoint={}", "plain=2"], "plain=2 must be true or false"),
        (["checkpoint={}", "device=gpu"], "device=gpu"),
    ],
)
def test_mistakes_end_in_one_line(command, checkpoint, capsys, words, said):
    assert command("logger=none", *(word.format(checkpoint) for word in words), main=chat.main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line

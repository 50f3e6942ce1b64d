"""The chat command: `python -m draftopd.chat checkpoint=... [--prompt "..."]`: talk to a target through its drafter."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("chat")  # before the imports of a run, which take seconds

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import get_console
from rich.console import Console
from rich.text import Text

from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.data.prompts import Messages, Prompt, ask
from draftopd.data.sources import encode
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.decoding.stream import Commit, stream
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation.run import Subject, open_subject, overlaid

NEW = "/new"
DRAFTED, OWN = "green", "bold blue"  # as in Trace.render
WARM_UP = 8  # tokens before the first answer: first calls are slow


class Screen:
    """Prints an answer while it is written; colours, or brackets where there are none, tell who wrote what.

    Args:
        tokenizer: of the target.
    """

    def __init__(self, console: Console, tokenizer: Any) -> None:
        self.console, self.tokenizer = console, tokenizer
        self.ids: list[int] = []
        self.shown = 0

    @property
    def legend(self) -> str:
        drafted = "green" if self.console.color_system else "[in brackets]"
        own = "bold blue" if self.console.color_system else "without"
        return f"{drafted}: drafts that the target accepted; {own}: the target's own tokens"

    def add(self, ids: list[int], drafted: bool, last: bool = False) -> None:
        """A character of several tokens appears with the last of them, in the colour of its writer."""
        self.ids += ids
        text = self.text
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return
        piece, self.shown = text[self.shown :].replace("\x1b", "\N{SYMBOL FOR ESCAPE}"), len(text)
        if drafted and piece and not self.console.color_system:
            piece = f"[{piece}]"
        self.console.print(Text(piece, DRAFTED if drafted else OWN), end="", soft_wrap=True)

    @property
    def text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))


@dataclass
class Reply:
    """What writing an answer has come to so far."""

    ledger: Ledger = field(default_factory=Ledger)
    tokens: int = 0
    steps: int = 0
    """the prefill, and verifications"""

    @property
    def speed(self) -> float:
        """Tokens per second of the decoder, prefill included."""
        return self.tokens / (self.ledger.seconds["prefill"] + self.ledger.seconds["decode"])


def summary(reply: Reply, plain: Reply | None) -> str:
    """The line beneath an answer.

    Args:
        plain: plain decoding of the same question, where it was timed.
    """
    blocks = reply.steps - 1
    parts = [f"{reply.tokens} tokens in {blocks} verifications"]
    parts += [f"τ {(reply.tokens - 1) / blocks:.2f}"] if blocks else []
    parts += [f"{reply.speed:.1f} tokens/s"]
    parts += [f"plain {plain.speed:.1f}", f"speedup {reply.speed / plain.speed:.2f}x"] if plain else []
    return " · ".join(parts)


class Chat:
    """A conversation by the target's chat template.

    Args:
        compare: after each answer, time plain decoding of the same text.
    """

    def __init__(self, subject: Subject, decoding: Decoding, enable_thinking: bool | None, compare: bool) -> None:
        self.subject, self.decoding, self.compare = subject, decoding, compare
        self.enable_thinking = enable_thinking
        self.console = get_console()
        self.messages: Messages = ()

    def warm_up(self) -> None:
        ids, few = self._encoded(ask("Hello")), min(WARM_UP, self.decoding.max_new_tokens)
        for drafter in (self.subject.drafter, None):
            for _ in self._commits(drafter, ids, few, Reply()):
                pass

    def answer(self, question: str) -> None:
        """Ctrl-C ends the answer, which stays in the conversation as far as it has come.

        Raises:
            DraftError: the target cannot take the question; the conversation is what it was.
        """
        messages = self.messages + ask(question)
        ids, reply = self._encoded(messages), Reply()
        screen = Screen(self.console, self.subject.target.tokenizer)
        try:
            with suppress(KeyboardInterrupt):
                for commit in self._commits(self.subject.drafter, ids, self.decoding.max_new_tokens, reply):
                    screen.add(commit.tokens[: commit.accepted], drafted=True)
                    screen.add(commit.tokens[commit.accepted :], drafted=False)
            screen.add([], drafted=False, last=True)
        finally:
            self.console.print()
        plain = self._plain(ids, reply.tokens) if self.compare and reply.tokens else None
        self.messages = (*messages, {"role": "assistant", "content": screen.text})
        if reply.tokens:
            self.console.print(summary(reply, plain), style="dim", highlight=False, soft_wrap=True)

    def _plain(self, ids: list[int], most: int) -> Reply | None:
        """None where Ctrl-C ends it."""
        reply = Reply()
        with self.console.status("timing plain decoding (Ctrl-C: not this time)"), suppress(KeyboardInterrupt):
            for _ in self._commits(None, ids, most, reply):
                pass
            return reply
        return None

    def _commits(self, drafter: Drafter | None, ids: list[int], most: int, reply: Reply) -> Iterator[Commit]:
        """A response of at most so many tokens, counted in `reply`."""
        decoding, turn = replace(self.decoding, max_new_tokens=most), len(self.messages)  # its own random numbers
        for commit in stream(self.subject.target, drafter, ids, decoding, reply.ledger, turn):
            reply.tokens, reply.steps = reply.tokens + len(commit.tokens), reply.steps + 1
            yield commit

    def _encoded(self, messages: Messages) -> list[int]:
        ids = encode(Prompt("the question", "chat", messages), self.subject.target.tokenizer, self.enable_thinking)
        assert ids is not None  # no bound was given
        return ids

    def talk(self) -> None:
        """Questions line by line, up to the end of input (Ctrl-D)."""
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401  # input() then edits lines and remembers them
        self.console.print(f"Ctrl-C ends an answer, Ctrl-D the chat, {NEW} starts another", style="dim")
        while True:
            try:
                question = input("> " if sys.stdin.isatty() else "").strip()
            except KeyboardInterrupt:
                print()
                continue
            except EOFError:
                print()
                return
            if question == NEW:
                self.messages = ()
            elif question:
                try:
                    self.answer(question)
                except DraftError as error:
                    self.console.print(f"error: {error}", markup=False, highlight=False)


def chat(config: DictConfig, question: str | None = None) -> None:
    """Answers one question, or talks.

    Raises:
        DraftError: a checkpoint or a setting cannot be used, or the target does not take the question.
    """
    with get_console().status("loading"):
        subject = open_subject(config.checkpoint, config, instantiate(config.target) if config.target else None)
        thinking = subject.enable_thinking if config.enable_thinking is None else config.enable_thinking
        session = Chat(subject, overlaid(subject.decoding, config.decoding), thinking, config.plain)
        session.warm_up()
    session.console.print(Screen(session.console, None).legend, style="dim", markup=False)
    if question is None:
        session.talk()
    else:
        session.answer(question)


def taken_prompt(words: list[str]) -> str | None:
    """Takes `--prompt TEXT` or `--prompt=TEXT` out of a command's words, text as it stands: Hydra would parse it.

    Raises:
        DraftError: no text follows.
    """
    flag = "--prompt"
    at = next((i for i, word in enumerate(words) if word == flag or word.startswith(f"{flag}=")), None)
    if at is None:
        return None
    _, equals, text = words.pop(at).partition("=")
    text = text if equals else words.pop(at) if at < len(words) else ""
    if not text.strip():
        raise DraftError(f'{flag} needs a text: {flag} "What is 12 times 7?"')
    return text


def main() -> None:
    with one_line_errors():
        question = taken_prompt(sys.argv)
    check_words("chat")

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="chat")
    def run(config: DictConfig) -> None:
        with one_line_errors():
            quiet()
            chat(config, question if question is not None else config.prompt)

    run()


if __name__ == "__main__":
    main()

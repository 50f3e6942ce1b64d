"""Spoils prompt files, checkpoints and published folders at random, and loads what is left of them.

`python tests/fuzz.py [inputs] [--seed N] [--seconds N]` prints how many of each kind were read and how many refused.
Each must be read, or refused by one line of DraftError, within seconds and without running, writing or fetching
anything. Input i of a seed is always the same: `--only i` loads that one again. Inputs with faults stay in `fuzz-*/`.
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from draftopd.checkpoints.native import load_drafter, optimizer_state, restore
from draftopd.checkpoints.published import check_folder, drafter_config, read
from draftopd.data.prompts import SPLITS
from draftopd.data.sources import JsonlPrompts, encode_all
from draftopd.errors import DraftError
from draftopd.target.load import tiny
from draftopd.target.model import Target
from pair import SIZES, trained
from published_folders import publish
from spoilt import prompt_file, spoil_checkpoint, spoil_folder

SECONDS = 20  # of the processor, for one input; most take some hundredths
WAIT = 10  # times as long where the processor has other work, or has none
MEMORY = 3 * 2**30
LONGEST = 2500  # characters of a message
STARTED = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pty.spawn", "socket.connect")
CHANGED = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")


class Hang(BaseException):
    """No `except Exception` stops it."""


@dataclass(frozen=True)
class Kind:
    spoil: Callable[[random.Random, Path], Path]
    """makes a spoilt file or folder in an empty folder"""
    load: Callable[[Path], object]


@dataclass
class Watch:
    """What an audit hook sees while it is on: it cannot be taken off again."""

    place: Path = field(default_factory=Path)
    seen: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        changed = event in CHANGED or (event == "open" and writes(arguments[2]))
        if event in STARTED or (changed and not self.own(arguments[0])):
            self.seen.append(f"{event} {arguments}"[:200])

    def own(self, path: Any) -> bool:
        return "__pycache__" in str(path) or str(path).startswith(str(self.place))


def writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


WATCH = Watch()


@contextmanager
def bounded(place: Path) -> Iterator[list[str]]:
    """Time and memory have an end inside; gives what was run, fetched, or written elsewhere than in `place`."""
    if not WATCH.place.parts:
        sys.addaudithook(WATCH)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))

    def stop(*_: Any) -> None:
        raise Hang(f"not ready after {SECONDS} s")

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAIT * SECONDS)}
    handlers = {number: signal.signal(number, stop) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    WATCH.place, WATCH.seen = place, (seen := [])
    try:
        yield seen
    finally:
        WATCH.seen = None
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(kind: Kind, path: Path, place: Path) -> str:
    """`read`, `refused`, or a traceback."""
    fault = ""
    with bounded(place) as seen:
        try:
            kind.load(path)
        except DraftError as error:
            text = str(error)
            fault = "refused" if text.isprintable() and len(text) < LONGEST else f"not one clear line: {text[:5000]!r}"
        except BaseException:
            fault = traceback.format_exc()
    marks = [*seen, *map(str, place.glob("ran*"))]
    return f"it did {marks}" if marks else fault or "read"


def load_prompts(target: Target) -> Callable[[Path], object]:
    def load(path: Path) -> None:
        dice = random.Random(path.stat().st_size)
        options = {
            "messages_field": dice.choice(["messages", "messages", None]),
            "set_field": dice.choice([None, None, "topic"]),
            "id_field": dice.choice(["id", None]),
            "limit": dice.choice([None, 6]),
        }
        prompts = JsonlPrompts(str(path), val=1, test=1, **options)
        for split in SPLITS:
            encode_all(prompts.split(split), target.tokenizer, None, 200, "data.batching.max_prompt_length")
        _ = prompts.fingerprint

    return load


def load_checkpoint(target: Target) -> Callable[[Path], object]:
    def load(path: Path) -> None:
        errors = []
        for way in (optimizer_state, lambda p: restore(p, target=target).encoded("test"), restore):
            try:
                found = way(path)
            except DraftError as error:
                errors.append(error)
        if errors:
            raise errors[-1]
        load_drafter(found.drafter, path, found.target)
        assert found.config.name

    return load


def load_folder(target: Target) -> Callable[[Path], object]:
    def load(folder: Path) -> None:
        try:
            errors = check_folder(folder).errors
        except DraftError as error:
            raise AssertionError("the check itself is refused") from error
        try:
            read(folder)
        except DraftError:
            assert errors, "refused without an error of the check"
        else:
            assert not errors, "read in spite of an error of the check"
        drafter_config(folder, target)
        read(folder, target)

    return load


def kinds(target: Target, checkpoint: Path, folders: Mapping[str, Path]) -> dict[str, Kind]:
    """Each kind of input, made of these sound ones."""
    return {
        "prompts": Kind(prompt_file, load_prompts(target)),
        "checkpoint": Kind(spoil_checkpoint(checkpoint), load_checkpoint(target)),
        "published": Kind(spoil_folder(folders), load_folder(target)),
    }


def run(kind: Kind, number: int, seed: int, place: Path) -> str:
    """Makes one input in a new folder and loads it; the folder stays only after a fault."""
    place.mkdir(parents=True)
    found = outcome(kind, kind.spoil(random.Random(f"{seed}/{number}"), place), place)
    if found in ("read", "refused"):
        shutil.rmtree(place)
    return found


def arguments() -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", type=int, nargs="?", default=3000, help="how many of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many, whatever is left")
    parser.add_argument("--only", type=int, help="the number of a single input")
    return parser.parse_args()


def main() -> None:
    asked, folder = arguments(), Path(mkdtemp(prefix="fuzz-", dir=".")).resolve()
    target = tiny({"model_type": "llama", **SIZES})
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        checkpoint = trained(folder, "budget.epochs=null", "budget.steps=1", "test.prompts=0")
    made = kinds(target, checkpoint, publish(target, folder / "published"))
    counts: dict[str, Counter[str]] = {name: Counter() for name in made}
    end = time.monotonic() + asked.seconds
    numbers = range(asked.inputs) if asked.only is None else [asked.only]
    for number in numbers:
        if time.monotonic() > end:
            break
        name = list(made)[number % len(made)]
        found = run(made[name], number, asked.seed, folder / f"{number:06d}")
        sound = found in ("read", "refused")
        counts[name][found if sound else "faults"] += 1
        if not sound:
            print(f"{name} {number}: {found}", flush=True)
    print(f"{'kind':12}{'read':>8}{'refused':>9}{'faults':>8}")
    for name, count in counts.items():
        print(f"{name:12}{count['read']:8}{count['refused']:9}{count['faults']:8}")
    faults = sum(count["faults"] for count in counts.values())
    if not faults:
        shutil.rmtree(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

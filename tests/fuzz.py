"""Spoils prompt files, checkpoints and published folders at random, and loads what is left of them.

`python tests/fuzz.py [inputs] [--seed N] [--seconds N]` prints how many of each kind were read and how many refused.
Each must be read, or refused by one line of DraftError, within seconds and without running, writing or fetching
anything. Input i of a seed is always the same: `--only i` loads that one again. Inputs with faults stay in `fuzz-*/`.
"""

import copy
import json
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
from zipfile import ZipFile

import torch
from safetensors.torch import load, save
from torch import Tensor

from draftopd.checkpoints.native import load_drafter, optimizer_state, restore
from draftopd.checkpoints.published import check_folder, drafter_config, read
from draftopd.data.prompts import SPLITS
from draftopd.data.sources import JsonlPrompts, encode_all
from draftopd.errors import DraftError
from draftopd.target.load import tiny
from draftopd.target.model import Target
from pair import SIZES, trained
from published_folders import publish

SECONDS = 20  # of the processor, for one input; most take some hundredths
WAIT = 10  # times as long where the processor has other work, or has none
MEMORY = 3 * 2**30
LONGEST = 2500  # characters of a message
STARTED = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pty.spawn", "socket.connect")
CHANGED = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
DEEP = "<deep>"
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 1000, 2**20 - 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 5e-324)
TEXTS = ("", " ", "x", "0", "a\nb", "\x1b[31m", "\ud83d", "\u2028", "../..", "/dev/zero", "${oc.env:HOME}")
NESTED = (DEEP, [], [[]], [0], [0, 1, 2], [True], ["x"], {}, {"": None}, {"a\nb": 1}, "y" * 10_000, [0] * 1000)
WORDS = ("user", "float16", "qwen3", "gemma3_text", "mixtral", "gpt2", "t5", "clip", "mamba", "_target_")
ODD = ("${unused:ran}", "???", None, True, False, float("inf"), float("nan"), "draftopd.drafters.eagle3.Eagle3")
JSON_VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, *NESTED, *WORDS, *ODD)
LINES: tuple[Any, ...] = (
    {"prompt": "one and one?", "answer": 2, "id": "a"},
    {"prompt": "hé \u4e2d \U0001f600", "topic": "x"},
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}], "topic": "y"},
    {"messages": [{"role": r, "content": f"{r} {i}"} for i, r in enumerate(["user", "assistant"] * 2)], "tools": []},
    {"prompt": "a{b}", "tools": None, "id": 7, "answer": {"b": []}},
    *({"prompt": f"question {i}", "id": i} for i in range(20, 24)),
)


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


def evil(marker: Path) -> dict[str, Any]:
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"}


class Touch:
    """A pickle that leaves a file where it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def spoil_bytes(dice: random.Random, data: bytes) -> bytes:
    for _ in range(dice.choice([1, 1, 1, 2, 8])):
        size = dice.choice([1, 1, 1, 4, 16, 1000])
        at = dice.randrange(len(data) + 1) if dice.random() < 0.7 else dice.randrange(min(len(data) + 1, 300))
        start, end, noise = data[:at], data[at + size :], dice.randbytes(size)
        ways = [start, start + noise + end, start + noise + data[at:], start + end, start + bytes(size) + end]
        ways += [start + data[at : at + size] * 2 + end, data + noise, noise + data]
        if data[at : at + 1]:
            ways.append(start + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])
        data = dice.choice(ways)
    return data


def spoil_tree(dice: random.Random, tree: Any, values: Callable[[], Any]) -> Any:
    """A copy of nested mappings and lists with some places changed, removed, renamed, added or mixed up."""
    top = {"": copy.deepcopy(tree)}
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        holder, key = place_in(dice, top)
        other, name = place_in(dice, top)
        way = dice.randrange(7)
        if way < 3 or holder is top:
            holder[key] = values()
        elif way == 3:
            del holder[key]
        elif way == 4:
            holder[key] = copy.deepcopy(other[name])
        elif isinstance(holder, list):
            holder.insert(key, values())
        else:
            new = dice.choice([name, f"{key} ", "_target_", "_args_", "a\nb", 3])
            holder[new] = values() if way == 5 else holder.pop(key)
    return top[""]


def place_in(dice: random.Random, holder: Any) -> tuple[Any, Any]:
    """A holder and one of its keys: from the top, one step down after the other."""
    key = ""
    while dice.random() < 0.85:
        inner = holder[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys:
            break
        holder, key = inner, dice.choice(keys)
    return holder, key


def json_value(dice: random.Random, marker: Path) -> Any:
    return copy.deepcopy(dice.choice([*JSON_VALUES, evil(marker)]))


def as_json(dice: random.Random, tree: Any) -> bytes:
    """With lists in lists, more than Python's own functions can follow, in the place of DEEP."""
    levels = dice.choice([100, 100_000, dice.randrange(300, 1000)])
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * levels + "]" * levels).encode()


def tensor_value(dice: random.Random, tensors: list[Tensor]) -> Tensor:
    value = dice.choice(tensors).clone()
    ways: list[Callable[[], Tensor]] = [
        lambda: value.T.contiguous() if value.ndim == 2 else value[:-1].clone(),
        lambda: value.to(dice.choice([torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])),
        lambda: value.float() * float("nan"),
        lambda: value[:0].clone() if value.ndim else value,
        lambda: torch.zeros(()),
        lambda: value[None].clone(),
        lambda: value.to(dice.choice([torch.float16, torch.bfloat16, torch.float64])),
        lambda: -value.float() * 1e30,
    ]
    return dice.choice(ways)()


def prompt_file(dice: random.Random, folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    lines = spoil_tree(dice, list(LINES), lambda: json_value(dice, folder / "ran"))
    data = b"\n".join(as_json(dice, line) for line in (lines if isinstance(lines, list) else [lines]))
    path.write_bytes(spoil_bytes(dice, data) if dice.random() < 0.4 else data)
    return path


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


def spoil_checkpoint(original: Path) -> Callable[[random.Random, Path], Path]:
    data, saved = original.read_bytes(), torch.load(original, weights_only=True)
    tensors = list(saved["state_dict"].values())

    def spoil(dice: random.Random, folder: Path) -> Path:
        path, way = folder / "a.ckpt", dice.random()

        def value() -> Any:
            if dice.random() < 0.3:
                return dice.choice([tensor_value(dice, tensors), Touch(folder / "ran"), b"x", (), (1, [2])])
            return json_value(dice, folder / "ran")

        if way < 0.3:
            path.write_bytes(spoil_bytes(dice, data))
        elif way < 0.5:
            respoil_zip(dice, original, path)
        else:
            part = dice.choice(["config", "config", "state_dict", None])
            tree = spoil_tree(dice, saved if part is None else saved[part], value)
            torch.save(tree if part is None else saved | {part: tree}, path)
        return path

    return spoil


def respoil_zip(dice: random.Random, original: Path, path: Path) -> None:
    """One member of the archive is spoilt, and its check sum is right."""
    with ZipFile(original) as old, ZipFile(path, "w") as new:
        names = old.namelist()
        chosen = dice.choice([name for name in names if name.endswith("data.pkl")] + [dice.choice(names)])
        for name in names:
            new.writestr(name, spoil_bytes(dice, old.read(name)) if name == chosen else old.read(name))


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


def spoil_folder(originals: Mapping[str, Path]) -> Callable[[random.Random, Path], Path]:
    def spoil(dice: random.Random, place: Path) -> Path:
        folder = place / "drafter"
        shutil.copytree(originals[dice.choice(sorted(originals))], folder)
        config, weights, way = folder / "config.json", folder / "model.safetensors", dice.random()
        if way < 0.5:
            tree = spoil_tree(dice, json.loads(config.read_bytes()), lambda: json_value(dice, place / "ran"))
            config.write_bytes(as_json(dice, tree))
        elif way < 0.6:
            config.write_bytes(spoil_bytes(dice, config.read_bytes()))
        elif way < 0.7:
            weights.write_bytes(spoil_bytes(dice, weights.read_bytes()))
        elif way < 0.8:
            weights.write_bytes(spoil_header(dice, weights.read_bytes(), place))
        elif way < 0.93:
            tensors = load(weights.read_bytes())
            tree = spoil_tree(dice, tensors, lambda: tensor_value(dice, list(tensors.values())))
            named = tree if isinstance(tree, dict) else {"a": tree}
            weights.write_bytes(
                save({str(name): value.contiguous() for name, value in named.items() if isinstance(value, Tensor)})
            )
        else:
            spoil_files(dice, folder)
        return folder

    return spoil


def spoil_header(dice: random.Random, data: bytes, place: Path) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = spoil_tree(dice, json.loads(data[8 : 8 + size]), lambda: header_value(dice, place))
    text = as_json(dice, header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def header_value(dice: random.Random, place: Path) -> Any:
    kinds = ["BOOL", "I8", "U16", "U64", "F64", "BF16", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64"]
    return dice.choice([*kinds, json_value(dice, place / "ran")])


def spoil_files(dice: random.Random, folder: Path) -> None:
    """Files that are not there, are folders, cannot be read, or are others' kinds."""
    file = dice.choice([folder / "config.json", folder / "model.safetensors"])
    ways: list[Callable[[], object]] = [
        file.unlink,
        lambda: (file.unlink(), file.mkdir()),
        lambda: (file.unlink(), file.symlink_to(file.name)),
        lambda: (file.unlink(), file.symlink_to("/dev/null")),
        lambda: file.write_bytes(b""),
        lambda: torch.save({"a": Touch(folder.parent / "ran")}, folder / "pytorch_model.bin"),
        lambda: torch.save({"a": Touch(folder.parent / "ran")}, file),
        lambda: file.rename(folder / f"other-{file.name}"),
    ]
    dice.choice(ways)()


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

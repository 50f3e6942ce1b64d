"""Prompt files, checkpoints and published folders, each spoilt at random (for fuzz.py)."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from safetensors.torch import load, save
from torch import Tensor

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


def evil(marker: Path) -> dict[str, Any]:
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"}


class Touch:
    """A pickle that leaves a file where it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)

    def __deepcopy__(self, _: dict[int, Any]) -> "Touch":
        return self  # by default a copy is made as a file is read, which would touch the marker here


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

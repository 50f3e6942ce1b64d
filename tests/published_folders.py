"""Tiny drafters as published folders, and ways to spoil a copy of one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftopd.checkpoints.published import check_folder, read, write
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import EAGLE_LAYERS

Change = Callable[[dict[str, Any], dict[str, Tensor], Path], object]
LAYOUTS = {
    "dflash": ("zlab", "speculators"),
    "dspark": ("deepspec", "speculators"),
    "eagle3": ("safeai", "speculators"),
}
VOCABULARIES = [None, 40]
OWN = {"head_dim": 4, "rope_theta": 5e5, "rms_norm_eps": 1e-5}  # not the target's


def make(kind: str, target: Target, draft_vocab_size: int | None = None, window: int | None = None) -> DFlash | Eagle3:
    torch.manual_seed(1)
    drafter: DFlash | Eagle3
    words: dict[str, Any] = {"draft_vocab_size": draft_vocab_size, "window": window, **OWN}
    if kind == "dflash":
        drafter = DFlash(target.shape, 2, 5, layer_ids=[0, 2], **words)
    elif kind == "dspark":
        drafter = DSpark(target.shape, 2, 5, 6, layer_ids=[0, 2], **words)
    elif kind == "dflash2":
        drafter = DFlash2(target.shape, 2, 5, 6, layer_ids=[0, 2], conv_group_size=8, **words)
    else:
        drafter = Eagle3(target.shape, 5, layer_ids=EAGLE_LAYERS, **words)
    if draft_vocab_size:
        drafter.set_vocabulary(torch.arange(draft_vocab_size) * 2 + 1)
    drafter.initialise(target.head)
    return drafter


def publish(target: Target, place: Path) -> dict[str, Path]:
    """Every kind in each of its layouts, by `<kind>-<layout>-<draft vocabulary>`."""
    for kind, layouts in LAYOUTS.items():
        for size in VOCABULARIES:
            drafter = make(kind, target, size)
            for layout in layouts:
                write(drafter, place / f"{kind}-{layout}-{size}", layout, target, "org/target")
    return {folder.name: folder for folder in place.iterdir()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(folder: Path, tmp_path: Path, change: Change) -> Path:
    """A copy of a folder after `change(config, tensors, copy)`."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    config, tensors = config_of(copy), tensors_of(copy)
    before = dict(tensors)
    change(config, tensors, copy)
    if (copy / "config.json").exists():
        (copy / "config.json").write_text(json.dumps(config))
    if any(tensors.get(name) is not value for name, value in before.items()) or len(tensors) != len(before):
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def refused(folder: Path, target: Target, expected: str) -> None:
    """The folder is refused in one line with these words, and every finding is complete."""
    with pytest.raises(DraftError) as caught:
        read(folder, target)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    findings = check_folder(folder, target)
    assert findings.errors
    assert all(finding.what and finding.effect and finding.fix for finding in findings)


def warned(before: Path, after: Path, target: Target, expected: str) -> None:
    """The change brought a warning with these words."""
    assert any(expected in warning.what for warning in read(after, target).warnings)
    assert not any(expected in warning.what for warning in read(before, target).warnings)


def together(*changes: Change) -> Change:
    def change(config, tensors, copy):
        for one in changes:
            one(config, tensors, copy)

    return change


def put(*keys: str, value: Any = None) -> Change:
    """Sets config[keys[0]][keys[1]]...; None drops the key."""

    def change(config, tensors, copy):
        for key in keys[:-1]:
            config = config[key]
        if value is None:
            del config[keys[-1]]
        else:
            config[keys[-1]] = value

    return change


def tensor(name: str, make_tensor: Callable[[Any], Tensor]) -> Change:
    def change(config, tensors, copy):
        tensors[name] = make_tensor(tensors.get(name))

    return change


def drop(*names: str) -> Change:
    def change(config, tensors, copy):
        for name in names:
            del tensors[name]

    return change


def rename(old: str, new: str) -> Change:
    """Of the beginning of every name."""

    def change(config, tensors, copy):
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


def not_finite(value: Tensor) -> Tensor:
    return value.index_fill(0, torch.tensor([0]), float("nan"))


def only_new_rope(config, tensors, copy):
    del config["rope_theta"], config["rope_scaling"]


def only_old_rope(config, tensors, copy):
    del config["rope_parameters"]

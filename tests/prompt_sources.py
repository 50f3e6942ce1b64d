"""What the tests of prompt sources share: files of records, a stand-in for the hub, the shipped configurations."""

import json
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from draftopd.command import CONFIG_DIR
from draftopd.data.prompts import Prompts

SPLITS = ("train", "val", "test")


def texts(prompts: Prompts, split: str) -> list[str]:
    return [prompt.text for prompt in prompts.split(split)]


def asked(prompts: Prompts, split: str = "train") -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts.split(split)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def questions(number: int) -> list[Any]:
    return [{"prompt": f"question {index}", "answer": index} for index in range(number)]


def config(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return instantiate(compose("fit", overrides=[f"prompts={name}", *overrides]).prompts)


class Rows(list[Any]):
    """As much of a `datasets.Dataset` as is used."""

    def shuffle(self, seed: int) -> "Rows":
        return Rows(Random(seed).sample(self, len(self)))

    def select(self, indices: range) -> "Rows":
        return Rows(self[index] for index in indices)


def install_datasets(monkeypatch: pytest.MonkeyPatch, rows: list[Any] | Exception) -> list[Any]:
    """Put a stand-in for the `datasets` library in place; the calls it got are returned."""
    calls: list[Any] = []

    def load_dataset(path: str, name: str | None, split: str, revision: str | None) -> Rows:
        calls.append((path, name, split, revision))
        if isinstance(rows, Exception):
            raise rows
        return Rows(rows)

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls

"""One tiny pair for all tests: a random target over characters and a random drafter.

Imports of torch and the package stand inside the fixtures: the process that shares the tests out between two others
reads this file too, and would import for seconds what only they need.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from draftopd.drafters.dflash import DFlash
    from draftopd.drafters.dflash2 import DFlash2
    from draftopd.drafters.dspark import DSpark
    from draftopd.drafters.eagle3 import Eagle3
    from draftopd.target.model import Target

# tiny tensors: threads cost more than they give, and two test processes share two cores; the processes take it over
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run; --hypothesis-profile=thorough takes other and many more ones each time
same = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}  # on a busy machine
settings.register_profile("fast", derandomize=True, max_examples=12, **same)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **same)
settings.load_profile("fast")


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not look at it again and again (a tenth of the time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def shared_compositions():
    from compositions import shared

    with shared():
        yield


@pytest.fixture(scope="session")
def target() -> Target:
    from draftopd.target import load
    from pair import SIZES

    return load.tiny({"model_type": "llama", **SIZES})


@pytest.fixture
def drafter(target: Target) -> DFlash:
    import torch

    from draftopd.drafters.dflash import DFlash

    torch.manual_seed(1)
    return DFlash(target.shape, num_layers=2, block_size=5)


@pytest.fixture(scope="session")
def eager_drafter(target: Target) -> Iterator[DFlash]:
    """A drafter that copies the target's own next tokens often enough for every length of acceptance to occur."""
    from pair import PROMPTS, Decoding, overfit, untouched

    with untouched(overfit(target, PROMPTS, Decoding(max_new_tokens=24))) as drafter:
        yield drafter


@pytest.fixture(scope="session")
def eager_dspark(target: Target) -> Iterator[DSpark]:
    """The same of DSpark."""
    from pair import PROMPTS, Decoding, overfit_dspark, untouched

    with untouched(overfit_dspark(target, PROMPTS, Decoding(max_new_tokens=24))) as drafter:
        yield drafter


@pytest.fixture(scope="session")
def eager_dflash2(target: Target) -> Iterator[DFlash2]:
    """The same of DFlash2."""
    from pair import PROMPTS, Decoding, overfit_dflash2, untouched

    with untouched(overfit_dflash2(target, PROMPTS, Decoding(max_new_tokens=24))) as drafter:
        yield drafter


@pytest.fixture(scope="session")
def eager_eagle(target: Target) -> Iterator[Eagle3]:
    """The same of EAGLE-3."""
    from pair import PROMPTS, Decoding, overfit_eagle, untouched

    with untouched(overfit_eagle(target, PROMPTS, Decoding(max_new_tokens=24))) as drafter:
        yield drafter


@pytest.fixture(scope="session")
def folders(target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny drafters in every published layout: tests/published_folders.py."""
    from published_folders import publish

    return publish(target, tmp_path_factory.mktemp("published"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `python -m draftopd.fit ...`, or another command, in this process and an empty folder: exit code."""
    monkeypatch.chdir(tmp_path)
    # MLflow keeps one connection a URI in a process: a relative one would stay in the first test's folder
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def run(*words: str, main: Callable[[], None] | None = None) -> int:
        from draftopd import fit

        # a relative folder: the same words in every test, which are composed once
        monkeypatch.setattr(sys, "argv", ["fit", "cache_dir=cache", *words])
        try:
            (main or fit.main)()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny drafter after two epochs; it works with `target=tiny`."""
    from pair import trained

    return trained(tmp_path_factory.mktemp("trained"), "budget.epochs=2")


@pytest.fixture(scope="session")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as above whose run has a test."""
    from pair import trained

    return trained(tmp_path_factory.mktemp("tested"), "budget.epochs=1", "test.prompts=4", "test.speedup_prompts=0")

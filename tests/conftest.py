"""One tiny pair for all tests: a random target over characters and a random drafter."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from draftopd import fit, load
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.rollout import Decoding, rollout
from draftopd.target import Target
from draftopd.trace import text_blocks

torch.set_num_threads(1)  # tiny tensors: threads cost more than they give, and two test processes share two cores

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
FAMILIES = {
    "llama": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "qwen2": SIZES,
    "mistral": {**SIZES, "sliding_window": 8},
    "gemma3_text": {
        **SIZES,
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granite": {**SIZES, "logits_scaling": 3.0},
}
EAGLE_LAYERS = [0, 1, 2]  # the tiny target is too shallow for the default
PROMPTS = [[5 + i * 3 % 80 for i in range(length)] for length in (7, 4, 11, 9, 5)]


@pytest.fixture(scope="session")
def target() -> Target:
    return load.tiny({"model_type": "llama", **SIZES})


@pytest.fixture
def drafter(target: Target) -> DFlash:
    torch.manual_seed(1)
    return DFlash(target.shape, num_layers=2, block_size=5)


@pytest.fixture(scope="session")
def eager_drafter(target: Target) -> DFlash:
    """A drafter that copies the target's own next tokens often enough for every length of acceptance to occur."""
    return overfit(target, PROMPTS, Decoding(max_new_tokens=24))


@pytest.fixture(scope="session")
def eager_eagle(target: Target) -> Eagle3:
    """The same of EAGLE-3."""
    torch.manual_seed(2)
    drafter = Eagle3(target.shape, block_size=5, layer_ids=EAGLE_LAYERS)
    drafter.initialise(target.head)
    fit_texts(drafter, target, PROMPTS, Decoding(max_new_tokens=24), 40)
    return drafter


def overfit(target: Target, prompts: list[list[int]], decoding: Decoding, steps: int = 60) -> DFlash:
    torch.manual_seed(2)
    drafter = DFlash(target.shape, num_layers=1, block_size=5)
    fit_texts(drafter, target, prompts, decoding, steps)
    return drafter


def fit_texts(drafter: Drafter, target: Target, prompts: list[list[int]], decoding: Decoding, steps: int) -> None:
    """Cross-entropy on the target's own texts, every position an anchor."""
    results = rollout(target, None, prompts, decoding, keep=True, layer_ids=drafter.layer_ids)
    traces = [r.trace for r in results]
    anchors = [torch.arange(t.prompt_length, len(t.tokens) - 1) for t in traces]
    features = [r.features for r in results if r.features is not None]
    batch = text_blocks(traces, anchors, drafter.num_draft_tokens, features)
    optimizer = torch.optim.Adam(drafter.parameters(), 3e-3)
    for _ in range(steps):
        logits = drafter.head(target.head)(drafter(batch, target.embed)[batch.valid])
        loss = torch.nn.functional.cross_entropy(logits, batch.drafts[batch.valid])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def full_disk(room: int = 1000) -> Iterator[None]:
    """No file can grow beyond so many bytes: libraries meet an error of the system, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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

    def run(*words: str, main: Callable[[], None] = fit.main) -> int:
        monkeypatch.setattr(sys, "argv", ["fit", f"cache_dir={tmp_path}/cache", *words])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def trained(folder: Path, *words: str) -> Path:
    """The last checkpoint of the smoke experiment's SFT, nothing timed and nothing logged."""
    few = ["experiment=smoke/sft", "logger=none", "test.speedup_prompts=0", "callbacks.speedup.prompts=0", *words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fit", "hydra.run.dir=out", f"cache_dir={folder}", *few])
        fit.main()
    return folder / "out" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny drafter after two epochs; it works with `target=tiny`."""
    return trained(tmp_path_factory.mktemp("trained"), "budget.epochs=2")

"""What a GPU computes is what the CPU computes: for `make gpu-check`.

Without a GPU the same lines run on the CPU, as a rehearsal: python -m pytest -m gpu -n0
"""

import copy
from typing import Any

import pytest
import torch
from benchmarks.objectives import shipped
from torch import Tensor

from draftopd.decoding.memory import arriving
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Trace, collate
from draftopd.training.module import DraftModule

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE, COMPILER = ("cuda", "inductor") if CUDA else ("cpu", "eager")
SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS = [[5 + i * 3 % 80 for i in range(length)] for length in (7, 4, 11, 9, 5, 14)]
LAYERS = [0, 1, 2]
DECODINGS = {
    "greedy": Decoding(24),
    "token_matching": Decoding(24, temperature=1.0),
    "rejection": Decoding(24, temperature=1.0, rule="rejection"),
}


@pytest.fixture(scope="module")
def cpu() -> Target:
    """Heads of 16 numbers: torch's flex kernels take no narrower ones."""
    return load.tiny({"model_type": "llama", "intermediate_size": 128, **SIZES}, cpu_layers=False)


@pytest.fixture(scope="module")
def there(cpu: Target) -> Target:
    return copy.deepcopy(cpu).to(DEVICE)


def made(kind: str, target: Target) -> Drafter:
    torch.manual_seed(4)
    drafter: Drafter
    if kind == "dflash":
        drafter = DFlash(target.shape, num_layers=2, block_size=5, layer_ids=LAYERS)
    else:
        drafter = Eagle3(target.shape, block_size=5, layer_ids=LAYERS)
    drafter.initialise(target.head)
    return drafter


def fields(trace: Trace) -> list[Any]:
    return [value.tolist() for value in (trace.tokens, trace.anchors, trace.drafts, trace.accepted)]


@pytest.mark.parametrize("name", DECODINGS)
@pytest.mark.parametrize("kind", ["dflash", "eagle3"])
def test_rollouts_and_redrafts_are_those_of_the_cpu(cpu: Target, there: Target, kind: str, name: str):
    decoding, drafter = DECODINGS[name], made(kind, cpu)
    same = copy.deepcopy(drafter).to(DEVICE)
    expected = [fields(r.trace) for r in rollout(cpu, drafter, PROMPTS, decoding)]
    rolled = rollout(there, same, PROMPTS, decoding, keep_states=True)
    assert [fields(r.trace) for r in rolled] == expected
    if not decoding.samples_drafts:
        plain = rollout(there, None, PROMPTS, decoding)
        assert [r.trace.tokens.tolist() for r in plain] == [tokens for tokens, *_ in expected]
        assert [fields(r.trace) for r in redraft(there, same, rolled, decoding)] == expected


def test_batches_arrive_as_they_were_sent(cpu: Target):
    rolled = [r.trace for r in rollout(cpu, made("dflash", cpu), PROMPTS, Decoding(24))]
    batch = cpu.replay(collate(rolled), LAYERS)
    parts = batch.parts(1)
    came = list(arriving(parts, torch.device(DEVICE)))
    assert {part.tokens.device.type for part in came} == {DEVICE}
    for sent, part in zip(parts, came, strict=True):
        for name, value in vars(sent).items():
            if value is not None:
                assert torch.equal(getattr(part, name).cpu(), value), name


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "dflash", "eagle3"])
def test_compiled_steps_write_the_same_texts(cpu: Target, there: Target, kind: str, batch_size: int):
    """On a GPU through CUDA graphs, in the second rollout with graphs that are there."""
    drafter = None if kind == "plain" else made(kind, cpu).to(DEVICE)
    eager, compiled = (Decoding(24, batch_size, compile=how) for how in (False, True if CUDA else COMPILER))
    expected = [fields(r.trace) for r in rollout(there, drafter, PROMPTS, eager, keep_states=True)]
    for _ in range(2):
        assert [fields(r.trace) for r in rollout(there, drafter, PROMPTS, compiled, keep_states=True)] == expected


def losses(target: Target, kind: str, batch: ReplayBatch, **options: Any) -> tuple[float, Tensor]:
    """Loss, and the gradients of all weights in a row."""
    drafter = made(kind, target).to(target.device)
    module = DraftModule(target, drafter, shipped("draft_opd"), torch.optim.SGD, **options)
    module.train()
    loss = module.loss(batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten().cpu() for p in drafter.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["dflash", "eagle3"])
def test_bfloat16_writes_texts_and_comes_near_the_loss(cpu: Target, there: Target, kind: str):
    half = copy.deepcopy(there).to(torch.bfloat16)
    drafter = made(kind, cpu).to(DEVICE, torch.bfloat16)
    rolled = rollout(half, drafter, PROMPTS, Decoding(24))
    assert all(r.trace.check().response_length > 0 for r in rolled)
    batch = collate([r.trace for r in rolled])
    expected, _ = losses(cpu, kind, batch)
    with torch.autocast(DEVICE, torch.bfloat16):
        got, _ = losses(there, kind, batch)
    assert got == pytest.approx(expected, rel=0.02)


OPTIONS = {
    "sdpa": {},
    "checkpointing": {"gradient_checkpointing": True},
    "flex": {"attention": "flex_attention"},
    "compile": {"torch_compile": COMPILER},
    "flex_compile": {"attention": "flex_attention", "torch_compile": COMPILER},
}
CASES = [  # compilers take long: one drafter, and those rows that flex attention once failed for
    *[(kind, name, size) for name in ("sdpa", "checkpointing") for kind in ("dflash", "eagle3") for size in ("long",)],
    *[("dflash", "flex", "short"), ("dflash", "flex", "long"), ("eagle3", "flex", "short"), ("eagle3", "flex", "long")],
    *[("dflash", "compile", "long"), ("dflash", "flex_compile", "short")],
]


@pytest.mark.parametrize(("kind", "name", "size"), CASES)
def test_losses_and_gradients_are_those_of_the_cpu(cpu, there, monkeypatch, kind: str, name: str, size: str):
    """With fewer rows than a block of flex attention's kernel has (128), and with more."""
    if not CUDA:  # torch refuses gradients of flex attention there, though its reference implementation has them
        monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    traces = [r.trace for r in rollout(cpu, made(kind, cpu), PROMPTS, Decoding(48))]
    batch = collate(traces if size == "long" else [cut(traces[0], 2)])
    expected, gradient = losses(cpu, kind, batch)
    got, theirs = losses(there, kind, batch, **OPTIONS[name])
    assert got == pytest.approx(expected, rel=1e-4)
    assert float((theirs - gradient).norm() / gradient.norm()) < 1e-3


def cut(trace: Trace, blocks: int) -> Trace:
    """Only the first blocks of a text, and the text up to what they committed."""
    end = int(trace.anchors[blocks - 1] + trace.accepted[blocks - 1]) + 2
    parts = (values[:blocks] for values in (trace.anchors, trace.drafts, trace.accepted))
    return Trace(trace.tokens[:end], trace.prompt_length, *parts)

"""What rows that are decoded together need, and fewer of them where memory ends."""

import logging
import weakref
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from draftopd.decoding import memory, reading
from draftopd.decoding.batch import DecodingBatch
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import Attempts, MicroBatches, reading_bytes, row_bytes
from draftopd.decoding.reading import read_features
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate, no_blocks
from pair import EAGLE_LAYERS, PROMPTS, SIZES

ENDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(memory, "_said", set())


@pytest.mark.parametrize("end", ENDS)
def test_rows_are_halved_until_memory_suffices_and_that_is_said_once(end: Exception, caplog):
    tried: list[int] = []
    for _ in range(2):
        for attempt in Attempts(20, "prompts", "lower batch_size"):
            with attempt as rows:
                tried.append(rows)
                if rows > 4:
                    raise end
    assert tried == [20, 10, 5, 2] * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "going on with 10 of the prompts" in record.getMessage()
    assert "lower batch_size" in record.getMessage()


def test_a_single_row_that_does_not_fit_is_refused_and_other_errors_pass():
    def ends(error: Exception) -> None:
        for attempt in Attempts(2, "prompts", "lower batch_size"):
            with attempt:
                raise error

    with pytest.raises(DraftError, match="out of memory with 1 at a time of the prompts: lower batch_size"):
        ends(MemoryError())
    with pytest.raises(RuntimeError, match="shapes"):
        ends(RuntimeError("shapes do not match"))


def test_a_step_begins_with_what_the_last_one_came_down_to_unless_other_processes_wait():
    batch = [no_blocks(3, 4, 4).parts(1)[0], collate([text(4)] * 8)]

    def step(micro_batches: MicroBatches, alone: bool) -> list[int]:
        tried: list[int] = []
        for attempt in micro_batches.attempts(batch, alone=alone):
            with attempt as texts:
                tried.append(texts)
                if any(len(part.tokens) > 2 for micro in batch for part in micro.parts(texts)):
                    raise MemoryError
        return tried

    micro_batches = MicroBatches()
    assert step(micro_batches, alone=True) == [8, 4, 2]
    assert step(micro_batches, alone=True) == [2]
    with pytest.raises(DraftError, match=r"with 8 at a time .*: lower data\.batching\.micro_batch_size"):
        step(MicroBatches(), alone=False)


def text(length: int) -> Trace:
    nothing = torch.zeros(0, dtype=torch.long)
    return Trace(torch.arange(length), 1, nothing, nothing.view(0, 3), nothing)


def fits(rows: int, call: Callable, count: Callable[..., int], end: Exception, after: int = 0) -> Callable:
    """The call, for which memory ends with more rows, from the call number `after` on."""
    calls: list[int] = []

    def run(*args, **kwargs):
        calls.append(count(*args))
        if calls[-1] > rows and len(calls) > after:
            raise end
        return call(*args, **kwargs)

    return run


def assert_same(found: list[Rollout], expected: list[Rollout]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(one.trace).items():
            assert torch.equal(value, getattr(other.trace, name)) if torch.is_tensor(value) else True, name
        for name in ("features", "target_hidden") if expected[0].target_hidden is not None else ():
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("after", [0, 6])
@pytest.mark.parametrize("end", ENDS[:1])
def test_a_rollout_goes_on_with_fewer_rows(target: Target, eager_drafter: DFlash, monkeypatch, end, after: int):
    """From its first step on, or in its midst, when some responses are complete."""
    decoding = Decoding(24, batch_size=8, temperature=1.0)
    expected = rollout(target, eager_drafter, PROMPTS * 3, decoding, keep_states=True)
    step = fits(2, DecodingBatch.step, lambda batch: len(batch.rows), end, after)
    monkeypatch.setattr(DecodingBatch, "step", step)
    done: list[int] = []
    found = rollout(target, eager_drafter, PROMPTS * 3, decoding, keep_states=True, on_done=done.append)
    assert_same(found, expected)
    assert sum(done) == len(found)


def test_redrafts_go_on_with_fewer_texts(target: Target, eager_drafter: DFlash, monkeypatch):
    decoding = Decoding(24, batch_size=8)
    texts = rollout(target, None, PROMPTS * 2, decoding, keep_states=True, layer_ids=eager_drafter.layer_ids)
    expected = redraft(target, eager_drafter, texts, decoding)
    draft = fits(3, eager_drafter.draft, lambda state, *_: len(state.lengths), ENDS[0], after=3)
    monkeypatch.setattr(eager_drafter, "draft", draft)
    found = redraft(target, eager_drafter, texts, decoding)
    assert_same(found, expected)


class Peak(TorchDispatchMode):
    """The largest number of bytes that tensors made inside hold at a time, as far as operations return them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given | self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("kind", ["dflash", "eagle3"])
@pytest.mark.parametrize(("prompt", "limit"), [(120, 4), (8, 24)])
def test_memory_gib_bounds_the_prefill_too(kind: str, prompt: int, limit: int):
    target = load.tiny({"model_type": "llama", **SIZES}, cpu_layers=False)
    torch.manual_seed(0)
    drafter: Drafter = DFlash(target.shape, 2, 5) if kind == "dflash" else Eagle3(target.shape, 5, EAGLE_LAYERS)
    prompts = [[5 + (i * 7 + j * 3) % 80 for j in range(prompt)] for i in range(14)]
    states = len(drafter.layer_ids) + drafter.num_draft_tokens
    capacity = prompt + limit + drafter.num_draft_tokens + 1
    row = row_bytes(target, drafter, capacity=capacity, prompt=prompt, states=states)
    bound = 7.5 * row
    decoding = Decoding(limit, batch_size=64, memory_gib=bound / 2**30)
    with Peak() as peak:
        rollout(target, drafter, prompts, decoding, keep_states=True)
    assert 0.3 * bound < peak.most < bound


def test_memory_gib_bounds_texts_that_are_read(monkeypatch):
    target = load.tiny({"model_type": "llama", **SIZES}, cpu_layers=False)
    monkeypatch.setattr(reading, "CPU_TOKENS", 10**6)
    texts = [torch.tensor([5 + (i * 7 + j * 3) % 80 for j in range(120)]) for i in range(14)]
    bound = 7.5 * 120 * reading_bytes(target, 120, 3)
    decoding = Decoding(batch_size=64, memory_gib=bound / 2**30)
    with Peak() as peak:
        read_features(target, texts, (0, 1, 2), decoding, Ledger(), store=lambda _: torch.zeros(0))
    assert 0.3 * bound < peak.most < bound

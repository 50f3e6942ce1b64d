"""Features that are read many texts in a forward are those of each text by itself."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from draftopd.decoding import memory, reading
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import reading_bytes
from draftopd.decoding.reading import affordable_texts, read_features
from draftopd.decoding.settings import Decoding
from draftopd.target import load
from draftopd.target.model import Target
from pair import EVERY_FAMILY, FAMILIES

LAYERS = (0, 2, 3)
LENGTHS = (7, 30, 1, 12, 12, 19, 3)


def texts_of(*lengths: int) -> list[Tensor]:
    return [torch.tensor([5 + (i * 7 + j * 3) % 80 for j in range(length)]) for i, length in enumerate(lengths)]


def watched(target: Target, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the target reads from now on."""
    shapes: list[tuple[int, ...]] = []
    read = target.read

    def watch(tokens: Tensor, layer_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(tokens.shape))
        return read(tokens, layer_ids)

    monkeypatch.setattr(target, "read", watch)
    return shapes


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """To 1e-5 of a text's largest value: rounding in float32."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0.0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_texts_read_together_have_the_features_of_each_alone(family: str, monkeypatch):
    target, texts = load.tiny({"model_type": family, **FAMILIES[family]}), texts_of(*LENGTHS)
    alone = [target.read(tokens[None], LAYERS)[1][0] for tokens in texts]
    shapes, ledger, done = watched(target, monkeypatch), Ledger(), list[int]()
    found = read_features(target, texts, LAYERS, Decoding(batch_size=4), ledger, on_done=done.append)
    assert_same(found, alone)
    assert shapes == [(4, 30), (3, 7)]  # texts of similar length, the longest first
    assert done == [4, 3]
    assert ledger.tokens == {"replay": sum(LENGTHS)}
    assert ledger.seconds.keys() == {"replay"}


def test_forwards_are_bounded_by_batch_size_memory_and_on_a_cpu_by_tokens(target: Target, monkeypatch):
    def most(length: int, **settings: float) -> int:
        return affordable_texts(target, length, len(LAYERS), Decoding(**settings))

    assert most(10, batch_size=8) == 8
    one = reading_bytes(target, 10, len(LAYERS)) * 10 / 2**30
    assert [most(10, memory_gib=share * one) for share in (0.1, 1.0, 3.5)] == [1, 1, 3]
    monkeypatch.setattr(reading, "CPU_TOKENS", 40)
    assert [most(length) for length in (10, 19, 21, 100)] == [4, 2, 1, 1]


def test_reading_goes_on_with_fewer_texts_where_memory_ends(target: Target, monkeypatch):
    monkeypatch.setattr(memory, "_said", set())
    texts = texts_of(*LENGTHS)
    wanted = read_features(target, texts, LAYERS, Decoding(), Ledger())
    read = target.read

    def ends(tokens: Tensor, layer_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(tokens, layer_ids)

    monkeypatch.setattr(target, "read", ends)
    ledger = Ledger()
    assert_same(read_features(target, texts, LAYERS, Decoding(), ledger), wanted)
    assert ledger.tokens == {"replay": sum(LENGTHS)}

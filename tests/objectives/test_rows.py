"""Padding, the order of texts and the cut into chunks change no loss, for any traces and an objective of each kind."""

from collections.abc import Sequence
from functools import partial

import torch
from benchmarks.objectives import shipped
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draftopd.objectives.base import Objective
from draftopd.objectives.chunked import DraftSide, TargetSide, chunked_loss
from draftopd.objectives.rows import Rows, flatten, log_mass, most_probable
from draftopd.trace import Trace, collate
from strategies import batches, drafted, traces

SIZE = 4
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)  # weights of slots are in float32
GENERATOR = torch.Generator().manual_seed(0)
HEAD = torch.randn(6, SIZE, generator=GENERATOR, dtype=torch.float64)
STATES = torch.randn(2, 80, SIZE, generator=GENERATOR, dtype=torch.float64)
INDEX = torch.full((100,), -1).index_put((torch.arange(70, 75),), torch.arange(5))  # the head lacks the token 75


def head(hidden: Tensor) -> Tensor:
    return hidden @ HEAD.T


def states(texts: Sequence[Trace]) -> tuple[Rows, Tensor]:
    """Rows of a batch, and hidden states [2, M, D] of drafter and target, which each text has of its own."""
    rows = flatten(collate(texts), INDEX)
    first = [sum(text.tokens.tolist()) % 40 for text in texts]
    at, count = list[int](), 0
    for number, before in zip(rows.response.tolist(), [-1, *rows.response.tolist()], strict=False):
        count = count + 1 if number == before else 0
        at.append(first[number] + count)
    return rows, STATES[:, at]


def sums(objective: Objective, texts: Sequence[Trace], chunk_rows: int = 1000) -> tuple[dict[str, Tensor], Tensor]:
    """Numerators and denominators of each term, and the gradient for each text's rows."""
    rows, (mine, theirs) = states(texts)
    mine = mine.clone().requires_grad_()
    mass = log_mass(head, theirs, 3) + 0.5 if objective.whole_vocabulary else None
    target = TargetSide(head, theirs, mass) if objective.needs_target else None
    coefficients = {name: torch.tensor(i + 0.5, dtype=torch.float64) for i, name in enumerate(objective.coefficients)}
    loss, terms = chunked_loss(objective, rows, DraftSide(head, mine), target, coefficients, chunk_rows)
    assert_close(loss, torch.stack([coefficients[name] * value for name, value in terms.items()]).sum())
    below = {f"{name} below": value.sum().double() for name, value in objective.denominators(rows).items()}
    return terms | below, torch.autograd.grad(loss, mine)[0]


KINDS = st.sampled_from(["draft_opd", "one_token_opd", "expected_length", "dspark", "decoding_rounds"]).map(shipped)
PAIR = st.integers(1, 3).flatmap(lambda k: st.lists(traces(k).filter(drafted), min_size=2, max_size=3))


@given(KINDS, PAIR, st.integers(1, 12), st.data())
def test_padding_order_and_chunks_change_nothing(objective: Objective, texts: list[Trace], chunk_rows: int, data):
    whole, gradient = sums(objective, texts)
    assert_close(sums(objective, texts, chunk_rows), (whole, gradient))
    alone = [sums(objective, [text]) for text in texts]
    assert_close({term: sum(one[0][term] for one in alone) for term in whole}, whole)
    assert_close(torch.cat([one[1] for one in alone]), gradient)
    order = data.draw(st.permutations(range(len(texts))))
    other, moved = sums(objective, [texts[i] for i in order])
    assert_close(other, whole)
    assert_close(moved, torch.cat([alone[i][1] for i in order]))


@given(batches())
def test_rows_of_a_batch_are_those_of_its_texts_one_after_the_other(texts: list[Trace]):
    rows, at, blocks = flatten(collate(texts), INDEX), 0, 0
    for number, text in enumerate(texts):
        own = flatten(collate([text]), INDEX)
        part = rows[at : at + len(own)]
        for name in ("draft", "text", "slot", "num_accepted", "remaining"):
            assert torch.equal(getattr(part, name), getattr(own, name))
        assert torch.equal(part.block, own.block + blocks)
        assert (part.response == number).all()
        at, blocks = at + len(own), blocks + int(own.opens.sum())
    assert at == len(rows)


@given(batches())
def test_a_row_is_a_draft_and_the_token_at_its_place(texts: list[Trace]):
    rows, expected = flatten(collate(texts), None), list[tuple[int, ...]]()
    for text in texts:
        tokens, blocks = text.tokens.tolist(), (text.anchors, text.drafts, text.accepted, text.drafted)
        for anchor, drafts, accepted, count in zip(*(values.tolist() for values in blocks), strict=True):
            for slot, draft in enumerate(drafts[:count], 1):
                token = tokens[anchor + slot] if anchor + slot < len(tokens) else -1
                expected.append((draft, token, slot, accepted, len(tokens) - 1 - anchor))
    found = (rows.draft, rows.text, rows.slot, rows.num_accepted, rows.remaining)
    assert list(zip(*(values.tolist() for values in found), strict=True)) == expected


@given(batches(), st.integers(1, 30), st.booleans())
def test_chunks_are_whole_and_as_large_as_they_may_be(texts: list[Trace], size: int, whole_texts: bool):
    rows = flatten(collate(texts), None)
    opens = (rows.opens_text if whole_texts else rows.opens).tolist()
    parts = list(rows.chunks(size, whole_texts))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(rows)))
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        units = sum(opens[part])
        assert not len(rows) or opens[part.start]
        assert part.stop - part.start <= size or units == 1
        if following is not None:
            next_unit = opens.index(True, following.start + 1) if True in opens[following.start + 1 :] else len(rows)
            assert next_unit - part.start > size


@given(st.integers(0, 20), st.integers(1, 25))
def test_the_head_in_parts_is_the_head(rows: int, size: int):
    hidden = STATES[0, :rows]
    assert_close(log_mass(head, hidden, size), head(hidden).logsumexp(-1))
    assert torch.equal(most_probable(head, hidden, size), head(hidden).argmax(-1))


def test_the_targets_probabilities_are_of_the_heads_tokens_or_of_all():
    logits = head(STATES[0, :5])
    some, every = TargetSide(head, STATES[0, :5]), TargetSide(head, STATES[0, :5], logits.logsumexp(-1) + 0.5)
    assert_close(some.log_probs(slice(1, 3)), logits.log_softmax(-1)[1:3])
    assert_close(every.log_probs(slice(1, 3)), logits.log_softmax(-1)[1:3] - 0.5)

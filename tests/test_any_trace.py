"""What holds for every trace and every batch of traces."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from draftopd.target.load import tiny_tokenizer
from draftopd.trace import collate, text_blocks
from strategies import batches, drafted, traces

TOKENIZER = tiny_tokenizer()
ANY = st.integers(1, 4).flatmap(traces)
DRAFTED = ANY.filter(drafted)


@given(ANY)
def test_a_trace_adds_up(trace):
    trace.check()
    committed, width = trace.committed, trace.drafts.shape[1]
    assert trace.response_length == len(trace.tokens) - trace.prompt_length == 1 + int(committed.sum())
    assert torch.equal(committed[:-1], trace.accepted[:-1] + 1)
    assert ((trace.accepted <= trace.drafted) & (trace.drafted <= width)).all()
    if drafted(trace):
        cut = int(committed[-1]) == int(trace.accepted[-1])
        assert committed[-1] == trace.accepted[-1] + (not cut)
        assert trace.drafted.tolist() == [width] * (len(committed) - 1) + [int(trace.accepted[-1]) if cut else width]
        assert trace.acceptance_length == pytest.approx(
            (len(trace.tokens) - 1 - int(trace.anchors[0])) / len(committed)
        )


@given(DRAFTED, st.data())
def test_check_finds_any_accepted_draft_that_is_not_the_text(trace, data):
    hits = (torch.arange(trace.drafts.shape[1]) < trace.accepted[:, None]).nonzero().tolist()
    assume(hits)
    block, slot = data.draw(st.sampled_from(hits))
    drafts, tokens = trace.drafts.clone(), trace.tokens.clone()
    drafts[block, slot] += 50
    tokens[int(trace.anchors[block]) + 1 + slot] += 50
    for broken in (replace(trace, drafts=drafts), replace(trace, tokens=tokens)):
        with pytest.raises(AssertionError, match="are the text"):
            broken.check()


@given(DRAFTED, st.data())
def test_check_finds_any_break_in_the_chain(trace, data):
    more = torch.cat([trace.tokens, trace.tokens[:2]])
    with pytest.raises(AssertionError, match="ends the text"):
        replace(trace, tokens=more).check()
    at, by = data.draw(st.integers(0, len(trace.anchors) - 1)), data.draw(st.sampled_from([-3, 3]))
    moved = trace.anchors.clone()
    moved[at] += by
    with pytest.raises(AssertionError):
        replace(trace, anchors=moved).check()


@given(ANY)
def test_what_is_not_struck_out_is_the_response(trace):
    text = trace.render(TOKENIZER)
    struck = [range(span.start, span.end) for span in text.spans if "strike" in str(span.style)]
    left = "".join(c for i, c in enumerate(text.plain) if not any(i in span for span in struck))
    assert left == TOKENIZER.decode(trace.tokens[trace.prompt_length :].tolist())


@given(batches(), st.integers(1, 4))
def test_a_batch_holds_every_trace_and_nothing_else(traces, size: int):
    batch = collate(traces)
    for b, trace in enumerate(traces):
        blocks, length = len(trace.anchors), len(trace.tokens)
        assert (batch.lengths[b], batch.drafter_step[b]) == (length, trace.drafter_step)
        assert torch.equal(batch.tokens[b, :length], trace.tokens)
        for name in ("anchors", "drafts", "accepted", "drafted"):
            assert torch.equal(getattr(batch, name)[b, :blocks], getattr(trace, name))
        assert not batch.valid[b, blocks:].any()
        assert batch.valid[b].sum() == trace.drafted.sum()
    reached = [int(torch.minimum(t.drafted, t.accepted + 1).sum()) for t in traces]
    assert batch.without_tails().valid.sum((1, 2)).tolist() == reached
    parts = batch.parts(size)
    assert [len(part.tokens) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert torch.equal(torch.cat([part.valid for part in parts]), batch.valid)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)


@given(st.lists(ANY, min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_blocks_of_texts_are_the_tokens_that_follow(texts, slots: int, data):
    anchors = [sorted(data.draw(st.sets(st.integers(0, len(t.tokens) - 2), min_size=1, max_size=4))) for t in texts]
    batch = text_blocks(texts, [torch.tensor(at) for at in anchors], slots)
    for b, (text, at) in enumerate(zip(texts, anchors, strict=True)):
        tokens = text.tokens.tolist()
        for n, anchor in enumerate(at):
            follow = tokens[anchor + 1 : anchor + 1 + slots]
            assert batch.drafts[b, n, : len(follow)].tolist() == follow
            assert batch.accepted[b, n] == batch.drafted[b, n] == len(follow)
        assert batch.valid[b].sum() == sum(min(slots, len(tokens) - 1 - anchor) for anchor in at)

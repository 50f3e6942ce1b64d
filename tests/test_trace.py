import pytest
import torch

from draftopd.target.load import tiny_tokenizer
from draftopd.trace import Trace, collate, no_blocks, text_blocks


def trace(tokens, prompt_length, anchors, drafts, accepted) -> Trace:
    return Trace(
        torch.tensor(tokens),
        prompt_length,
        torch.tensor(anchors),
        torch.tensor(drafts),
        torch.tensor(accepted),
    )


WHOLE = trace([9, 8, 1, 2, 3, 4, 5], 2, [2, 5], [[2, 3, 7], [7, 7, 7]], [2, 0])


def test_acceptance_length_counts_the_bonus_token():
    WHOLE.check()
    assert WHOLE.committed.tolist() == [3, 1]
    assert WHOLE.acceptance_length == 2.0


def test_a_block_cut_by_the_end_supervises_only_what_was_accepted():
    cut = trace([9, 1, 2, 3], 1, [1], [[2, 3, 7]], [2]).check()
    assert cut.drafted.tolist() == [2]
    assert cut.committed.tolist() == [2]
    assert WHOLE.drafted.tolist() == [3, 3]


@pytest.mark.parametrize(
    "broken",
    [
        trace([9, 8, 1, 2, 3, 4, 5], 2, [2, 4], [[2, 3, 7], [7, 7, 7]], [2, 0]),
        trace([9, 8, 1, 2, 3, 4, 5], 2, [2, 5], [[2, 7, 7], [7, 7, 7]], [2, 0]),
        trace([9, 8, 1, 2, 3, 4, 5, 6], 2, [2, 5], [[2, 3, 7], [7, 7, 7]], [2, 0]),
    ],
    ids=["anchor not on the bonus token", "accepted drafts are not the text", "text goes on"],
)
def test_check_refuses_broken_invariants(broken):
    with pytest.raises(AssertionError):
        broken.check()


def test_collate_marks_padding_blocks_and_slots_as_not_supervised():
    short = trace([9, 1, 2, 3], 1, [1], [[2, 3, 7]], [2])
    batch = collate([WHOLE, short])
    assert batch.tokens.shape == (2, 7)
    assert batch.valid.sum((1, 2)).tolist() == [6, 2]
    assert batch.drafted.tolist() == [[3, 3], [2, 0]]


def test_text_blocks_take_the_following_tokens_and_stops_at_the_end_of_the_text():
    text = trace([9, 1, 2, 3, 4], 1, [], torch.zeros(0, 0).tolist(), [])
    batch = text_blocks([text], [torch.tensor([1, 3])], 3)
    assert batch.drafts[0, 0].tolist() == [2, 3, 4]
    assert batch.drafts[0, 1, 0] == 4
    assert batch.drafted.tolist() == [[3, 1]]
    assert torch.equal(batch.accepted, batch.drafted)


def test_render_shows_accepted_and_rejected_drafts():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("?abcdef")
    drafts = [tokenizer.encode("cdx"), tokenizer.encode("yyy")]
    text = trace(ids, 1, [2, 5], drafts, [2, 0]).render(tokenizer)
    assert text.plain == "abcdxeyyyf"
    styles = {text.plain[s.start : s.end]: str(s.style) for s in text.spans}
    assert styles["cd"] == "green"
    assert styles["x"] == "red strike"
    assert styles["e"] == "bold blue"


def test_a_batch_for_an_empty_share_counts_nothing():
    batch = no_blocks(3, feature_size=8, hidden_size=4)
    assert (batch.lengths.tolist(), batch.drafted.tolist(), bool(batch.valid.any())) == ([0], [[0]], False)
    assert batch.drafter_step.tolist() == [-1]
    assert batch.features is not None
    assert batch.target_hidden is not None
    assert (batch.features.shape, batch.target_hidden.shape) == ((1, 1, 8), (1, 1, 3, 4))

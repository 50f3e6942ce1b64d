"""The few names of a notebook at the top of the package."""

from pathlib import Path

import pytest

import draftopd


def test_a_checkpoint_is_opened_rolled_out_rendered_and_evaluated(checkpoint: Path):
    run = draftopd.restore(checkpoint)
    results = draftopd.rollout(run.target, run.drafter, run.encoded("test", 2), run.decoding)
    trace = results[0].trace
    assert isinstance(trace, draftopd.Trace)
    response = run.target.tokenizer.decode(trace.tokens[trace.prompt_length :].tolist())
    assert len(trace.render(run.target.tokenizer).plain) >= len(response)
    (result,) = draftopd.evaluate_drafters(run.target, {"mine": run.drafter}, run.asked("test", 2), run.decoding)
    mean = sum(r.trace.acceptance_length for r in results) / len(results)
    assert result.scores["mean"]["acceptance_length"].value == pytest.approx(mean)
    redrafted = draftopd.redraft(run.target, run.drafter, results, draftopd.Decoding(max_new_tokens=24))
    assert [r.trace.drafts.tolist() for r in redrafted] == [r.trace.drafts.tolist() for r in results]


def test_every_name_has_its_home():
    for names in draftopd._HOMES.values():
        for name in names:
            assert callable(getattr(draftopd, name))
    assert draftopd.__version__
    with pytest.raises(AttributeError, match="nothing"):
        _ = draftopd.nothing

"""Sources of on-policy traces: what each asks of the data module, and an old run that goes on."""

import pytest
import torch

from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.objectives.base import CrossEntropy
from draftopd.objectives.draft_opd import DraftOPD
from draftopd.training.trace_sources import FreeRunning, Redrafts, Rollouts
from runs import UNTIMED, outputs

SAMPLED = Decoding(temperature=1.0, seed=5)


@pytest.mark.parametrize("source", [Rollouts(), FreeRunning()])
def test_sources_that_write_their_text_read_no_stored_texts(source):
    source.check(Decoding(temperature=1.0, rule="rejection"))
    assert not source.stores_hidden(DraftOPD(rejected_slots="first"))
    assert source.writing(SAMPLED, epoch=7) == SAMPLED
    assert not source.in_order(lap=0)
    assert source.verified == isinstance(source, Rollouts)


def test_redrafts_store_hidden_states_where_they_spare_the_target():
    stores = [
        Redrafts().stores_hidden(o) for o in (DraftOPD(rejected_slots="first"), DraftOPD(), CrossEntropy(decay=4.0))
    ]
    assert stores == [True, False, False]


def test_redrafts_take_prompts_in_order_while_texts_are_unwritten():
    assert [Redrafts().in_order(lap) for lap in (0, 1)] == [True, False]
    assert [Redrafts(rewrite_every=2).in_order(lap) for lap in (0, 1)] == [True, True]


def test_rewriting_changes_the_seed_of_the_texts_every_so_many_epochs():
    seeds = [Redrafts(rewrite_every=2).writing(SAMPLED, epoch).seed for epoch in range(5)]
    assert seeds[0] == seeds[1] == 5
    assert seeds[2] == seeds[3]
    assert len(set(seeds)) == 3
    assert Redrafts().writing(SAMPLED, epoch=3) == SAMPLED


def test_redrafts_refuse_sampled_drafts():
    with pytest.raises(DraftError, match="traces=rollouts"):
        Redrafts().check(Decoding(temperature=1.0, rule="rejection"))


def test_traces_are_reused_in_whole_epochs():
    with pytest.raises(DraftError, match="reuse=0 must be a whole number of at least 1"):
        Rollouts(reuse=0)


@pytest.mark.slow
def test_a_checkpoint_of_the_budget_callback_resumes(command, tmp_path):
    """Older versions kept the budget's state among the callbacks, and no state of a scheduler."""
    words = ("experiment=smoke/draft_opd", "budget.epochs=2", *UNTIMED)
    assert command(*words, "trainer.max_epochs=1") == 0
    path = outputs(tmp_path) / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["callbacks"]["Budget"], saved["lr_schedulers"] = saved.pop("budget"), []
    torch.save(saved, path)
    assert command(*words, f"resume={path}") == 0
    assert torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4

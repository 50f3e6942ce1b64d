"""Losses and weights that are not finite numbers stop a run, and memory that ends does not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from draftopd.decoding import memory
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.objectives.base import CrossEntropy
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, collate
from draftopd.training.module import DraftModule
from draftopd.training.terms import require_finite_weights
from pair import PROMPTS
from runs import UNTIMED

STEPS = ("experiment=smoke/sft", "budget.epochs=null", "budget.steps=2", "prompts.val=1", *UNTIMED)
PLANNED = 2  # forwards that the plan times before the run


def test_a_loss_that_is_not_finite_stops_before_weights_change(command, tmp_path, monkeypatch, capsys):
    """In the second step; the batch is in the run's folder."""
    steps: list[int] = []
    numerators, training_step = CrossEntropy.numerators, DraftModule.training_step

    def step(self, batch, index):
        steps.append(int(sum(part.valid.sum() for part in batch)))
        return training_step(self, batch, index)

    def broken(self, logits, log_p, rows):
        wrong = float("nan") if len(steps) == 2 else 1.0
        return {name: value * wrong for name, value in numerators(self, logits, log_p, rows).items()}

    monkeypatch.setattr(DraftModule, "training_step", step)
    monkeypatch.setattr(CrossEntropy, "numerators", broken)
    assert command(*STEPS) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "at step 1 the loss is nan" in error
    (path,) = tmp_path.rglob("not_finite.pt")
    assert path.name in error
    (saved,) = torch.load(path, weights_only=True)
    assert ReplayBatch(**saved).valid.sum() == steps[1]
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_loss_of_validation_that_is_not_finite_stops_too(target: Target, drafter: DFlash, tmp_path):
    traces = [r.trace for r in rollout(target, drafter, PROMPTS, Decoding(8))]
    module = DraftModule(target, drafter, CrossEntropy(None), torch.optim.SGD)
    module._trainer = SimpleNamespace(world_size=1, global_step=7, default_root_dir=str(tmp_path))
    module.validation_step([collate(traces)], 0)
    module.objective.numerators = lambda logits, log_p, rows: {"cross_entropy": logits[:, 0] * float("inf")}
    with pytest.raises(DraftError, match=r"in validation at step 7 the loss is not finite: .*not_finite\.pt"):
        module.validation_step([collate(traces)], 0)
    assert len(torch.load(tmp_path / "not_finite.pt", weights_only=True)[0]["tokens"]) == len(traces)


def test_weights_that_are_not_finite_are_neither_tested_nor_saved(command, tmp_path, monkeypatch, capsys):
    def broken(self):
        with torch.no_grad():
            self.drafter.norm.weight[0] = float("inf")

    monkeypatch.setattr(DraftModule, "on_train_end", broken, raising=False)
    assert command(*STEPS) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "weights of the drafter are not finite, norm.weight among them" in error
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["state_dict"]["drafter.norm.weight"].isfinite().all()


def test_weights_are_finite_wherever_they_are_saved_validated_or_tested(target, drafter: DFlash):
    module = DraftModule(target, drafter, CrossEntropy(None), torch.optim.SGD)
    require_finite_weights(drafter)
    with torch.no_grad():
        drafter.fc.weight[3, 4] = float("nan")
    with pytest.raises(DraftError, match=r"1 of \d+ weights of the drafter are not finite, fc\.weight among them"):
        module.on_save_checkpoint({"state_dict": {}})
    for start in (module.on_validation_start, module.on_test_start):
        with pytest.raises(DraftError, match=r"fc\.weight among them"):
            start()


def test_a_step_that_does_not_fit_takes_fewer_texts_at_a_time(command, tmp_path, monkeypatch, capsys, checkpoint: Path):
    """Memory ends in the drafter's forward, after a part has left its gradients; and once all is validated."""
    forward, seen = DFlash.forward, []

    def small(self, batch, embed):
        seen.append(len(batch.tokens))
        if len(batch.tokens) > 2 and len(seen) > PLANNED + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, embed)

    monkeypatch.setattr(DFlash, "forward", small)
    monkeypatch.setattr(memory, "_said", set())
    words = ("budget.epochs=2", "data.batching.micro_batch_size=4", "test.prompts=0")
    assert command("experiment=smoke/sft", *words, *UNTIMED) == 0
    assert seen[PLANNED : PLANNED + 6] == [4, 4, 2, 2, 2, 2]  # all of the step's eight texts again
    assert max(seen[PLANNED + 2 : PLANNED + 6]) <= 2
    assert capsys.readouterr().out.count("out of memory: going on with 2 of the texts of a micro-batch") == 1
    (last,) = tmp_path.rglob("last.ckpt")
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in torch.load(last, weights_only=True)["state_dict"].items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=1e-3)

"""Averaged weights, and the optimizer's state as part of a warm start."""

from pathlib import Path

import pytest
import torch

from draftopd.checkpoints.native import optimizer_state
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.objectives.base import CrossEntropy
from draftopd.target.model import Target
from draftopd.training.averaging import AveragedWeights
from draftopd.training.budget import Budget
from draftopd.training.callbacks import AcceptanceLength
from draftopd.training.module import DraftModule
from runs import UNTIMED, outputs


@pytest.fixture
def module(target: Target, drafter: DFlash) -> DraftModule:
    return DraftModule(target, drafter, CrossEntropy(decay=None), torch.optim.AdamW, budget=Budget(steps=4))


def test_the_average_is_lent_for_a_validation_and_given_back(module: DraftModule):
    ema, weight = AveragedWeights(decay=0.2), module.drafter.norm.weight
    frozen = [p.clone() for p in module.target.parameters()]
    ema.on_train_start(None, module)
    values = []
    for value in (2.0, 4.0):
        with torch.no_grad():
            weight.fill_(value)
        ema.on_train_batch_end(None, module, None, None, 0)
        ema.on_validation_start(None, module)
        values.append(weight[0].item())
        ema.on_validation_end(None, module)
        assert weight[0].item() == value
    first = 1.0 * 2 / 11 + 2.0 * 9 / 11  # decay (1 + n) / (10 + n) at first
    assert values == pytest.approx([first, first * 0.2 + 4.0 * 0.8])
    ema.on_train_end(None, module)
    assert weight[0].item() == values[1]
    assert all(torch.equal(a, b) for a, b in zip(frozen, module.target.parameters(), strict=True))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_0_and_1_is_refused(decay: float):
    with pytest.raises(DraftError, match="decay"):
        AveragedWeights(decay)


def last(folder):
    return torch.load(outputs(folder) / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_validations_test_and_checkpoints_have_the_average_and_training_does_not(command, tmp_path, monkeypatch):
    seen = []
    for hook in ("on_validation_epoch_end", "on_test_epoch_end"):
        original = getattr(AcceptanceLength, hook)

        def record(self, trainer, pl_module, original=original):
            seen.append(pl_module.drafter.norm.weight.clone())
            original(self, trainer, pl_module)

        monkeypatch.setattr(AcceptanceLength, hook, record)
    words = ("experiment=smoke/sft", "budget.epochs=2", *UNTIMED)
    assert command(*words) == 0
    plain, _ = last(tmp_path), seen.clear()
    assert command(*words, "callbacks=ema") == 0
    averaged, weight = last(tmp_path), "drafter.norm.weight"
    assert all(name.startswith("drafter.") for name in averaged["state_dict"])
    trained = averaged["trained_weights"][-1]
    assert torch.equal(trained, plain["state_dict"][weight])
    assert not torch.equal(averaged["state_dict"][weight], trained)
    assert len(seen) == 3
    assert all(torch.equal(value, averaged["state_dict"][weight]) for value in seen[1:])
    # a run that was stopped goes on with both
    assert command(*words, "callbacks=ema", "trainer.max_epochs=1") == 0
    path = outputs(tmp_path) / "checkpoints" / "last.ckpt"
    assert command(*words, "callbacks=ema", f"resume={path}") == 0
    resumed = last(tmp_path)
    for name, value in averaged["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, atol=1e-6, rtol=1e-5)


def test_adams_moments_arrive_and_the_rate_is_the_new_schedules(module: DraftModule):
    old = torch.optim.AdamW(module.drafter.parameters(), lr=1.0, betas=(0.5, 0.5))
    for parameter in module.drafter.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    for _ in range(3):
        old.step()
    module.init_optimizer = old.state_dict()
    made = module.configure_optimizers()
    new, schedule = made["optimizer"], made["lr_scheduler"]
    for parameter in module.drafter.parameters():
        assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
        assert new.state[parameter]["step"] == 3
    schedule.step()
    (group,) = new.param_groups
    assert group["lr"] == new.defaults["lr"] == 1e-3
    assert group["betas"] == (0.9, 0.999)


def test_an_optimizer_of_another_kind_or_shape_is_refused(module: DraftModule, target: Target):
    other = DFlash(target.shape, num_layers=1, block_size=5, intermediate_size=8)
    for kind, drafter in ((torch.optim.AdamW, other), (torch.optim.SGD, module.drafter)):
        optimizer = kind(drafter.parameters(), lr=1.0)
        for parameter in drafter.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        module.init_optimizer = optimizer.state_dict()
        with pytest.raises(DraftError, match="init_optimizer=false"):
            module.configure_optimizers()


def test_a_start_without_an_optimizer_is_refused(command, tmp_path, capsys, checkpoint: Path):
    saved = torch.load(checkpoint, weights_only=True)
    assert optimizer_state(checkpoint)["state"][0]["exp_avg"].any()
    torch.save({**saved, "optimizer_states": []}, tmp_path / "bare.ckpt")
    for path in (tmp_path / "bare.ckpt", tmp_path):
        with pytest.raises(DraftError, match="has no optimizer"):
            optimizer_state(path)
    assert command("experiment=smoke/sft", "init_optimizer=true", "logger=none") == 2
    assert "name a checkpoint" in capsys.readouterr().err

"""The budget: when a run ends, and the learning rate on the way."""

import math
from types import SimpleNamespace

import pytest

from draftopd.decoding.ledger import Ledger
from draftopd.errors import DraftError
from draftopd.training import budget as budgets
from draftopd.training.budget import Budget
from draftopd.training.module import DraftModule


class Run:
    """A trainer and a module that only keep count."""

    def __init__(self, batches: int) -> None:
        self.module = DraftModule.__new__(DraftModule)
        self.module.__dict__.update(ledger=Ledger(), log=lambda *args, **options: None)
        self.trainer = SimpleNamespace(
            current_epoch=0,
            global_step=0,
            num_training_batches=batches,
            should_stop=False,
            check_val_every_n_epoch=4,
            optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}], defaults={"lr": 1.0})],
        )

    def step(self, budget: Budget, flops: float = 0.0, tokens: float = 0.0) -> float:
        trainer = self.trainer
        index = trainer.global_step % trainer.num_training_batches
        if index == 0:
            budget.on_train_epoch_start(trainer, self.module)
        budget.on_train_batch_start(trainer, self.module, None, index)
        self.module.ledger.flops["train"] += flops
        self.module.ledger.tokens["replay"] += tokens
        self.module.ledger.tokens["train"] += 1e6  # not the target's
        trainer.global_step += 1
        budget.on_train_batch_end(trainer, self.module, None, None, index)
        trainer.current_epoch = trainer.global_step // trainer.num_training_batches
        return trainer.optimizers[0].param_groups[0]["lr"]


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine_of_the_budget():
    run, budget = Run(batches=5), Budget(epochs=2, warmup_steps=2)
    rates = []
    while not run.trainer.should_stop:
        rates.append(run.step(budget))
    expected = [min(1, (n + 1) / 2) * 0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert rates == pytest.approx(expected)
    assert run.trainer.check_val_every_n_epoch == 1  # the end is validated


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({"steps": 7}, 7), ({"flops": 50.0}, 5), ({"epochs": 0.5, "steps": 9}, 2), ({"target_tokens": 200}, 5)],
)
def test_whichever_limit_is_spent_first_ends_the_run(limits, steps):
    run, budget = Run(batches=4), Budget(**limits)
    while not run.trainer.should_stop:
        run.step(budget, flops=10.0, tokens=40.0)
    assert run.trainer.global_step == steps


def test_minutes_are_the_wall_clock_and_a_resumed_run_goes_on_counting(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(budgets.time, "perf_counter", lambda: now[0])
    run, budget = Run(batches=4), Budget(minutes=3.0)
    now[0] += 600.0  # before the fit
    budget.on_fit_start(run.trainer, run.module)
    for _ in range(2):
        now[0] += 30.0
        run.step(budget)
    assert not run.trainer.should_stop
    later = Budget(minutes=3.0)
    later.load_state_dict(budget.state_dict())
    now[0] += 600.0  # between the two
    later.on_fit_start(run.trainer, run.module)
    while not run.trainer.should_stop:
        now[0] += 30.0
        run.step(later)
    assert run.trainer.global_step == 6


def test_what_a_rollout_phase_costs_is_laid_over_its_steps():
    run, budget = Run(batches=4), Budget(flops=100.0)
    rates = []
    while not run.trainer.should_stop:
        if run.trainer.global_step % 4 == 0:
            run.module.ledger.flops["verify"] += 40.0
        rates.append(run.step(budget, flops=2.5))
    # each step costs its 2.5 and a quarter of the phase's 40
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * n * 0.125)) for n in range(8)])


@pytest.mark.parametrize("unit", ["flops", "target_tokens"])
def test_a_rollout_phase_that_would_spend_the_rest_is_not_begun(unit: str):
    run, budget = Run(batches=2), Budget(**{unit: 100.0})
    while not run.trainer.should_stop:
        if run.trainer.global_step % 2 == 0:
            getattr(run.module.ledger, {"flops": "flops", "target_tokens": "tokens"}[unit])["verify"] += 30.0
        run.step(budget, flops=1.0, tokens=1.0)
    assert run.trainer.global_step == 6  # three phases; a fourth rollout would pass 100


def test_a_resumed_run_knows_what_a_rollout_phase_costs():
    run, budget = Run(batches=2), Budget(flops=100.0)
    while not run.trainer.should_stop:
        if run.trainer.global_step == 4:
            state, budget = budget.state_dict(), Budget(flops=100.0)
            budget.load_state_dict(state)
        if run.trainer.global_step % 2 == 0:
            run.module.ledger.flops["verify"] += 20.0
        run.step(budget, flops=1.0)
    assert run.trainer.global_step == 8


def test_a_run_without_a_budget_is_refused():
    with pytest.raises(DraftError, match=r"budget\.epochs"):
        Budget(epochs=0)

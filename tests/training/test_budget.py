"""The budget: when a run ends, and the learning rate on the way."""

import math
from types import SimpleNamespace

import pytest
import torch

from draftopd.decoding.ledger import Ledger
from draftopd.errors import DraftError
from draftopd.training import budget as budgets
from draftopd.training.budget import Budget, EndAtBudget
from draftopd.training.schedule import BudgetCosine
from runs import UNTIMED


class Run:
    """A module's calls of budget and schedule, in epochs of `batches` steps."""

    def __init__(self, batches: int, budget: Budget, warmup_steps: int = 0, lr: float = 1.0) -> None:
        self.batches, self.budget, self.ledger, self.steps = batches, budget, Ledger(), 0
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
        self.schedule = BudgetCosine(self.optimizer, budget, warmup_steps)
        self.over = False

    def step(self, flops: float = 0.0, tokens: float = 0.0) -> float:
        epoch, index = divmod(self.steps, self.batches)
        self.budget.start_step(epoch, index / self.batches, self.steps, self.ledger)
        self.schedule.step()
        self.ledger.flops["train"] += flops
        self.ledger.tokens["replay"] += tokens
        self.ledger.tokens["train"] += 1e6  # not the target's
        self.steps += 1
        self.over = self.budget.spent_after(epoch, (index + 1) / self.batches, self.steps, self.ledger)
        assert [self.optimizer.param_groups[0]["lr"]] == self.schedule.get_last_lr()
        return self.optimizer.param_groups[0]["lr"]


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine_of_the_budget():
    run = Run(batches=5, budget=Budget(epochs=2), warmup_steps=2)
    rates = []
    while not run.over:
        rates.append(run.step())
    expected = [min(1, (n + 1) / 2) * 0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({"steps": 7}, 7), ({"flops": 50.0}, 5), ({"epochs": 0.5, "steps": 9}, 2), ({"target_tokens": 200}, 5)],
)
def test_whichever_limit_is_spent_first_ends_the_run(limits, steps):
    run = Run(batches=4, budget=Budget(**limits))
    while not run.over:
        run.step(flops=10.0, tokens=40.0)
    assert run.steps == steps


def test_the_callback_ends_the_trainer_with_the_budget_and_validates_the_end():
    counts = {"current_epoch": 0, "global_step": 0, "num_training_batches": 4}
    trainer = SimpleNamespace(should_stop=False, check_val_every_n_epoch=4, **counts)
    module = SimpleNamespace(budget=Budget(steps=1), ledger=Ledger())
    EndAtBudget().on_train_batch_end(trainer, module, None, None, 0)
    assert not trainer.should_stop
    trainer.global_step = 1
    EndAtBudget().on_train_batch_end(trainer, module, None, None, 0)
    assert trainer.should_stop
    assert trainer.check_val_every_n_epoch == 1


def test_minutes_are_the_wall_clock_and_a_resumed_run_goes_on_counting(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(budgets.time, "perf_counter", lambda: now[0])
    run = Run(batches=4, budget=Budget(minutes=3.0))
    now[0] += 600.0  # before the fit
    run.budget.start()
    for _ in range(2):
        now[0] += 30.0
        run.step()
    assert not run.over
    state, run.budget = run.budget.state_dict(), Budget(minutes=3.0)
    run.budget.load_state_dict(state)
    now[0] += 600.0  # between the two
    run.budget.start()
    while not run.over:
        now[0] += 30.0
        run.step()
    assert run.steps == 6


def test_the_cost_of_a_rollout_phase_is_spread_over_its_steps():
    run = Run(batches=4, budget=Budget(flops=100.0))
    rates = []
    while not run.over:
        if run.steps % 4 == 0:
            run.ledger.flops["verify"] += 40.0
        rates.append(run.step(flops=2.5))
    # each step costs its 2.5 and a quarter of the phase's 40
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * n * 0.125)) for n in range(8)])


@pytest.mark.parametrize("unit", ["flops", "target_tokens"])
def test_a_rollout_phase_that_would_spend_the_rest_is_not_begun(unit: str):
    run = Run(batches=2, budget=Budget(**{unit: 100.0}))
    while not run.over:
        if run.steps % 2 == 0:
            getattr(run.ledger, {"flops": "flops", "target_tokens": "tokens"}[unit])["verify"] += 30.0
        run.step(flops=1.0, tokens=1.0)
    assert run.steps == 6  # three phases; a fourth rollout would pass 100


def test_epochs_on_the_same_traces_share_a_phases_cost_and_only_a_new_phase_is_weighed():
    run = Run(batches=2, budget=Budget(flops=100.0))
    run.budget.start(epochs_per_phase=2)
    rates = []
    while not run.over:
        if run.steps % 4 == 0:
            run.ledger.flops["verify"] += 30.0
        rates.append(run.step(flops=2.5))
    # two phases of 40; within the second, 30 more than is spent would pass 100, but no phase comes there
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * n * 0.1)) for n in range(8)])


@pytest.mark.parametrize(("paid_once", "phase", "resumed_at", "steps"), [(0.0, 20.0, 4, 8), (60.0, 5.0, 2, 10)])
def test_a_resumed_run_knows_what_a_rollout_phase_costs(paid_once: float, phase: float, resumed_at: int, steps: int):
    """Texts that are paid for once are no part of it."""
    run = Run(batches=2, budget=Budget(flops=100.0))
    run.ledger.flops["paid"] += paid_once
    while not run.over:
        if run.steps == resumed_at:
            state, run.budget = run.budget.state_dict(), Budget(flops=100.0)
            run.budget.load_state_dict(state)
        if run.steps % 2 == 0:
            run.ledger.flops["verify"] += phase
        run.step(flops=1.0)
    assert run.steps == steps


@pytest.mark.parametrize(("limits", "over"), [({"steps": 4}, True), ({"steps": 5}, False), ({"flops": 20.0}, True)])
def test_a_resumed_run_knows_whether_its_budget_is_spent(limits, over):
    """Of the 40 FLOPs none is left for another phase, whatever the steps."""
    run = Run(batches=4, budget=Budget(steps=4))
    while not run.over:
        run.step(flops=10.0)
    resumed = Budget(**limits)
    assert not resumed.over
    resumed.load_state_dict(run.budget.state_dict())
    assert resumed.over is over


def test_a_resumed_run_takes_the_configs_rate_and_warm_up():
    """Whatever the checkpoint's were, and without a warning of torch's about the order of steps."""
    old = Run(batches=4, budget=Budget(steps=8), warmup_steps=8, lr=1.0)
    for _ in range(3):
        old.step()
    new = Run(batches=4, budget=Budget(steps=8), lr=0.5)
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    new.schedule.load_state_dict(old.schedule.state_dict())
    new.steps = 3
    assert new.step() == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 3 / 8)))


@pytest.mark.parametrize("limit", [0, -1, None])
def test_a_run_without_a_budget_is_refused(limit):
    with pytest.raises(DraftError, match="epochs"):
        Budget(epochs=limit)


@pytest.mark.slow
def test_a_run_pays_once_for_the_texts_it_reads_where_they_are_charged(command, tmp_path):
    """The third run finds all texts written."""
    spent = []
    for number, words in enumerate((["texts.charged=true"], [], ["texts.charged=true", "budget.epochs=2"])):
        words = [*words, f"texts.folder={tmp_path}/texts", f"hydra.run.dir={number}"]
        assert command("experiment=smoke/sft", "budget.epochs=1", "test.prompts=0", *UNTIMED, *words) == 0
        saved = torch.load(tmp_path / str(number) / "checkpoints" / "last.ckpt", weights_only=True)
        spent.append({phase: saved["ledger"]["flops"].get(phase, 0.0) for phase in ("paid", "train")})
    assert spent[0]["paid"] > 0
    assert spent[1] == {**spent[0], "paid": 0.0}
    assert spent[2]["paid"] == spent[0]["paid"]
    assert spent[2]["train"] > spent[0]["train"]

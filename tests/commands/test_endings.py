"""How a run of the command ends and goes on: budgets, Ctrl-C, resume."""

import json
import signal

import pytest
import torch

from draftopd.training.on_policy import OnPolicyDataModule
from runs import UNTESTED, UNTIMED, called, outputs, runs


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["smoke/sft", "smoke/draft_opd"])
def test_a_resumed_run_ends_like_one_that_was_never_stopped(command, tmp_path, experiment):
    """Same epochs, same learning rates: the budget is the same, the first run is only cut short."""
    words = (f"experiment={experiment}", "budget.epochs=2", "logger=none", "seed=3")
    assert command(*words) == 0
    whole = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert command(*words, "trainer.max_epochs=1") == 0
    half = outputs(tmp_path) / "checkpoints" / "last.ckpt"
    assert command(*words, f"resume={half}") == 0
    resumed = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == whole["global_step"] > torch.load(half, weights_only=True)["global_step"]
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, atol=1e-6, rtol=1e-5)
    assert resumed["ledger"]["flops"] == pytest.approx(whole["ledger"]["flops"])


def drawn(monkeypatch) -> list[tuple[int, list[list[int]], list[int]]]:
    """Filled by a run, epoch by epoch: traces drawn at step, the texts' tokens in the order of the batches, anchors."""
    seen: list[tuple[int, list[list[int]], list[int]]] = []
    original = OnPolicyDataModule.train_steps

    def record(self):
        loader = original(self)
        batches = [micro for step in loader for micro in step]
        texts = [t.tolist()[:n] for b in batches for t, n in zip(b.tokens, b.lengths, strict=True)]
        steps = {int(s) for b in batches for s in b.drafter_step}
        seen.append((steps.pop(), texts, sorted(int(a) for b in batches for a in b.anchors[b.drafted > 0])))
        assert not steps
        return loader

    monkeypatch.setattr(OnPolicyDataModule, "train_steps", record)
    return seen


def test_traces_are_reused_for_so_many_epochs_in_another_order(command, monkeypatch):
    seen = drawn(monkeypatch)
    assert command("experiment=smoke/draft_opd", "traces.reuse=2", "budget.epochs=3", *UNTESTED) == 0
    assert [step for step, _, _ in seen] == [0, 0, 4]  # two steps an epoch
    (_, first, _), (_, again, _), _ = seen
    assert first != again
    assert sorted(first) == sorted(again)
    assert seen[0][2] == seen[1][2]


@pytest.mark.slow
@pytest.mark.parametrize("traces", ["rollouts", "redrafts"])
def test_a_run_that_stops_between_epochs_on_the_same_traces_goes_on_with_them(command, tmp_path, monkeypatch, traces):
    seen = drawn(monkeypatch)
    words = ("experiment=smoke/draft_opd", f"traces={traces}", "traces.reuse=2", "budget.epochs=3", "seed=3", *UNTIMED)
    assert command(*words) == 0
    whole = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert command(*words, "trainer.max_epochs=1") == 0
    half = outputs(tmp_path) / "checkpoints" / "last.ckpt"
    assert command(*words, f"resume={half}") == 0
    assert seen[1:3] == seen[4:]  # one epoch of the half
    resumed = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_checkpoint_and_ends_the_runs_as_killed(command, tmp_path, monkeypatch, capsys):
    def interrupt(self):
        if self.trainer.global_step:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    original = OnPolicyDataModule.train_dataloader
    monkeypatch.setattr(OnPolicyDataModule, "train_dataloader", interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start deaf to it
    try:
        assert command("experiment=smoke", "budget.epochs=2") == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    statuses = {called(r): r.info.status for r in runs(tmp_path)}
    assert statuses == {"smoke": "KILLED", "sft": "FINISHED", "draft_opd": "KILLED"}
    (last,) = tmp_path.rglob("draft_opd/checkpoints/last.ckpt")
    assert str(last).endswith(capsys.readouterr().out.split("last checkpoint: ")[1].split()[0])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("experiment=smoke/draft_opd", f"init_from={last}", "budget.epochs=1", "logger=none") == 0


@pytest.mark.parametrize(
    ("limit", "most"), [("target_tokens=900", 4), pytest.param("minutes=1e-6", 1, marks=pytest.mark.slow)]
)
def test_a_budget_in_any_unit_ends_a_run(command, tmp_path, limit, most):
    words = ("budget.epochs=null", f"budget.{limit}", *UNTESTED)
    assert command("experiment=smoke/draft_opd", *words) == 0
    checkpoint = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert 1 <= checkpoint["global_step"] <= most


@pytest.mark.slow
def test_a_budget_in_flops_ends_a_run(command, tmp_path):
    assert command("experiment=smoke/sft", "budget.epochs=null", "budget.flops=2e8", *UNTIMED) == 0
    (stage,) = json.loads((outputs(tmp_path) / "results.json").read_text())["results"]
    assert 2e8 <= stage["training"]["flops"] < 3e8

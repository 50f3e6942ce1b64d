"""Epochs of the command that draft again along stored texts instead of rolling out."""

import pytest
import torch

from draftopd.trace import Trace
from draftopd.training.on_policy import OnPolicyDataModule
from runs import FIRST, UNTESTED, UNTIMED, outputs, texts_of


@pytest.fixture
def phases(monkeypatch) -> list[list[Trace]]:
    """The traces of every phase of a run."""
    seen: list[list[Trace]] = []
    original = OnPolicyDataModule.train_steps

    def record(self):
        loader = original(self)
        seen.append([r.trace for r in self.results])
        return loader

    monkeypatch.setattr(OnPolicyDataModule, "train_steps", record)
    return seen


def test_redrafting_reads_text_and_tails_and_counts_what_it_costs(command, tmp_path, phases):
    """The target's texts are written once, in the ledger of texts; the phases of training are draft, replay, train."""
    assert command("experiment=smoke/redraft", "budget.epochs=2", *UNTESTED) == 0
    ledger = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["ledger"]
    assert ledger["flops"].keys() == {"draft", "replay", "train"}
    assert {"redraft", "replay", "train", "validate"} <= ledger["seconds"].keys()
    assert 0 < ledger["tokens"]["redraft"] < ledger["tokens"]["draft"]
    traces = [trace for phase in phases for trace in phase]
    tails = sum(int((t.drafted - t.accepted - 1).clamp(min=0).sum()) for t in traces)
    assert tails > 0
    assert ledger["tokens"]["replay"] == sum(len(t.tokens) for t in traces) + tails


def test_redrafting_up_to_the_first_rejection_runs_no_target(command, tmp_path):
    assert command("experiment=smoke/redraft", FIRST, "budget.epochs=1", *UNTESTED) == 0
    ledger = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["ledger"]
    assert ledger["flops"].keys() == {"draft", "train"}


@pytest.mark.slow
def test_redrafting_begins_with_the_first_texts_and_writes_no_others(command, tmp_path):
    few = ("data.prompts_per_epoch=4", "data.batching.batch_size=4", "texts.shard_size=4")
    whole = "drafter.draft_vocab_size=null"  # a reduced one counts tokens of the texts
    assert command("experiment=smoke/redraft", "budget.epochs=1", whole, *few, *UNTIMED) == 0
    assert [len(list(folder.glob("*.safetensors"))) for folder in texts_of(tmp_path)] == [1, 1]  # with validation's


@pytest.mark.slow
def test_redrafted_texts_are_written_anew_above_temperature_0(command, tmp_path, phases):
    words = ("data.decoding.temperature=1.0", "traces.rewrite_every=2", "budget.epochs=4", *UNTIMED)
    assert command("experiment=smoke/redraft", *words) == 0
    texts = [[t.tokens.tolist() for t in phase] for phase in phases]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert not any(text in texts[2] for text in texts[0])
    assert len(texts_of(tmp_path)) == 3  # two generations and validation


def test_rewriting_what_cannot_change_is_refused(command, capsys):
    words = ("data.decoding.temperature=0", "traces.rewrite_every=2", "logger=none")
    assert command("experiment=smoke/redraft", *words) == 2
    assert "needs data.decoding.temperature above 0" in capsys.readouterr().err


def test_redrafting_sampled_drafts_is_refused_before_any_text_is_written(command, tmp_path, capsys):
    words = ("data.decoding.temperature=1.0", "data.decoding.rule=rejection", "logger=none")
    assert command("experiment=smoke/redraft", *words) == 2
    assert "traces=rollouts" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))

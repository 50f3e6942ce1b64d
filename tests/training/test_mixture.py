"""Drafted blocks and random anchors in one optimizer step: which texts, which objective, which weight."""

from types import SimpleNamespace

import pytest
import torch

from draftopd.data.texts import TextCache
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.objectives.base import CrossEntropy
from draftopd.objectives.draft_opd import DraftOPD
from draftopd.trace import Rollout, Trace
from draftopd.training.datamodule import Batching
from draftopd.training.mixture import MixedDataModule
from draftopd.training.on_policy import OnPolicyDataModule
from draftopd.training.sft import SFTDataModule
from draftopd.training.terms import Terms
from draftopd.training.trace_sources import Redrafts
from pair import trained
from runs import UNTIMED, outputs

TEXTS = 8


def text(i: int) -> Trace:
    nothing = torch.zeros(0).long()
    tokens = torch.arange(19) + 20 * i
    return Trace(tokens, 4, nothing, nothing.view(0, 3), nothing, drafter_step=-1)


class Source(Redrafts):
    """Blocks in which one of three drafts is accepted."""

    def draw(self, data, phase):
        traces = []
        for i in phase.index:
            anchors = torch.arange(4, 17, 2)
            drafts = text(i).tokens[anchors[:, None] + torch.tensor([1, 0, 0])]
            traces.append(Trace(text(i).tokens, 4, anchors, drafts, torch.ones_like(anchors), drafter_step=3).check())
        return [Rollout(trace) for trace in traces]


def loader(kind, monkeypatch, spent: float = 0.0, **options):
    """Steps of a data module in its first epoch, without a trainer, a target or files."""
    objective = SimpleNamespace(needs_tails=True, needs_target=False)
    module = SimpleNamespace(
        objective=objective,
        random_objective=objective,
        drafter=SimpleNamespace(num_draft_tokens=3, layer_ids=[1], named_parameters=lambda: []),
        global_step=0,
        target=SimpleNamespace(shape=SimpleNamespace(hidden_size=2)),
        budget=SimpleNamespace(share=spent),
        share_costs=lambda: None,
    )
    texts = [text(i) for i in range(TEXTS)]
    monkeypatch.setattr(kind, "module", module)
    monkeypatch.setattr(kind, "texts", lambda self, split: texts)
    monkeypatch.setattr(kind, "encoded", lambda self, split: texts)
    monkeypatch.setattr(kind, "stored", lambda self, texts, i: (None, None))
    cache = TextCache("nowhere")
    if issubclass(kind, OnPolicyDataModule):
        options |= {"traces": Source(), "prompts_per_epoch": TEXTS}
    batching = Batching(batch_size=4, micro_batch_size=2)
    data = kind(prompts=None, cache=cache, decoding=Decoding(), batching=batching, **options)
    return list(data.train_dataloader())


def same(steps, others) -> bool:
    def values(steps):
        return [[list(vars(micro).values()) for micro in step] for step in steps]

    def equal(a, b):
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b

    return equal(values(steps), values(others))


def test_a_share_of_one_is_on_policy_and_of_zero_is_sft(monkeypatch):
    own, random = loader(OnPolicyDataModule, monkeypatch), loader(SFTDataModule, monkeypatch, num_anchors=5)
    assert same(loader(MixedDataModule, monkeypatch, own_share=1.0), own)
    assert same(loader(MixedDataModule, monkeypatch, own_share=0.0, num_anchors=5), random)
    assert not same(own, random)


@pytest.mark.parametrize(("spent", "drafted"), [(0.0, 3), (0.5, 2), (1.0, 1)])
def test_every_step_has_its_share_of_texts_which_moves_with_the_budget(monkeypatch, spent: float, drafted: int):
    steps = loader(MixedDataModule, monkeypatch, spent, own_share=0.75, own_share_end=0.25)
    assert len(steps) == 2
    for step in steps:
        assert sum(int((micro.drafter_step == 3).sum()) for micro in step) == drafted
        assert sum(len(micro.tokens) for micro in step) == 4
        assert all(len(micro.drafter_step.unique()) == 1 for micro in step)  # each of one kind
    assert len({int(t[0]) for step in steps for micro in step for t in micro.tokens}) == TEXTS


@pytest.mark.parametrize("share", [{"own_share": 1.5}, {"own_share_end": -0.1}])
def test_a_share_outside_0_and_1_is_refused(monkeypatch, share):
    with pytest.raises(DraftError, match="must be a number of at least 0 and at most 1"):
        loader(MixedDataModule, monkeypatch, **share)


def test_each_term_has_one_denominator_and_each_kind_its_share_of_texts():
    """Two texts of three have drafted blocks; they come in two micro-batches."""
    terms = Terms(DraftOPD(accepted=1.0, rejected=3.0), CrossEntropy(decay=None))
    parts = [
        {"own": 1.0, "own/accepted": 4.0, "own/rejected": 0.0},
        {"own": 1.0, "own/accepted": 6.0, "own/rejected": 5.0},
        {"random": 1.0, "random/cross_entropy": 20.0},
    ]
    totals = terms.sum([{name: torch.tensor(value) for name, value in part.items()} for part in parts])
    found = {name: value.item() for name, value in terms.coefficients(totals).items()}
    expected = {"own/accepted": 2 / 3 / 4 / 10, "own/rejected": 2 / 3 * 3 / 4 / 5, "random/cross_entropy": 1 / 3 / 20}
    assert found == pytest.approx(expected)
    assert terms.log(totals, totals)["own_share"].item() == pytest.approx(2 / 3)
    alone = terms.sum([{"random": torch.tensor(2.0), "random/cross_entropy": torch.tensor(8.0)}])
    assert [value.item() for value in terms.coefficients(alone).values()] == pytest.approx([0, 0, 1 / 8])


def test_a_random_objective_without_mixed_data_is_refused(command, capsys):
    assert command("experiment=smoke/sft", "objective@random_objective=d_pace", "logger=none") == 2
    assert "data=mixed" in capsys.readouterr().err


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(outputs(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pure", "mixed"),
    [
        ("smoke/draft_opd", "data=mixed data.own_share=1"),
        ("smoke/redraft objective=reached_soft", "data=mixed data.own_share=1 objective@random_objective=d_pace"),
        ("smoke/sft", "data=mixed data.own_share=0 traces=redrafts data.prompts_per_epoch=16"),
        ("smoke/sft objective=forward_kl", "data=mixed data.own_share=0 traces=redrafts data.prompts_per_epoch=16"),
    ],
)
def test_runs_at_the_ends_of_the_share_have_the_weights_of_the_pure_ones(command, tmp_path, pure: str, mixed: str):
    start = trained(tmp_path, "budget.epochs=2")
    words = [f"experiment={pure.split()[0]}", *pure.split()[1:], "budget.epochs=2", f"init_from={start}", *UNTIMED]
    assert command(*words) == 0
    expected = weights(tmp_path)
    assert command(*words, *mixed.split()) == 0
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["draft_opd", "reached"])
def test_hidden_states_for_the_random_side_change_nothing_on_the_own_side(command, tmp_path, objective: str):
    """Stored texts carry hidden states for one objective; after a rejection they are not the target's opinion."""
    words = (f"experiment=smoke/redraft objective={objective}", "data=mixed", "data.own_share=1", "budget.epochs=2")
    words = (*words[0].split(), *words[1:], "texts.features_dtype=float32", *UNTIMED)
    found = []
    for more in ([], ["objective@random_objective=forward_kl"]):
        assert command(*words, *more) == 0
        found.append(weights(tmp_path))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-6, rtol=1e-5)

"""Benchmarks run from their first line to their last on the tiny pair; nothing here looks at seconds."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import (
    commits,
    decode,
    growth,
    identity,
    launches,
    loss_memory,
    objective_cost,
    plan,
    redraft,
    train,
    train_speculators,
    train_step,
)
from draftopd.console import quiet
from draftopd.drafters.dflash import DFlash
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import Rollout
from pair import PROMPTS


@pytest.mark.slow
def test_decode_writes_results_a_picture_and_a_profile(command, tmp_path: Path, capsys):
    assert command("experiment=smoke/sft", "budget.epochs=2", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    output = tmp_path / "results" / "decode.json"
    words = ["--rounds", "2", "--prompts", "3", "--tokens", "12", "--repeats", "1", "--profile"]
    decode.main([str(checkpoint), *words, "--output", str(output)])

    results = json.loads(output.read_text())
    assert {"commit", "machine", "versions", "settings", "notes", "rounds", "summary"} == results.keys()
    assert {"processor", "cores", "threads"} <= results["machine"].keys()
    assert results["settings"]["draft_vocab_size"] == 64
    first, second = results["rounds"]
    assert first["order"] != second["order"]
    assert set(first["order"]) == set(second["order"]) == set(first["systems"])
    for done in results["rounds"]:
        assert not any(done["differing_texts"].values())
        assert {system["tokens"] for system in done["systems"].values()} == {done["systems"]["plain"]["tokens"]}
        model, costs = done["decode_speedup"], done["decode_speedup"]["costs"]
        tokens = 1 + sum(model["accept_at"])  # of a step, whose costs are those of block size 4
        assert model["predicted"] == pytest.approx(
            tokens * costs["verify"]["1"] / (costs["verify"]["4"] + costs["draft"]["4"])
        )
        assert done["ratios"]["measured_vs_model"] == pytest.approx(model["measured"] / model["predicted"])
    summary = results["summary"]
    assert summary["rounds"] == 2
    assert summary["differing_texts"] == 0
    lengths = summary["acceptance_length"]
    assert lengths["transformers_dflash"] == pytest.approx(lengths["ours_batch1_full_head"])
    assert lengths["ours_batch16"] == pytest.approx(lengths["ours_batch1"])

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == set(decode.PRINTED)
    assert last["batch8_vs_batch1"] == pytest.approx(summary["ratios"]["batch8_vs_batch1"]["median"], abs=1e-3)
    assert output.with_suffix(".png").stat().st_size > 10_000
    profile = output.with_suffix(".profile.txt").read_text()
    assert profile.count("Self CPU %") == len(decode.PROFILED)


@pytest.mark.slow
def test_commits_times_an_earlier_commit_beside_this_tree(command, tmp_path: Path):
    if not (commits.ROOT / ".git").exists():
        pytest.skip("not a git clone: there is no earlier commit")
    assert command("experiment=smoke/sft", "budget.epochs=2", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    output = tmp_path / "commits.json"
    sizes = ["--rounds", "2", "--prompts", "3", "--tokens", "12", "--output", str(output)]
    commits.main(["HEAD", str(checkpoint), *sizes])
    results = json.loads(output.read_text())
    assert [list(turn) for turn in results["rounds"]] == [["old", "new"], ["new", "old"]]
    assert all(side["equal"] for turn in results["rounds"] for side in turn.values())
    assert set(results["ratios"]) == {"plain", "batch1", "batch8", "sft_step", "opd_step"}


def test_decode_counts_texts_that_are_not_the_plain_ones():
    assert decode.differing([[1, 2], [1, 3], [1]], [[1, 2], [1, 2], [1, 2]]) == [1, 2]


@pytest.mark.slow
def test_decode_ends_with_an_error_where_a_text_differs(command, tmp_path: Path, monkeypatch):
    assert command("experiment=smoke/sft", "budget.epochs=1", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    monkeypatch.setattr(decode, "differing", lambda texts, plain: [0])
    words = ["--rounds", "1", "--prompts", "2", "--tokens", "4", "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match=r"\d+ texts are not the plain greedy text"):
        decode.main([str(checkpoint), *words])


TINY = [
    *["--prompts", "4", "--tokens", "12", "--rounds", "2", "--redraft-rounds", "2", "--micro-batch-size", "3"],
    *["--steps", "1", "--step-texts", "3", "--identity", "4", "--epoch-texts", "8", "--epoch-rounds", "1"],
    *["--loss-rows", "256", "--loss-vocabulary", "2000", "--loss-chunk-rows", "64"],
    *["--growth-lengths", "--growth-texts", "2", "--growth-text-length", "64", "--growth-blocks", "4"],
]


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "processes"), [("sft", ["loss_memory", "growth"]), ("eagle3_sft", [])])
def test_training_is_measured_part_by_part(command, tmp_path: Path, capsys, drafter: str, processes: list[str]):
    """Parts that start a process for every figure only once."""
    assert command(f"experiment=smoke/{drafter}", "budget.epochs=2", "test.speedup_prompts=0", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    output = tmp_path / "results" / "train.json"
    parts = ["redraft", "identity", "step", *processes]
    train.main([str(checkpoint), "--parts", *parts, *TINY, "--output", str(output)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    train.main([str(checkpoint), "--parts", "epoch", *TINY, "--output", str(output)])  # the other parts stay
    last |= json.loads(capsys.readouterr().out.splitlines()[-1])

    results = json.loads(output.read_text())
    parts.insert(3, "epoch")
    assert {"commit", "machine", "versions", "settings", "wanted", "parts", "summary"} == results.keys()
    assert list(results["parts"]) == parts
    redrafted = results["parts"]["redraft"]
    first, second = redrafted["rounds"]
    assert first["order"] != second["order"]
    assert set(first["order"]) == set(second["order"]) == set(first["systems"])
    for done in redrafted["rounds"]:
        assert not any(done["differing_traces"].values())
        for name, (slow, fast) in redraft.RATIOS.items():
            seconds = [done["systems"][system]["seconds"] for system in (slow, fast)]
            assert done["ratios"][name] == pytest.approx(seconds[0] / seconds[1])
    tokens = redrafted["summary"]["target_tokens"]
    assert tokens["redraft"] == 0
    assert tokens["redraft_replay"] > 0 == tokens["redraft"]  # rollouts read a shared opening once, a replay each time

    assert results["parts"]["identity"]["equal"] == 4
    step = results["parts"]["step"]
    assert step["batch"]["opd"]["blocks"] == step["batch"]["sft"]["blocks"]
    missing = {"sft_step_vs_speculators"} | (set() if processes else {"loss_memory_vs_unchunked"})
    assert last.keys() > train.WANTED.keys() - missing
    if processes:
        (name,) = results["settings"]["loss_objectives"]
        assert results["parts"]["loss_memory"]["summary"]["ratios"].keys() == {name}
        points = results["parts"]["growth"]["points"]
        assert [(p["kind"], p["length"], p["texts"]) for p in points] == [(kind, 64, 2) for kind in growth.KINDS]
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_training_ends_with_an_error_where_a_trace_differs(command, tmp_path: Path, monkeypatch):
    assert command("experiment=smoke/sft", "budget.epochs=1", "test.speedup_prompts=0", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    again = redraft.redraft

    def older(target, drafter, texts, *rest, **options):
        return again(target, drafter, [*texts[1:], texts[0]], *rest, **options)

    monkeypatch.setattr(redraft, "redraft", older)
    words = ["--parts", "redraft", "--redraft-rounds", "1", "--prompts", "2", "--tokens", "4"]
    with pytest.raises(SystemExit, match="4 traces are not those of the rollout"):
        train.main([str(checkpoint), *words, "--output", str(tmp_path / "out.json")])


@pytest.mark.slow
def test_traces_are_compared_in_all_fields(target: Target, eager_drafter: DFlash, monkeypatch: pytest.MonkeyPatch):
    found = identity.identity(target, eager_drafter, PROMPTS, 12, batch_size=2)
    assert found["equal"] == len(PROMPTS)
    assert found["acceptance_length"] > 1
    monkeypatch.setattr(identity, "redraft", lambda *args: [changed(r) for r in redraft.redraft(*args)])
    (first, *_) = identity.identity(target, eager_drafter, PROMPTS, 12, batch_size=2)["differing"]
    assert first["fields"] == ["drafts"]
    assert (first["prompt"], first["slot"]) == (0, 2)
    assert first["logit_gap"] >= 0


def changed(result: Rollout) -> Rollout:
    drafts = result.trace.drafts.clone()
    drafts[0, 1] += 1
    return replace(result, trace=replace(result.trace, drafts=drafts))


def test_training_steps_are_those_of_the_module(target: Target, eager_drafter: DFlash):
    """As many blocks in both kinds of step; a replay reads texts and tails and nothing twice."""
    quiet()
    work = train_step.prepare(target, eager_drafter, PROMPTS[:3], 12)
    before = eager_drafter.fc.weight.detach().clone()
    step = train_step.module(target, eager_drafter, "draft_opd")
    seconds = train_step.run_steps(step, [work.opd(kept=False), work.opd()])
    assert len(seconds) == 2
    assert min(seconds) > 0
    replayed = step.ledger.tokens["replay"]
    assert torch.equal(eager_drafter.fc.weight, before)
    assert torch.isclose(step.loss(work.opd()), step.loss(work.opd(kept=False)), atol=1e-5)

    counts = [train_step.counted(batch) for batch in (work.sft(), work.opd())]
    assert counts[0]["blocks"] == counts[1]["blocks"] == sum(len(r.trace.anchors) for r in work.rolled)
    tokens = train_step.replay_tokens(target, eager_drafter, work.opd(kept=False))
    assert tokens["text"] + tokens["tails"] == replayed
    assert tokens["real_vs_text_and_tails"] == 1.0
    assert tokens["read"] >= tokens["text"] + tokens["tails"]


def test_speculators_gets_the_same_blocks(target: Target, eager_drafter: DFlash, tmp_path: Path):
    """Read as its step reads them: tokens, labels and target's logits of every supervised row."""
    work = train_step.prepare(target, eager_drafter, PROMPTS[:3], 12)
    train_speculators.hand_over(tmp_path / "drafter", target, eager_drafter, work, 1)
    given = load_file(tmp_path / "drafter" / "inputs.safetensors")
    slots = given["anchors"][:, None] + torch.arange(eager_drafter.block_size)
    assert int(slots.max()) < len(given["input_ids"])
    supervised = given["loss_mask"][slots][:, 1:].bool()
    batch = work.sft(hidden=True)
    rows = flatten(batch, None)
    assert torch.equal(given["input_ids"][slots][:, 1:][supervised], rows.text)
    assert torch.equal(
        given["document_ids"][slots[:, :1]].expand(-1, 4)[supervised], given["document_ids"][slots][:, 1:][supervised]
    )
    places = torch.cat(work.anchors)
    assert torch.equal(given["position_ids"][given["anchors"]], places)
    hidden = target.body.norm(given["verifier_last_hidden_states"][slots[:, :-1]][supervised])
    assert batch.target_hidden is not None
    torch.testing.assert_close(hidden, batch.target_hidden[batch.valid])


def test_the_loss_in_chunks_has_the_same_gradient():
    chunked, whole = (loss_memory.backward("draft_opd", 256, 300, size) for size in (64, 256))
    found = loss_memory.compared(chunked, {**whole, "peak_bytes": max(1, whole["peak_bytes"])})
    assert found["largest_gradient_difference"] < 1e-5
    assert chunked["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_the_cost_of_objectives_is_taken_from_the_same_blocks(target: Target, eager_drafter: DFlash):
    batch = objective_cost.batch_of(target, eager_drafter, texts=2, length=24, blocks=3)
    assert batch.valid.all()
    replayed = target.replay(replace(batch, features=None, target_hidden=None), eager_drafter.layer_ids)
    torch.testing.assert_close(batch.features, replayed.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.target_hidden, replayed.target_hidden, rtol=1e-4, atol=1e-4)
    found = objective_cost.measure(target, copy.deepcopy(eager_drafter), batch, ["forward_kl", "draft_opd"], rounds=2)
    assert found["batch"]["blocks"] == 6
    assert {"forward_kl", "draft_opd"} == found["processor_ratios"].keys() == found["clock_ratios"].keys()
    assert found["clock_seconds"]["cross_entropy"]["median"] > 0


@pytest.mark.slow
def test_inductors_loops_are_counted():
    fused = torch.compile(lambda x: (2 * x + 1).relu(), backend="inductor")
    fused(torch.ones(8))
    with launches.Loops() as loops:
        fused(torch.ones(8))
    assert loops.count == 1


def test_the_plan_in_the_docs_is_what_the_script_prints():
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    commands = re.findall(r"`python -m benchmarks.plan (experiment=[^`]*)`", text)
    assert len(commands) == 2
    for words in commands:
        assert plan.plan(words.split()) in text, words
    (whole,) = re.findall(r"`python -m benchmarks.plan --costs (experiment=[^`]*)`", text)
    assert plan.costs_table(whole.split()) in text


def test_the_plan_counts_the_micro_batch_that_is_copied_ahead():
    """Two of what the data bring, if a step has two; what the step computes itself is there once."""

    def states(words: str) -> float:
        config, target, drafter = plan.parts_of(words.split())
        return plan.memory(config, target, drafter, gpus=1, sharded=False)["states"]

    opd, sft = "experiment=qwen3_4b_opd", "experiment=qwen3_4b_sft"
    alone = states(f"{opd} data.batching.batch_size=1")
    assert states(opd) == states(f"{opd} data.batching.batch_size=2") == 2 * alone
    assert states(f"{sft} texts.features_dtype=bfloat16") == 2 * states(sft)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["qwen3_4b_sft", "qwen3_4b_opd", "qwen3_8b_sft", "qwen3_8b_opd"])
def test_shipped_qwen3_experiments_are_planned_to_fit_80_gb_with_a_tenth_to_spare(experiment: str):
    setups = list(plan.estimates([f"experiment={experiment}"]))
    assert {gpus for _, gpus, _, _ in setups} == {1, 2, 8}
    assert max(plan.peak(parts) for _, _, parts, _ in setups) < 72 * plan.GB

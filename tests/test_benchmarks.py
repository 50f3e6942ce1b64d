"""Benchmarks run from their first line to their last on the tiny pair; nothing here looks at seconds."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import decode, plan, redraft


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
    assert profile.count("Self CPU %") == 2


def test_decode_counts_texts_that_are_not_the_plain_ones():
    assert decode.differing([[1, 2], [1, 3], [1]], [[1, 2], [1, 2], [1, 2]]) == [1, 2]


@pytest.mark.slow
def test_decode_ends_with_an_error_where_a_text_differs(command, tmp_path: Path, monkeypatch):
    assert command("experiment=smoke/sft", "budget.epochs=1", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    monkeypatch.setattr(decode, "differing", lambda texts, plain: [0])
    words = ["--rounds", "1", "--prompts", "2", "--tokens", "4", "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match="9 texts are not the plain greedy text"):
        decode.main([str(checkpoint), *words])


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["sft", "eagle3_sft"])
def test_redraft_compares_equal_traces_and_says_what_they_cost(command, tmp_path: Path, capsys, drafter: str):
    assert command(f"experiment=smoke/{drafter}", "budget.epochs=2", "test.speedup_prompts=0", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    output = tmp_path / "results" / "redraft.json"
    words = ["--rounds", "2", "--prompts", "4", "--tokens", "12", "--micro-batch-size", "3", "--output", str(output)]
    redraft.main([str(checkpoint), *words])

    results = json.loads(output.read_text())
    assert {"commit", "machine", "versions", "settings", "notes", "rounds", "summary"} == results.keys()
    first, second = results["rounds"]
    assert first["order"] != second["order"]
    assert set(first["order"]) == set(second["order"]) == set(first["systems"])
    for done in results["rounds"]:
        assert not any(done["differing_traces"].values())
        for name, (slow, fast) in redraft.RATIOS.items():
            seconds = [done["systems"][system]["seconds"] for system in (slow, fast)]
            assert done["ratios"][name] == pytest.approx(seconds[0] / seconds[1])
    tokens = results["summary"]["target_tokens"]
    assert tokens["redraft"] == 0
    assert 0 < tokens["redraft_replay"] <= tokens["rollout_b1"]

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"redraft_vs_rollout_b1", "redraft_vs_rollout_b8"} <= last.keys() == redraft.RATIOS.keys()
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_redraft_ends_with_an_error_where_a_trace_differs(command, tmp_path: Path, monkeypatch):
    assert command("experiment=smoke/sft", "budget.epochs=1", "test.speedup_prompts=0", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    again = redraft.redraft

    def older(target, drafter, texts, *rest, **options):
        return again(target, drafter, [*texts[1:], texts[0]], *rest, **options)

    monkeypatch.setattr(redraft, "redraft", older)
    words = ["--rounds", "1", "--prompts", "2", "--tokens", "4", "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match="4 traces are not those of the rollout"):
        redraft.main([str(checkpoint), *words])


def test_the_plan_in_the_docs_is_what_the_script_prints():
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    commands = re.findall(r"`python -m benchmarks.plan (experiment=[^`]*)`", text)
    assert len(commands) == 2
    for words in commands:
        assert plan.plan(words.split()) in text, words


@pytest.mark.parametrize("experiment", ["qwen3_4b_sft", "qwen3_4b_opd", "qwen3_8b_sft", "qwen3_8b_opd"])
def test_shipped_qwen3_experiments_are_planned_to_fit_80_gb_with_a_tenth_to_spare(experiment: str):
    setups = list(plan.estimates([f"experiment={experiment}"]))
    assert {gpus for _, gpus, _, _ in setups} == {1, 2, 8}
    assert max(plan.peak(parts) for _, _, parts, _ in setups) < 72 * plan.GB

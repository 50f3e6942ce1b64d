"""The evaluation command on drafters of the smoke experiment."""

import json
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from draftopd import evaluate
from draftopd.checkpoints.native import restore
from draftopd.checkpoints.published import write
from draftopd.data.prompts import Prompt, ask
from draftopd.decoding.settings import Decoding
from draftopd.evaluation.run import answer
from draftopd.target.model import Target
from pair import PROMPTS, trained
from prompt_sources import questions
from prompt_sources import write as write_rows


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `python -m draftopd.evaluate ...` in an empty folder: exit code, results and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def run(*words: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate", "hydra.run.dir=out", *words])
        capsys.readouterr()
        code = 0
        try:
            evaluate.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        file = tmp_path / "out" / "results.json"
        printed = capsys.readouterr()
        return code, json.loads(file.read_text()) if file.exists() else {}, printed.out + printed.err

    return run


def test_one_drafter(run, checkpoint: Path, tmp_path: Path):
    code, results, printed = run(f"checkpoint={checkpoint}", "speed.prompts=2", "speed.cut=true")
    assert code == 0, printed
    cuts = results["results"][0]["cuts"]
    assert [(row["batch_size"], row["cut"]) for row in cuts] == [(1, False), (1, True), (8, False), (8, True)]
    assert all(2 <= row["verified_tokens"] <= 4 for row in cuts)
    assert "verified tokens" in printed
    scores = results["results"][0]["scores"]
    for name in ("tiny", "mean"):
        low, middle, high = (scores[name]["acceptance_length"][key] for key in ("low", "mean", "high"))
        assert 1 <= low <= middle <= high <= 4
        assert scores[name]["speedup"]["mean"] > 0
    assert "p_value" not in scores["mean"]["acceptance_length"]
    for name in ("tiny", "mean"):
        assert sum(scores[name][f"accepted/{k}"]["mean"] for k in range(4)) == pytest.approx(1)
    assert [row["block_size"] for row in results["results"][0]["block_sizes"]] == [2, 3, 4]
    assert "best block size on this machine" in printed
    for picture in ("acceptance_by_position", "block_sizes_fit"):
        assert (tmp_path / "out" / f"{picture}.png").stat().st_size > 5000


@pytest.mark.slow
def test_two_drafters_are_paired_over_prompts_and_logged(run, checkpoint: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = trained(tmp_path / "other", "budget.epochs=1")
    words = ["speed.prompts=0", "decoding.temperature=0.5", "decoding.rule=rejection", "decoding.max_new_tokens=9"]
    code, results, printed = run(f"checkpoint={checkpoint}", f"against={other}", *words)
    assert code == 0, printed
    difference = results["differences"][0]["scores"]["mean"]["acceptance_length"]
    both = [r["scores"]["mean"]["acceptance_length"]["mean"] for r in results["results"]]
    assert difference["mean"] == pytest.approx(both[1] - both[0])
    assert [r["checkpoint"] for r in results["results"]] == [str(other), str(checkpoint)]
    assert results["decoding"]["temperature"] == 0.5
    assert results["differences"][0]["scores"]["mean"]["acceptance_length"]["count"] == 4
    assert "paired over prompts" in printed
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["test/acceptance_length"] == pytest.approx(both[1])
    assert {"results.json", "versions.json", "acceptance_by_position.png"} <= {
        f.path for f in client.list_artifacts(logged.info.run_id)
    }


def test_several_drafters_in_one_run_are_held_against_one(run, checkpoint: Path):
    words = ["speed.prompts=0", "logger=none", "limit=2"]
    code, results, printed = run(f"checkpoint={checkpoint},{checkpoint}", f"against={checkpoint}", *words)
    assert code == 0, printed
    names = [result["name"] for result in results["results"]]
    assert names == ["fit (out)", "fit (out)-2", "fit (out)-3"]
    assert [(d["of"], d["less"]) for d in results["differences"]] == [(name, names[0]) for name in names[1:]]
    for of_pair in results["differences"]:
        difference = of_pair["scores"]["mean"]["acceptance_length"]
        assert (difference["mean"], difference["low"], difference["high"], difference["p_value"]) == (0, 0, 0, 1)
    assert [len(result["answers"]) for result in results["results"]] == [2, 2, 2]


@pytest.mark.parametrize(("words", "number"), [([], 8), (["split=test"], 2)])
def test_a_file_is_measured_as_a_whole(run, checkpoint: Path, tmp_path: Path, words: list[str], number: int):
    file = write_rows(tmp_path / "mine.jsonl", questions(8))
    given = ["speed.prompts=0", "logger=none", "decoding.max_new_tokens=3", "prompts=jsonl", f"prompts.path={file}"]
    code, results, printed = run(f"checkpoint={checkpoint}", *given, *words)
    assert code == 0, printed
    assert len(results["results"][0]["answers"]) == number


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=none.ckpt"], "none.ckpt"),
        ([], "checkpoint must be given"),
        (["checkpoint={first}", "max_prompt_length=2"], "max_prompt_length=2"),
        (["checkpoint={first}", "decoding.rule=luck"], "decoding.rule=luck"),
        (["checkpoint={first}", "speed.block_sizes=[1]"], "block_sizes"),
        (["checkpoint={first}", "split=tests"], "tests"),
        (["checkpoint={first}", "device=gpu"], "device=gpu"),
        (["checkpoint={first}", "decoding.max_new_tokens=1"], "speed.prompts=0"),
    ],
)
def test_mistakes_end_in_one_line(run, checkpoint: Path, words: list[str], message: str):
    code, _, printed = run("logger=none", *(word.format(first=checkpoint) for word in words))
    assert code == 2
    assert message in printed
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.slow
def test_a_published_folder_scores_like_the_checkpoint_it_came_from(run, checkpoint: Path, tmp_path: Path):
    folder, drafter = str(tmp_path / "published"), restore(checkpoint)
    write(drafter.drafter, folder, "zlab", target=drafter.target)
    words = ["speed.prompts=0", "logger=none", "decoding.max_new_tokens=24"]
    _, wanted, _ = run(f"checkpoint={checkpoint}", *words)
    code, got, printed = run(f"checkpoint={folder}", "target=tiny", "prompts=tiny", *words)
    assert code == 0, printed
    scores = [r["results"][0]["scores"]["mean"]["acceptance_length"]["mean"] for r in (wanted, got)]
    assert scores[0] == scores[1]
    code, _, printed = run(f"checkpoint={folder}", "prompts=tiny", *words)
    assert code == 2
    assert "target=" in printed


@pytest.mark.slow
def test_prompts_are_timed_in_every_set(run, checkpoint: Path):
    two = "{a: {_target_: %s, test: 3}, b: {_target_: %s, test: 2}}" % (2 * ("draftopd.data.sources.TinyPrompts",))
    union = [f"+prompts.{k}={v}" for k, v in (("_target_", "draftopd.data.benchmarks.UnionPrompts"), ("sources", two))]
    words = [*union, "+prompts._convert_=all", "logger=none", "speed.prompts=2", "speed.block_sizes=[]"]
    code, results, printed = run(f"checkpoint={checkpoint}", *words, "decoding.max_new_tokens=6")
    assert code == 0, printed
    scores = results["results"][0]["scores"]
    assert [scores[name]["speedup"]["count"] for name in ("a", "b", "mean")] == [2, 2, 4]
    assert [scores[name]["accepted/0"]["count"] for name in ("a", "b", "mean")] == [3, 2, 5]


@pytest.mark.slow
def test_a_sweep_of_checkpoints_ends_with_their_comparison(run, checkpoint: Path, tmp_path: Path):
    words = ["speed.prompts=0", "logger=none", "limit=2", "decoding.max_new_tokens=6", "hydra.sweep.dir=out"]
    other = tmp_path / "other.ckpt"
    other.write_bytes(checkpoint.read_bytes())
    code, _, printed = run(f"checkpoint={checkpoint},{other}", *words, "--multirun")
    assert code == 0, printed
    found = [json.loads((tmp_path / "out" / job / "results.json").read_text()) for job in "01"]
    assert [r["results"][0]["checkpoint"] for r in found] == [str(checkpoint), str(other)]
    assert found[0]["results"][0]["answers"] == found[1]["results"][0]["answers"]
    assert "paired over prompts" in " ".join(printed.split())  # long names break its lines
    assert (tmp_path / "out" / "comparison.html").exists()


@pytest.mark.slow
def test_a_run_id_names_its_checkpoint(run, command, tmp_path: Path):
    assert command("experiment=smoke/sft", "budget.epochs=1", "name=first", "test.speedup_prompts=0") == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (trained,) = client.search_runs([client.get_experiment_by_name("draftopd").experiment_id])
    code, results, printed = run(f"checkpoint={trained.info.run_id}", "speed.prompts=0")
    assert code == 0, printed
    length = results["results"][0]["scores"]["mean"]["acceptance_length"]["mean"]
    assert length == pytest.approx(trained.data.metrics["test/acceptance_length"])


def test_later_turns_that_are_too_long_are_counted(target: Target, eager_drafter, caplog):
    asked = [(Prompt(f"x/{i}", "x", ask("one"), followups=("two", "three")), PROMPTS[i]) for i in range(3)]
    ids_of = lambda prompt: None if prompt.id == "x/1/turn2" else PROMPTS[4]  # noqa: E731
    answers = answer(target, eager_drafter, asked, Decoding(max_new_tokens=4), ids_of, "testing")
    assert [len(a.responses) for a in answers] == [3, 1, 3]
    assert caplog.messages == ["1 of 3 later turns left out: longer than max_prompt_length"]
    first = answer(target, eager_drafter, asked, Decoding(max_new_tokens=4), None, "testing")
    assert [len(a.responses) for a in first] == [1, 1, 1]

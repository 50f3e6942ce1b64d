"""The command, from its words to its files; each in an empty folder."""

import json
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from mlflow import MlflowClient

from draftopd import evaluate
from draftopd.evaluation.curves import AXES
from runs import FIRST, UNTIMED, called, outputs, runs


def said_and_kept(printed: str, folder: Path) -> None:
    """Before, while and after it runs: a plan, lines in the output and in the log, a summary."""
    sft, first, last = (printed.index(words) for words in ("Plan: ", "sft (1 of 2), epoch 5 of 40", "Next with "))
    assert sft < first < last
    lines = re.findall(r"^\d\d:\d\d:\d\d (.*)$", printed, re.MULTILINE)
    assert lines[0].startswith("smoke: python -m draftopd.fit ")
    assert sum("τ " in line for line in lines) == 10  # a line for every validation
    assert sum("draft_opd (2 of 2), epoch 2 of 2, step 2, rollouts: 16" in line for line in lines) == 1
    logged = (folder / "fit.log").read_text()
    assert all(line in logged for line in lines)
    assert not [line for line in logged.splitlines() if "draftopd.lines" not in line]


def test_smoke_leaves_a_table_a_picture_and_comparable_runs(command, tmp_path, capsys):
    assert command("experiment=smoke") == 0
    folder = outputs(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert [s["name"] for s in results["results"]] == ["sft", "draft_opd"]
    assert (folder / "acceptance_length.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "draft_opd - sft" in printed
    said_and_kept(printed, folder)
    text = (folder / "summary.md").read_text()
    planned = re.search(r"^sft +20 +80 +([\d.]+) G ", printed, re.MULTILINE)
    assert planned is not None
    assert float(planned[1]) == pytest.approx(results["results"][0]["training"]["flops"] / 1e9, rel=0.2)

    (parent,) = runs(tmp_path, "smoke")
    assert {"git_commit", "target_fingerprint", "command", "machine"} <= parent.data.tags.keys()
    assert parent.data.tags["mlflow.note.content"] == text
    assert all(f"{result['name']} {result['run_id']}" in text for result in results["results"])
    page = f"http://127.0.0.1:5000/#/experiments/1/runs/{parent.info.run_id}?workflowType=machine_learning"
    assert f"{page} (after: python -m draftopd.ui)" in text
    assert {"acceptance/tau", "acceptance/tau_delta", "cost/pflops"} <= parent.data.metrics.keys()
    children = runs(tmp_path, **{"mlflow.parentRunId": parent.info.run_id})
    assert all("| draft_opd " in c.data.tags["mlflow.note.content"] for c in children if called(c) != "sft")
    assert {called(c) for c in children} == {"sft", "draft_opd"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for child in children:
        assert child.info.status == "FINISHED"
        assert {"git_commit", "target_fingerprint", "command", "checkpoint"} <= child.data.tags.keys()
        names = child.data.metrics.keys()
        wanted = {"val/acceptance_length", "test/speedup", "val/loss", "train/loss", "test/acceptance_length"}
        assert wanted | {"val/tiny/accept_at/1", "test/acceptance_length_low"} <= names
        assert {"acceptance/tau", "acceptance/tau_val", "cost/pflops", "cost/speedup"} <= names
        assert child.data.tags["stage"] == called(child)
        assert child.data.metrics["acceptance/tau"] > 1.5  # readers see drafts accepted
        uses = {data.tags[0].value: data.dataset.name for data in child.inputs.dataset_inputs}
        assert uses == {
            use: f"TinyPrompts {s}" for use, s in (("training", "train"), ("validation", "val"), ("test", "test"))
        }
        (model,) = (client.get_logged_model(out.model_id) for out in child.outputs.model_outputs)
        assert model.params["checkpoint"] == child.data.tags["checkpoint"]
        assert any(name.startswith("system/") for name in names)
        artifacts = {a.path for a in client.list_artifacts(child.info.run_id)}
        assert {"config.yaml", "versions.json", "traces"} <= artifacts
        history = client.get_metric_history(child.info.run_id, "ledger/flops/train")
        assert len({point.step for point in history}) > 1  # as training goes
    (opd,) = [c for c in children if called(c) == "draft_opd"]
    assert {"train/accepted", "train/rejected", "train/staleness"} <= opd.data.metrics.keys()
    for phase in ("prefill", "draft", "verify", "decode"):
        assert opd.data.metrics[f"ledger/tokens_per_second/{phase}"] > 0
    for stage in results["results"]:
        spent = [[point[axis] for point in stage["training"]["curve"]] for axis in AXES]
        assert all(costs == sorted(costs) and costs[-1] > 0 for costs in spent[:1] + spent[2:])
    last = results["results"][1]["training"]["curve"][-1]
    assert opd.data.metrics["ledger/target_tokens"] == last["target_tokens"] > 0
    saved = client.download_artifacts(parent.info.run_id, "config.yaml")
    assert "${" not in Path(saved).read_text()
    assert "greedy; τ" in printed


def test_the_checkpoint_holds_the_drafter_and_never_the_target(checkpoint: Path):
    saved = torch.load(checkpoint, weights_only=True)
    assert all(name.startswith("drafter.") for name in saved["state_dict"])
    assert len(saved["target_fingerprint"]) == 16
    assert saved["config"]["drafter"]["block_size"] == 4
    assert not list(checkpoint.parents[2].rglob("mlflow.db"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(command, tmp_path):
    weights = []
    for seed in (0, 0, 1):
        assert command("experiment=smoke/sft", "budget.epochs=2", f"seed={seed}", "logger=none") == 0
        state = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(state["drafter.fc.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_an_mlflow_run_id_names_its_checkpoint(command, tmp_path):
    assert command("experiment=smoke/sft", "budget.epochs=1", "name=first") == 0
    (run,) = runs(tmp_path, "first")
    words = ("experiment=smoke/draft_opd", "budget.epochs=1", f"init_from={run.info.run_id}")
    assert command(*words) == 0


BAD = {
    "unknown experiment": (["experiment=nothing"], "nothing"),
    "unknown key": (["experiment=smoke/sft", "drafter.layers=3"], "layers"),
    "unknown choice": (["target=nothing"], "nothing"),
    "missing value": (["prompts=jsonl"], "prompts.path must be given"),
    "missing prompt file": (["experiment=smoke/sft", "prompts=jsonl", "prompts.path=none.jsonl"], "none.jsonl"),
    "malformed line": (["experiment=smoke/sft", "prompts=jsonl", "prompts.path=bad.jsonl"], "bad.jsonl:2"),
    "no prompts left": (["experiment=smoke/sft", "data.batching.max_prompt_length=2"], "no prompts left"),
    "missing target": (["experiment=smoke/sft", "target=hf", "target.path=./nowhere"], "no target at './nowhere'"),
    "block size 1": (["experiment=smoke/sft", "drafter.block_size=1"], "at least 2"),
    "missing checkpoint": (["experiment=smoke/sft", "init_from=none.ckpt"], "none.ckpt"),
    "not a checkpoint": (["experiment=smoke/sft", "init_from=bad.jsonl"], "not a checkpoint"),
    "resume from nothing": (["experiment=smoke/sft", "resume=none.ckpt"], "none.ckpt"),
    "resume with stages": (["experiment=smoke", "resume=bad.jsonl"], "stages of its own"),
    "no budget": (["experiment=smoke/sft", "budget.epochs=null"], "no budget"),
    "unknown type": (["experiment=smoke/sft", "texts.features_dtype=bf16"], "bf16"),
    "wrong option": (["experiment=smoke/sft", "prompts=reasoning_gym", "+prompts.words=3"], "words"),
    "key of an older version": (["experiment=smoke/draft_opd", "data.refresh=redraft"], "no setting data.refresh"),
    "option of another source": (
        ["experiment=smoke/draft_opd", "traces.rewrite_every=2"],
        "no setting traces.",
    ),
    "two processes": (["experiment=smoke/sft", "trainer.devices=2"], "trainer=ddp"),
    "cache is a file": (["experiment=smoke/sft", "texts.folder=bad.jsonl"], "cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(command, tmp_path, capsys, case):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": "c"}\n')
    words, expected = BAD[case]
    assert command(*words, "logger=none") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert expected in errors[0]
    assert not list(tmp_path.rglob("*.ckpt"))


SWEEPS = {
    "first choice": (["experiment=nothing,smoke/sft"], "nothing"),
    "another choice": (["experiment=smoke/sft", "seed=1,2", "target=tiny,nothing"], "nothing"),
    "unknown key": (["experiment=smoke/sft", "drafter.layers=range(1,3)"], "layers"),
    "glob": (["experiment=glob(smoke*)", "target=nothing"], "nothing"),
    "missing value": (["prompts=tiny,jsonl"], "prompts.path must be given"),
}


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
@pytest.mark.parametrize("case", SWEEPS)
def test_a_wrong_choice_of_a_sweep_is_one_clear_line(command, tmp_path, capsys, case, flag):
    words, expected = SWEEPS[case]
    assert command(*words, flag) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert expected in error
    assert not list(tmp_path.rglob("multirun.yaml"))


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["--info", "searchpath"]])
def test_hydras_own_flags_work(command, capsys, flags):
    """Without the required values, too."""
    assert command(*flags, main=evaluate.main) == 0
    assert "checkpoint" in (shown := capsys.readouterr().out) or "provider" in shown.lower()


def test_a_drafter_for_another_target_is_refused(command, checkpoint: Path, capsys):
    words = ("experiment=smoke/sft", f"init_from={checkpoint}", "logger=none")
    assert command(*words, "target.seed=1") == 2
    assert "works with its own target only" in capsys.readouterr().err
    assert command(*words, "drafter.num_layers=2") == 2
    assert "another shape" in capsys.readouterr().err


@pytest.mark.slow
def test_lightning_is_told_one_step_per_batch(command, tmp_path):
    """16 prompts in steps of 8, two epochs of on-policy data: four optimizer steps."""
    assert command("experiment=smoke/draft_opd", "budget.epochs=2", *UNTIMED) == 0
    checkpoint = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["pytorch-lightning_version"] == L.__version__


def final_weights(command, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    assert command(*words, "budget.epochs=2", *UNTIMED) == 0
    return torch.load(outputs(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


ONE_STEP = "data.batching.batch_size=16"


@pytest.mark.parametrize(
    ("experiment", "change"),
    [
        pytest.param("smoke/draft_opd", "data.batching.micro_batch_size=3", marks=pytest.mark.slow),
        pytest.param("smoke/draft_opd", "module.chunk_rows=7", marks=pytest.mark.slow),
        pytest.param("smoke/draft_opd", "data.decoding.batch_size=3", marks=pytest.mark.slow),
        pytest.param("smoke/draft_opd", "data.keep_gib=1e-5", marks=pytest.mark.slow),
        pytest.param("smoke/sft", "data.batching.micro_batch_size=3", marks=pytest.mark.slow),
        pytest.param("smoke/sft", "texts.features_dtype=null", marks=pytest.mark.slow),
        pytest.param("smoke/sft objective=d_pace", "data.batching.micro_batch_size=3", marks=pytest.mark.slow),
        pytest.param("smoke/draft_opd objective=expected_length", "module.chunk_rows=7", marks=pytest.mark.slow),
        pytest.param("smoke/eagle3_opd", "module.chunk_rows=7", marks=pytest.mark.slow),
        pytest.param("smoke/dspark_opd", "module.chunk_rows=7", marks=pytest.mark.slow),
        pytest.param("smoke/dflash2_opd", "module.chunk_rows=7", marks=pytest.mark.slow),
        pytest.param("smoke/eagle3_sft", "texts.features_dtype=null", marks=pytest.mark.slow),
        # one step a phase: they take the prompts in unlike orders
        pytest.param(f"smoke/draft_opd {ONE_STEP}", "traces=redrafts", marks=pytest.mark.slow),
        pytest.param(f"smoke/eagle3_opd {ONE_STEP}", "traces=redrafts", marks=pytest.mark.slow),
        pytest.param(f"smoke/dspark_opd {ONE_STEP}", "traces=redrafts", marks=pytest.mark.slow),
        pytest.param(f"smoke/dflash2_opd {ONE_STEP}", "traces=redrafts", marks=pytest.mark.slow),
        pytest.param(f"smoke/draft_opd {FIRST} {ONE_STEP}", "traces=redrafts", marks=pytest.mark.slow),
    ],
)
def test_what_may_change_speed_and_memory_does_not_change_results(command, tmp_path, experiment, change):
    """Micro-batches share one normalisation, chunks add up exactly, features kept equal features recomputed.

    And texts that are drafted along again give the traces of rollouts.
    """
    same = ["texts.features_dtype=float32", "data.batching.micro_batch_size=8"]
    words = f"experiment={experiment}".split()
    base = final_weights(command, tmp_path, *words, *same)
    name = change.split("=")[0]
    rest = [word for word in same if not word.startswith(name)]
    changed = final_weights(command, tmp_path, *words, *rest, change)
    for key, value in base.items():
        torch.testing.assert_close(changed[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["qwen3", "gemma3_text"])
def test_other_families_train_by_the_same_command(command, target):
    words = (f"target.architecture.model_type={target}", "+target.architecture.head_dim=8")
    assert command("experiment=smoke/draft_opd", *words, "budget.epochs=1", "logger=none") == 0

"""Stages of a run: grids, parts that are run one by one, and what a second call of the same command finds done."""

import json
import signal
from pathlib import Path

import pytest
import torch

from draftopd.training.module import DraftModule
from draftopd.training.on_policy import OnPolicyDataModule
from runs import UNTIMED

SMOKE = ("experiment=smoke", "budget.epochs=1", *UNTIMED, "hydra.run.dir=study")
GRID = "+stages.sft.grid={seed: [0, 1]}"
SET = "+stages.sft.set={drafter.num_layers: 2}"


def names(folder: Path) -> list[str]:
    return [result["name"] for result in json.loads((folder / "results.json").read_text())["results"]]


@pytest.mark.slow
def test_a_grid_runs_a_stage_once_for_each_value_or_for_one_of_them(command, tmp_path):
    end = ("stages.draft_opd.init_from=sft-seed1", "+stages.draft_opd.set={drafter.num_layers: 2}")
    assert command(*SMOKE, GRID, SET, *end, "only=[sft-seed0]") == 0
    assert names(tmp_path / "study") == ["sft-seed0"]
    assert command(*SMOKE, GRID, SET, *end) == 0
    assert names(tmp_path / "study") == ["sft-seed0", "sft-seed1", "draft_opd"]
    seeds = [(tmp_path / "study" / name / "recipe.yaml").read_text() for name in ("sft-seed0", "sft-seed1")]
    assert ["\nseed: 0\n" in seeds[0], "\nseed: 1\n" in seeds[1]] == [True, True]
    last = json.loads((tmp_path / "study" / "results.json").read_text())["results"][-1]
    assert last["training"]["start"] == "sft-seed1"
    assert all("num_layers: 2\n" in seed for seed in seeds)


@pytest.mark.slow
def test_a_grid_that_starts_from_a_grid_starts_each_member_at_its_own_point(command, capsys, tmp_path):
    end = ("+stages.draft_opd.grid={seed: [1, 0]}",)
    assert command(*SMOKE, GRID, *end, "only=[draft_opd-seed1]") == 2
    assert "draft_opd-seed1 starts from sft-seed1, which has not run in" in capsys.readouterr().err
    assert command(*SMOKE, GRID, *end) == 0
    results = json.loads((tmp_path / "study" / "results.json").read_text())["results"]
    starts = {result["name"]: result["training"]["start"] for result in results}
    assert starts["draft_opd-seed1"] == "sft-seed1"
    assert starts["draft_opd-seed0"] == "sft-seed0"


def test_parts_run_one_by_one_are_joined_and_finished_ones_are_not_run_again(command, tmp_path):
    assert command(*SMOKE, "only=[sft]") == 0
    assert names(tmp_path / "study") == ["sft"]
    done = (tmp_path / "study" / "sft" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert command(*SMOKE, "only=[draft_opd]") == 0
    assert names(tmp_path / "study") == ["sft", "draft_opd"]
    whole = (tmp_path / "study" / "results.json").read_text()
    assert command(*SMOKE) == 0
    assert (tmp_path / "study" / "sft" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == done
    again = json.loads((tmp_path / "study" / "results.json").read_text())
    assert again["results"] == json.loads(whole)["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["only=[sfd]"], "there are no such stages; those of smoke are ['sft', 'draft_opd']"),
        (["only=[draft_opd]"], "draft_opd starts from sft, which has not run in"),
    ],
)
def test_a_part_that_cannot_run_is_refused(command, capsys, words: list[str], message: str):
    assert command(*SMOKE, *words) == 2
    assert message in capsys.readouterr().err


def test_results_of_another_configuration_are_not_taken_for_these(command, tmp_path, capsys):
    assert command(*SMOKE, "only=[sft]") == 0
    for rest in ("results", "checkpoints"):
        assert command(*SMOKE, "only=[sft]", "module.optimizer.lr=1e-4") == 2
        message = "holds results of another configuration: choose another hydra.run.dir"
        assert message in capsys.readouterr().err, rest
        (tmp_path / "study" / "sft" / "results.json").unlink(missing_ok=True)


def test_a_study_that_was_moved_goes_on(command, tmp_path):
    assert command(*SMOKE, "only=[sft]") == 0
    checkpoint = (tmp_path / "study").rename(tmp_path / "moved") / "sft" / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    assert command(*SMOKE[:-1], "hydra.run.dir=moved") == 0
    assert checkpoint.read_bytes() == before
    assert names(tmp_path / "moved") == ["sft", "draft_opd"]


@pytest.mark.slow
def test_without_test_prompts_the_table_shows_the_validation(command, tmp_path, capsys):
    assert command(*SMOKE, "test.prompts=0") == 0
    printed = capsys.readouterr().out
    assert "validation prompts; τ" in printed
    assert "held-out prompts" not in printed
    assert all(not r["answers"] for r in json.loads((tmp_path / "study" / "results.json").read_text())["results"])
    assert not (tmp_path / "study" / "acceptance_by_position.png").exists()


@pytest.mark.slow
def test_a_test_along_stored_texts_has_the_answers_of_rollouts(command, tmp_path):
    found = []
    for folder, redraft in (("stored", "true"), ("rolled", "false")):
        words = ("experiment=smoke/sft", "budget.epochs=1", *UNTIMED, "texts.features_dtype=float32")
        assert command(*words, f"test.redraft={redraft}", f"hydra.run.dir={folder}") == 0
        found.append(json.loads((tmp_path / folder / "results.json").read_text())["results"][0]["answers"])
    assert found[0] == found[1]
    assert len(found[0]) == 4


@pytest.mark.slow
def test_a_command_that_was_stopped_goes_on_with_the_stage_that_it_was_in(command, tmp_path, monkeypatch, capsys):
    words = ("experiment=smoke", "budget.epochs=2", *UNTIMED)
    assert command(*words, "hydra.run.dir=whole") == 0
    original = DraftModule._log_step

    def terminate(self, *args):
        if isinstance(self.trainer.datamodule, OnPolicyDataModule) and self.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DraftModule, "_log_step", terminate)
        assert command(*words) == 128 + signal.SIGTERM
    (cut,) = tmp_path.glob("outputs/*/*")
    capsys.readouterr()
    assert command(*words, "resume=auto") == 0
    said = capsys.readouterr().out
    assert f"draft_opd goes on from {cut}/draft_opd/checkpoints/last.ckpt" in " ".join(said.split())
    assert "sft goes on" not in said
    assert names(cut) == ["sft", "draft_opd"]
    assert list(tmp_path.glob("outputs/*/*")) == [cut]
    for stage in ("sft", "draft_opd"):
        paths = (folder / stage / "checkpoints" / "last.ckpt" for folder in (cut, tmp_path / "whole"))
        one, other = (torch.load(path, weights_only=True) for path in paths)
        assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
        assert one["ledger"]["flops"] == other["ledger"]["flops"]


def test_a_stage_sets_nothing_and_sections_as_the_command_line_does(command, tmp_path):
    """`null`, and dictionaries with lists."""
    path = "{_target_: draftopd.training.placements.scattered, _partial_: true}"
    sets = f"{{data.place: {path}, budget.epochs: null, budget.steps: 1, drafter.layer_ids: [0, 2]}}"
    words = ("only=[sft,draft_opd]", f"+stages.draft_opd.set={sets}", "+stages.sft.set={drafter.layer_ids: [0, 2]}")
    assert command(*SMOKE, *words) == 0
    config = (tmp_path / "study" / "draft_opd" / "recipe.yaml").read_text()
    assert "epochs: null" in config
    assert "placements.scattered" in config

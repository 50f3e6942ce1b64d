"""Each ablation changes one thing of Draft-OPD, at any scale, and all of them run as one multirun."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from draftopd.command import CONFIG_DIR

ABLATIONS = sorted(path.stem for path in (CONFIG_DIR / "experiment" / "ablations").glob("*.yaml"))
OF_THE_OBJECTIVE = set(ABLATIONS) - {"paper", "sft_continued"}


def composed(*words: str) -> dict:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("fit", overrides=[*words, "output_dir=out"])
    OmegaConf.resolve(config)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


@pytest.mark.parametrize("scale", [[], ["scale=tiny"]])
@pytest.mark.parametrize("name", sorted(OF_THE_OBJECTIVE))
def test_an_ablation_of_the_objective_changes_the_objective_alone(name: str, scale: list[str]):
    paper, other = composed("experiment=ablations/paper", *scale), composed(f"experiment=ablations/{name}", *scale)
    different = {key for key in paper.keys() | other.keys() if paper.get(key) != other.get(key)}
    logged = {"logger"}  # carries the name
    assert different - logged == {"name", "objective"}
    assert other["name"] == name


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_scale_wins_over_the_experiment(name: str):
    config = composed(f"experiment=ablations/{name}", "scale=tiny")
    assert config["target"]["_target_"] == "draftopd.load.tiny"
    assert config["prompts"]["_target_"] == "draftopd.prompts.TinyPrompts"
    assert {name: limit for name, limit in config["budget"].items() if limit} == {"epochs": 1}
    assert composed(f"experiment=ablations/{name}")["budget"]["flops"] == 2e13


def test_ablations_run_as_a_multirun(command, tmp_path: Path):
    names = ("first_rejected_only", "one_token", "sft_continued")
    sweep = ",".join(f"ablations/{name}" for name in names)
    words = ("scale=tiny", "logger=none", "budget.epochs=null", "budget.steps=2", "prompts.train=8")
    assert command(f"experiment={sweep}", *words, "-m") == 0
    found = [json.loads(path.read_text())["stages"] for path in tmp_path.rglob("results.json")]
    assert sorted(stage["name"] for (stage,) in found) == sorted(names)

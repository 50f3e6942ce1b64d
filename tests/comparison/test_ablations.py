"""Each ablation changes what it says of Draft-OPD, at any scale; all run as one multirun and can be compared."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf

from draftopd.command import CONFIG_DIR
from draftopd.comparison import pictures, runs, sources, tables
from draftopd.errors import DraftError

ABLATIONS = sorted(path.stem for path in (CONFIG_DIR / "experiment" / "ablations").glob("*.yaml"))
CHANGES = {  # top-level keys that differ from paper's; the others differ in the objective alone
    "paper": set(),
    "sft_continued": {"objective", "data", "module", "trainer"},
    "sft_on_opd_prompts": {"objective", "data", "module", "trainer", "prompts"},
    "new_prompts": {"data", "prompts"},
    "no_replay": {"objective", "data"},
    "random_anchors": {"data"},
    "without_tails": {"objective", "data", "traces"},
    "free_running": {"objective", "data", "traces", "callbacks"},
}


@cache
def composed(*words: str) -> dict:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("fit", overrides=[*words, "output_dir=out"])
    OmegaConf.resolve(config)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_is_about_and_nothing_else(name: str):
    paper, other = composed("experiment=ablations/paper"), composed(f"experiment=ablations/{name}")
    different = {key for key in paper.keys() | other.keys() if paper.get(key) != other.get(key)}
    logged = {"logger", "name"}  # both carry the name
    assert different - logged == CHANGES.get(name, {"objective"})
    assert other["name"] == name


@pytest.mark.parametrize("name", sorted(set(ABLATIONS) - CHANGES.keys()))
def test_an_ablation_of_the_objective_is_the_same_at_the_tiny_scale(name: str):
    paper = composed("experiment=ablations/paper", "scale=tiny")
    other = composed(f"experiment=ablations/{name}", "scale=tiny")
    assert {key for key in paper if paper[key] != other[key]} == {"name", "logger", "objective"}


def test_the_pair_on_new_prompts_has_the_same_ones():
    pair = [composed(f"experiment=ablations/{name}") for name in ("new_prompts", "sft_on_opd_prompts")]
    assert pair[0]["prompts"] == pair[1]["prompts"]
    assert [config["data"]["skip_share"] for config in pair] == [0.5, 0.5]
    warm = composed("experiment=quickstart/sft")["prompts"]
    assert pair[0]["prompts"] == {**warm, "train": 2 * warm["train"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_a_scale_wins_over_the_experiment(name: str):
    config = composed(f"experiment=ablations/{name}", "scale=tiny")
    budget = composed("experiment=quickstart/sft_continued")["budget"]["flops"]
    assert config["target"]["_target_"] == "draftopd.target.load.tiny"
    assert config["prompts"]["_target_"] == "draftopd.data.sources.TinyPrompts"
    assert {name: limit for name, limit in config["budget"].items() if limit} == {"epochs": 1}
    assert composed(f"experiment=ablations/{name}")["budget"]["flops"] == budget


@pytest.mark.slow
def test_all_ablations_run_as_one_multirun_and_are_compared(command, tmp_path: Path):
    """A few steps each, from MLflow's side: one finished run an ablation, with everything that a comparison needs."""
    sweep = ",".join(f"ablations/{name}" for name in ABLATIONS)
    few = ["budget.epochs=null", "budget.steps=1", "prompts.train=8", "prompts.val=2", "prompts.test=3"]
    few += ["data.decoding.max_new_tokens=6", "data.decoding.batch_size=64", "~callbacks.trace_log"]
    assert command(f"experiment={sweep}", "scale=tiny", *few, "-m") == 0
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = sources.find(["draftopd"], uri)
    assert sorted(run.name for run in found) == ABLATIONS
    reference = runs.reference_run(found, "sft_continued")
    assert pictures.differences(found, reference).keys() == set(ABLATIONS) - {"sft_continued"}

    table = tables.table(found, reference)
    assert sorted(table.index) == ABLATIONS
    assert (table["prompts"] == 3).all()
    assert tables.commands(found) == [found[0].origin["command"]]
    for run in found:
        assert run.result.training.flops > 0
        assert len(run.accept_at) == 3
        metrics = MlflowClient(uri).get_run(run.id).data.metrics
        artifacts = {file.path for file in MlflowClient(uri).list_artifacts(run.id)}
        assert {"results.json", "diagnostics.png", "config.yaml"} <= artifacts
        assert {"val/share/suffix", "val/forward_kl/first_rejected", "val/anchor_offset/1"} <= metrics.keys()
        assert ({"rollout/share/suffix", "rollout/staleness"} <= metrics.keys()) == (not run.name.startswith("sft"))
        assert ("own_text.png" in artifacts) == ({"own_text/nll", "own_text/target_nll"} <= metrics.keys())
        assert ("own_text.png" in artifacts) == (run.name == "free_running")
        assert metrics.get("rollout/share/accepted") != 1 or run.name == "free_running"

    (page,) = tmp_path.rglob("comparison.html")  # at the end of the sweep
    assert all(f"<td>{name}</td>" in page.read_text() for name in ABLATIONS)
    in_folder = sources.find([str(page.parent), *(run.id for run in found)], uri)  # the same runs, each once
    assert {run.id for run in in_folder} == {run.id for run in found}
    (one,) = sources.find([reference.id], uri)
    with pytest.raises(DraftError, match="nothing to compare"):
        pictures.difference_picture([one], one)
    for word, message in (("none", "which has Default, draftopd"), ("0" * 32, "cannot read runs")):
        with pytest.raises(DraftError, match=message):
            sources.find([word], uri)

"""Every shipped experiment composes; the paper-scale ones build on the meta device with the published sizes."""

import os
import subprocess
import sys
import zipfile
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from benchmarks.bench import blank
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from draftopd.command import CONFIG_DIR
from draftopd.training.run import drafter_group
from runs import UNTIMED, outputs

EXPERIMENTS = sorted(
    str(path.relative_to(CONFIG_DIR / "experiment").with_suffix(""))
    for path in (CONFIG_DIR / "experiment").rglob("*.yaml")
)


def composed(*words: str):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("fit", overrides=list(words))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_says_its_question(name: str):
    config = composed(f"experiment={name}", "output_dir=out")
    OmegaConf.resolve(config)
    assert not OmegaConf.missing_keys(config)
    text = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# Question: ")
    for stage in (config.stages or {}).values():
        assert stage.experiment in EXPERIMENTS
        assert stage.init_from is None or stage.init_from in config.stages


def test_every_choice_of_a_group_composes():
    groups = ["target", "drafter", "objective", "data", "traces", "prompts", "texts", "trainer", "callbacks", "logger"]
    choices = [
        [path.relative_to(CONFIG_DIR / group).with_suffix("") for path in sorted((CONFIG_DIR / group).rglob("*.yaml"))]
        for group in groups
    ]
    for several in zip_longest(*([c for c in choice if c.stem != "common"] for choice in choices)):
        chosen = {group: choice for group, choice in zip(groups, several, strict=True) if choice is not None}
        assert chosen.keys() <= composed(*(f"{group}={choice}" for group, choice in chosen.items())).keys()


def test_options_of_a_mixed_step_run_together(command, tmp_path):
    words = ("data=mixed", "callbacks=ema", "drafter.init=target", "objective@random_objective=d_pace")
    assert command("experiment=smoke/draft_opd", *words, "budget.epochs=null", "budget.steps=1", *UNTIMED) == 0
    saved = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert {"verify", "train"} <= saved["ledger"]["flops"].keys()
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert saved["config"]["random_objective"]["_target_"].endswith("DPace")


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [("eagle3_opd", True), ("smoke/dspark_opd", True), ("smoke/dflash2_opd", True), ("dflash_opd", False)],
)
def test_hard_labels_end_at_a_rejection_where_the_drafter_reads_its_drafts(experiment: str, expected: bool):
    for name in ("cross_entropy", "d_pace", "accept_until_fail", "decoding_rounds"):
        objective = instantiate(composed(f"experiment={experiment}", f"objective={name}").objective)
        assert objective.reached_only is expected
        assert objective.needs_tails is not expected


QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1_000_000,
}
PUBLISHED = {  # target sizes and parameters of the drafter: METHOD 5.1
    "qwen3_4b": ({"hidden_size": 2560, "intermediate_size": 9728}, 537_427_200),
    "qwen3_8b": ({"hidden_size": 4096, "intermediate_size": 12_288}, 1_048_626_432),
}


@pytest.mark.parametrize("kind", ["sft", "opd"])
@pytest.mark.parametrize("model", ["qwen3_4b", pytest.param("qwen3_8b", marks=pytest.mark.slow)])
def test_paper_scale_experiments_build_on_the_meta_device(model: str, kind: str):
    sizes, parameters = PUBLISHED[model]
    config = composed(f"experiment={model}_{kind}", "output_dir=out")
    target = blank({**QWEN3, **sizes}, config.target.mask_token_id)
    with torch.device("meta"):
        drafter = instantiate(drafter_group(config, target))(target=target.shape)
    assert sum(p.numel() for p in drafter.parameters()) == parameters
    assert list(drafter.layer_ids) == [1, 9, 17, 25, 33]
    assert drafter.block_size == 16
    module = instantiate(config.module)(target=target, drafter=drafter, objective=instantiate(config.objective))
    assert drafter.attention == config.module.attention == "flex_attention"
    assert config.module.torch_compile is True
    assert config.trainer.precision == "bf16-mixed"
    schedule = module.configure_optimizers()["lr_scheduler"]
    assert schedule.optimizer.defaults["lr"] == {"sft": 6.0e-4, "opd": 3.0e-4}[kind]
    assert schedule.warmup_steps == {"sft": 55, "opd": 30}[kind]


@pytest.mark.parametrize("name", ["export", "check"])
@pytest.mark.parametrize("target", ["smollm2_135m", "hf", "tiny"])
def test_the_other_commands_take_every_target(name: str, target: str):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        assert compose(name).target is None
        config = compose(
            name, overrides=[f"target={target}", "run=a", "to=b", "layout=zlab"][: 4 if name == "export" else 1]
        )
    assert config.target._target_.startswith("draftopd.target.load.")


def test_the_tracking_facts_come_from_mlflow_yaml(monkeypatch):
    facts = OmegaConf.load(CONFIG_DIR.parent / "mlflow.yaml")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert composed().logger.tracking_uri == facts.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert composed().logger.tracking_uri == "http://elsewhere"


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(tmp_path):
    """Built and unpacked, it carries conf/ and mlflow.yaml and finds them."""
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert {path.name for path in (tmp_path / "site" / "draftopd" / "notebooks").iterdir()} >= {"trace.ipynb"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import draftopd, draftopd.fit; assert 'site' in draftopd.__file__; draftopd.fit.main()"
    words = ["experiment=smoke/sft", "budget.epochs=1", "test.speedup_prompts=0"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert (elsewhere / "mlflow.db").exists()

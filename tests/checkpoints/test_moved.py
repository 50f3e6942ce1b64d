"""Checkpoints whose config names modules as they were before the package had folders."""

import torch
from hydra.utils import get_object

from draftopd.checkpoints.moved import MOVED, with_new_names
from draftopd.checkpoints.native import restore

# what is built when a checkpoint is read, of the old configs
BUILT = {
    "draftopd.load": ("hf", "smollm2", "tiny"),
    "draftopd.prompts": ("HubPrompts", "JsonlPrompts", "ReasoningGymPrompts", "TinyPrompts"),
    "draftopd.evaluation_sets": ("HubEvaluation", "UnionPrompts"),
    "draftopd.rollout": ("Decoding",),
}


def old_names(config):
    """The config with the old names."""
    if not isinstance(config, dict):
        return config
    config = {key: old_names(value) for key, value in config.items()}
    name = config.get("_target_", "")
    old = next((old for old, new in MOVED.items() if name == new or name.startswith(f"{new}.")), None)
    return config if old is None else config | {"_target_": old + name.removeprefix(MOVED[old])}


def test_every_new_name_is_there():
    for new in MOVED.values():
        assert get_object(new) is not None


def test_what_is_built_from_a_checkpoint_is_there():
    for module, names in BUILT.items():
        for name in names:
            assert callable(get_object(with_new_names({"_target_": f"{module}.{name}"})["_target_"]))


def test_names_change_at_every_depth_and_others_do_not():
    config = {
        "objective": {"_target_": "draftopd.losses.DraftOPD", "kl": [{"_target_": "draftopd.divergences.kl"}]},
        "other": {"_target_": "draftopd.losses.CrossEntropy", "text": "draftopd.losses.CrossEntropy"},
        "data": {"_target_": "draftopd.data.SFTDataModule"},
        "prompts": {"_target_": "draftopd.data.sources.TinyPrompts"},
        "optimizer": {"_target_": "torch.optim.AdamW"},
        "sources": {"a": {"_target_": "draftopd.evaluation_sets.HubEvaluation", "max_samples": 3}},
        "file": {"_target_": "draftopd.data.sources.JsonlPrompts", "limit": 3},
    }
    assert with_new_names(config) == {
        "objective": {
            "_target_": "draftopd.objectives.draft_opd.DraftOPD",
            "kl": [{"_target_": "draftopd.objectives.divergences.kl"}],
        },
        "other": {"_target_": "draftopd.objectives.base.CrossEntropy", "text": "draftopd.losses.CrossEntropy"},
        "data": {"_target_": "draftopd.training.sft.SFTDataModule"},
        "prompts": {"_target_": "draftopd.data.sources.TinyPrompts"},
        "optimizer": {"_target_": "torch.optim.AdamW"},
        "sources": {"a": {"_target_": "draftopd.data.benchmarks.HubEvaluation", "test": 3}},
        "file": {"_target_": "draftopd.data.sources.JsonlPrompts", "records": 3},
    }


def test_a_checkpoint_with_old_names_is_restored(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    config = old_names(saved["config"])
    assert config["target"]["_target_"] == "draftopd.load.tiny"
    assert config["prompts"]["_target_"] == "draftopd.prompts.TinyPrompts"
    assert config["data"]["decoding"]["_target_"] == "draftopd.rollout.Decoding"
    torch.save(saved | {"config": config}, tmp_path / "old.ckpt")
    old, new = restore(tmp_path / "old.ckpt"), restore(checkpoint)
    assert (old.config, old.decoding) == (new.config, new.decoding)
    assert old.encoded("test") == new.encoded("test")
    for name, value in new.drafter.state_dict().items():
        assert torch.equal(old.drafter.state_dict()[name], value)

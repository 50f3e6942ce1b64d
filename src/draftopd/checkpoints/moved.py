"""Modules that have moved and settings that are called otherwise, for the configs in older checkpoints."""

from typing import Any

# old -> new; a class that left its module comes before the module
MOVED = {
    "draftopd.block_losses": "draftopd.objectives.block",
    "draftopd.callbacks.Budget": "draftopd.training.budget.Budget",
    "draftopd.callbacks": "draftopd.training.callbacks",
    "draftopd.data.SFTDataModule": "draftopd.training.sft.SFTDataModule",
    "draftopd.datamodule": "draftopd.training.datamodule",
    "draftopd.diagnostics": "draftopd.training.diagnostics",
    "draftopd.divergences": "draftopd.objectives.divergences",
    "draftopd.evaluation_sets": "draftopd.data.benchmarks",
    "draftopd.load": "draftopd.target.load",
    "draftopd.losses.DraftOPD": "draftopd.objectives.draft_opd.DraftOPD",
    "draftopd.losses": "draftopd.objectives.base",
    "draftopd.module": "draftopd.training.module",
    "draftopd.on_policy": "draftopd.training.on_policy",
    "draftopd.one_token": "draftopd.objectives.draft_opd",
    "draftopd.placements": "draftopd.training.placements",
    "draftopd.prompts": "draftopd.data.sources",
    "draftopd.rollout.Decoding": "draftopd.decoding.settings.Decoding",
    "draftopd.texts": "draftopd.data.texts",
}

# class, by its present name -> setting, old -> new
RENAMED = {
    "draftopd.data.benchmarks.HubEvaluation": {"max_samples": "test"},
    "draftopd.data.sources.HubPrompts": {"limit": "records"},
    "draftopd.data.sources.JsonlPrompts": {"limit": "records"},
}


def with_new_names(config: Any) -> Any:
    """A config, or a part of one, whose names are the present ones."""
    if isinstance(config, list):
        return [with_new_names(value) for value in config]
    if not isinstance(config, dict):
        return config
    new = {key: with_new_names(value) for key, value in config.items()}
    name = str(new.get("_target_"))
    old = next((old for old in MOVED if name == old or name.startswith(f"{old}.")), None)
    if old is not None:
        name = new["_target_"] = MOVED[old] + name.removeprefix(old)
    settings = RENAMED.get(name, {})
    return {settings.get(key, key): value for key, value in new.items()}

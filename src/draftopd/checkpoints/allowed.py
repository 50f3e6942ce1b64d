"""What the config of a checkpoint may name. Such files come from strangers, so nothing else in them is ever called."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.moved import with_new_names
from draftopd.errors import DraftError

PROMPTS = (
    "draftopd.data.benchmarks.HubEvaluation",
    "draftopd.data.benchmarks.UnionPrompts",
    "draftopd.data.sources.HubPrompts",
    "draftopd.data.sources.JsonlPrompts",
    "draftopd.data.sources.ReasoningGymPrompts",
    "draftopd.data.sources.TinyPrompts",
)
NAMES = {
    "target": ("draftopd.target.load.hf", "draftopd.target.load.smollm2", "draftopd.target.load.tiny"),
    "drafter": (
        "draftopd.drafters.dflash.DFlash",
        "draftopd.drafters.dflash2.DFlash2",
        "draftopd.drafters.dspark.DSpark",
        "draftopd.drafters.eagle3.Eagle3",
    ),
    "prompts": PROMPTS,
    "data.decoding": ("draftopd.decoding.settings.Decoding",),
    "data.batching": ("draftopd.training.datamodule.Batching",),
}
"""part of the config -> what it may name; nothing else of the config is read"""
NESTED = {"prompts": PROMPTS}  # what may be named deeper in a part: a union has sources
PLAIN_KEYS = ("_target_", "_convert_")  # _convert_ only turns OmegaConf's lists and mappings into plain ones
DEPTH = 16  # more than any config of ours has; what holds itself ends here


def allowed(config: Any, path: Path) -> DictConfig:
    """The parts of a checkpoint's config that `restore` reads; nothing is imported or called.

    Args:
        path: the checkpoint, for messages.

    Raises:
        DraftError: a part is missing, names anything but the classes of this package that belong there, or holds what
            Hydra would act on.
    """
    parts = {place: _part(config, place, path) for place in NAMES}
    parts["drafter"]["_partial_"] = True  # the target's shape comes later
    data = {"decoding": parts.pop("data.decoding"), "batching": parts.pop("data.batching")}
    name = re.sub(r"[?$]", "", str(config.get("name")))  # which OmegaConf would act on
    return OmegaConf.create({"name": name, **parts, "data": data})


def refuse_remote_code(target: DictConfig, path: Path) -> None:
    """Raises DraftError where the target of a checkpoint runs code of a repository: only a user may ask for that."""
    plain = OmegaConf.to_container(target)
    assert isinstance(plain, dict)
    # transformers takes an attention with a slash for a kernel on the hub, and an auto_map for modules there
    words = json.dumps([plain.get("attention"), plain.get("architecture")])
    if plain.get("trust_remote_code") or "/" in words or "auto_map" in words:
        raise DraftError(
            f"the target of {path} ({_shown(plain.get('path'))}) runs code of a repository, which a checkpoint cannot "
            "ask for: if you trust that code, name the target yourself, as in target=hf target.path=... "
            "target.trust_remote_code=true"
        )


def _part(config: Any, place: str, path: Path) -> dict[str, Any]:
    part = config
    for key in place.split("."):
        part = part.get(key) if isinstance(part, dict) else None
    if not isinstance(part, dict) or "_target_" not in part:
        raise DraftError(f"{path} is not a checkpoint of draftopd: its config says nothing of {place}")
    try:
        part = with_new_names(_plain({key: value for key, value in part.items() if key != "_partial_"}))
        _check_names(part, NAMES[place], NESTED.get(place, ()))
    except ValueError as error:
        own = ", ".join(name.rpartition(".")[2] for name in NAMES[place])
        raise DraftError(
            f"{path} is not loaded: its config has {error} at {place}, which may name only {own}"
        ) from error
    return part


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy of mappings, lists, texts and numbers; raises ValueError at all else that Hydra could act on."""
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} levels")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or (key[:1] == key[-1:] == "_" and key not in PLAIN_KEYS):
                raise ValueError(f"the key {_shown(key)}")
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise ValueError(f"the interpolation {_shown(value)}")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__}")


def _check_names(value: Any, names: tuple[str, ...], nested: tuple[str, ...]) -> None:
    """Raises ValueError at a `_target_` that is not among `names`; those deeper down must be among `nested`."""
    if isinstance(value, dict):
        if "_target_" in value and value["_target_"] not in names:
            raise ValueError(_shown(value["_target_"]))
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        _check_names(inner, nested, nested)


def _shown(value: Any) -> str:
    return repr(value)[:80]

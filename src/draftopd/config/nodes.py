"""Every value of a composed configuration against the type of what it is for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from draftopd.config.schema import SCHEMAS, Stage
from draftopd.errors import DraftError
from draftopd.values.checked import Setting, Signature, signature
from draftopd.values.types import Count, Metric, NonNegative, Positive
from draftopd.values.words import shown

HYDRAS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
NARROWER: dict[type, dict[str, Any]] = {
    # of what classes of other packages allow, what works here
    L.Trainer: {
        "max_epochs": Literal[-1] | Count,
        "check_val_every_n_epoch": Count,
        "reload_dataloaders_every_n_epochs": Literal[1],
        "accumulate_grad_batches": Literal[1],  # data.batching says what a step is
        "gradient_clip_val": type(None),  # module.gradient_clip
        "inference_mode": Literal[False],
        "use_distributed_sampler": Literal[False],
    },
    ModelCheckpoint: {"monitor": Metric | None},
    Optimizer: {"lr": Positive, "weight_decay": NonNegative},
}


def require_sections(command: str, config: Mapping[Any, Any]) -> None:
    """Raises DraftError where a section is none: others may refer to what stands in it."""
    for name in SCHEMAS[command].sections:
        _section(name, config.get(name))


def check_values(command: str, values: Mapping[str, Any]) -> None:
    """Raises DraftError at the first value that cannot be used.

    Args:
        values: the command's configuration as plain data, resolved, without hydra's part.
    """
    schema = SCHEMAS[command]
    elsewhere = [*schema.groups, *schema.optional_groups, *schema.sections]
    top = {name: value for name, value in values.items() if name not in elsewhere}
    signature(schema.values).require_all(command, top, others=elsewhere)
    for name, kind in schema.sections.items():
        section = values[name]
        if name in schema.nullable:
            section = {key: value for key, value in section.items() if value is not None}
        signature(kind).require_all(name, section, name, complete=name not in schema.nullable)
    for name, stage in (values.get("stages") or {}).items():
        signature(Stage).require_all(f"stages.{name}", stage, f"stages.{name}")
    for name in schema.groups:
        _check_group(name, _section(name, values.get(name)))
    for name in schema.optional_groups:
        if values.get(name):
            _check_group(name, _section(name, values[name]))


def _check_group(name: str, group: Mapping[str, Any]) -> None:
    if name in ("callbacks", "loggers"):
        for key, callback in group.items():
            _check_made(f"{name}.{key}", _section(f"{name}.{key}", callback))
    elif name == "drafter" and group.get("path") is not None:
        Setting(str).require("drafter.path", group["path"])  # its config.json has the sizes
    else:
        _check_made(name, {key: value for key, value in group.items() if (name, key) != ("drafter", "path")})


def _check_made(path: str, section: Mapping[str, Any]) -> None:
    """A section with a `_target_`, and those inside it."""
    named = section.get("_target_")
    if not isinstance(named, str):
        raise DraftError(f"{path} has no _target_, so that nothing can be made of it: choose another {path}")
    known = _signature(_made(path, named))
    inside = {key: value for key, value in section.items() if any(_sections(path, value))}
    plain = {key: value for key, value in section.items() if key not in HYDRAS | inside.keys()}
    known.require_all(path, plain, path, complete=not section.get("_partial_"), others=inside.keys() & known.settings)
    for key, value in inside.items():
        known.require_known(path, key)
        for where, inner in _sections(f"{path}.{key}", value):
            _check_made(where, inner)


def _sections(path: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The outermost sections with a `_target_` in a value, with their places."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _sections(f"{path}.{key}", inner)


def _section(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DraftError(f"{path}={shown(value)} must be a section of settings")
    return value


def _made(path: str, name: str) -> Callable[..., Any]:
    try:
        made = resolve_name(name)  # Hydra's own way reports in lines of its own
    except (AttributeError, ImportError, ValueError) as error:
        raise DraftError(f"{path}._target_={name} is not to be found: {error}") from error
    if not callable(made):
        raise DraftError(f"{path}._target_={name} is no class and no function")
    return made


def _signature(made: Callable[..., Any]) -> Signature:
    known = signature(made)
    for kind, types in NARROWER.items():
        if isinstance(made, type) and issubclass(made, kind):
            own = {name: Setting(kind) for name, kind in types.items() if name in known.settings}
            known = replace(known, settings={**known.settings, **own})
    return known

"""Drafters from published folders and back. Every folder is checked: errors refuse it, warnings are logged."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from draftopd.checkpoints import files
from draftopd.checkpoints.check_weights import EMBEDDING, HEAD
from draftopd.checkpoints.checks import LAYOUTS, READS, inspect
from draftopd.checkpoints.files import Contents, locate
from draftopd.checkpoints.findings import Finding, Findings
from draftopd.checkpoints.spec import DrafterSpec, Layout
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target

log = logging.getLogger(__name__)
Card = Callable[[DrafterSpec, Sequence[Finding]], str]
"""the model card of a drafter, with the warnings of the checks"""


@dataclass(frozen=True)
class Published:
    """A drafter as it was published, on the CPU, in the dtype of its file."""

    drafter: DFlash | Eagle3
    layout: str
    spec: DrafterSpec
    warnings: list[Finding]


def check_folder(path: str | Path, target: Target | None = None) -> Findings:
    """Every fault of a published folder or hub id.

    Args:
        target: what the drafter is to draft for: its sizes, fingerprint, embedding and head are compared.
    """
    findings = Findings()
    contents = files.load(locate(path), findings)
    if contents is not None:
        inspect(contents, findings, target)
    return findings


def read(path: str | Path, target: Target | None = None) -> Published:
    """A drafter from a folder or hub id in any of LAYOUTS; config.json tells which.

    Raises DraftError where a check found an error; another target's drafter is one.
    """
    contents, layout, spec, findings = _checked(path, target)
    drafter = spec.build()
    weights = {name: contents.tensors[layout.tensor(name)] for name in drafter.state_dict()}
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    drafter.to(kinds.pop() if len(kinds) == 1 else torch.float32).load_state_dict(weights)
    for finding in findings.warnings:
        log.warning("%s: %s", path, finding)
    return Published(drafter, layout.name, spec, findings.warnings)


def published(path: str | Path, target: Target) -> DFlash | Eagle3:
    """The drafter of a folder or hub id, ready to draft for its target; raises as `read`."""
    return target.adopt(read(path, target).drafter).to(target.device).eval()


def drafter_config(path: str | Path, target: Target) -> dict[str, Any]:
    """A `drafter` config group with the sizes that a folder's config.json gives; raises as `read`."""
    *_, spec, _ = _checked(path, target)
    return {"_target_": f"{spec.kind.__module__}.{spec.kind.__name__}", "_partial_": True, **spec.options()}


def load_published(drafter: Drafter, path: Path, target: Target) -> None:
    """Puts the weights of a folder into a drafter; raises as `read`, and where the sizes differ."""
    found = read(path, target)
    ours, theirs = ({"kind": s.kind.__name__, **s.options()} for s in (DrafterSpec.of(drafter, target), found.spec))
    other = [f"{name} {theirs.get(name)}, not {ours[name]}" for name in ours if ours[name] != theirs.get(name)]
    if other:
        raise DraftError(
            f"the drafter in {path} has another shape than the config's drafter ({'; '.join(other)}): "
            f"give drafter.path={path}"
        )
    drafter.load_state_dict(found.drafter.state_dict())


def default_layout(drafter: Drafter) -> str:
    """The one that vLLM and SGLang both read, or the one that says its window.

    Raises DraftError where there is no layout for this kind of drafter.
    """
    for layout in LAYOUTS:
        if type(drafter) is layout.kind and (layout.windows or drafter.window is None):
            return layout.name
    raise DraftError(f"no published layout for {type(drafter).__name__} drafters")


def write(
    drafter: Drafter,
    path: str | Path,
    layout: str,
    target: Target,
    target_name: str | None = None,
    card: Card | None = None,
) -> list[Finding]:
    """Writes a drafter into a new folder; returns the warnings of the checks.

    Args:
        layout: "zlab" for DFlash, "deepspec" for DSpark, "safeai" for EAGLE-3, "speculators" for any.
        target: what it was trained for: its sizes and fingerprint go into config.json, and for DFlash the rows of its
            head into the weights where the draft vocabulary is reduced.
        target_name: hub id of the target; by default what it was loaded from.
        card: makes README.md.

    Raises:
        DraftError: the layout has no such drafters, or no windows, a check found an error, or the folder is not empty.
    """
    spec = DrafterSpec.of(drafter, target, target_name)
    layouts = {known.name: known for known in LAYOUTS if known.kind is spec.kind}
    if layout not in layouts:
        names = " or ".join(layouts)
        raise DraftError(f"no layout '{layout}' for {spec.kind.__name__} drafters: choose {names}")
    chosen = layouts[layout]
    if spec.window is not None and not chosen.windows:
        able = " or ".join(name for name, known in layouts.items() if known.windows)
        raise DraftError(
            f"layout '{layout}' is not written for drafter.window={spec.window}: SGLang drops the window, or makes "
            f"blocks of sliding layers causal; layout={able} has it, for vLLM"
        )
    tensors = {chosen.tensor(name): value.detach().cpu().clone() for name, value in drafter.state_dict().items()}
    dtype = next(drafter.parameters()).dtype
    if drafter.vocabulary is not None:
        vocabulary = drafter.vocabulary.cpu()
        rows = target.model.get_output_embeddings().weight.detach().cpu()[vocabulary].to(dtype)
        marks = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill(0, vocabulary, True)
        extras = {"lm_head.weight": rows, "t2d": marks}
        tensors |= {name: value for name, value in extras.items() if name in chosen.reduced}
    owned = {EMBEDDING: target.model.get_input_embeddings(), HEAD: target.model.get_output_embeddings()}
    tensors |= {
        name: owned[name].weight.detach().cpu().to(dtype).clone() for name in chosen.carried if name not in tensors
    }
    config = chosen.compose(spec, str(dtype).removeprefix("torch.")) | {READS: drafter.reads}
    contents, findings = Contents(config, tensors, {"format": "pt"}), Findings()
    inspect(contents, findings, target)
    _refuse(path, findings)
    text = None if card is None else card(spec, findings.warnings)
    files.save(Path(path).expanduser(), contents, text)
    return findings.warnings


def _checked(path: str | Path, target: Target | None) -> tuple[Contents, Layout, DrafterSpec, Findings]:
    findings = Findings()
    contents = files.load(locate(path), findings)
    known = None if contents is None else inspect(contents, findings, target)
    _refuse(path, findings)
    assert contents is not None
    assert known is not None
    return contents, *known, findings


def _refuse(path: str | Path, findings: Findings) -> None:
    errors = findings.errors
    if errors:
        more = f"; and {len(errors) - 1} more, see python -m draftopd.check folder={path}" if len(errors) > 1 else ""
        raise DraftError(f"{path}: {errors[0]}{more}")

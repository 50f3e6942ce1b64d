"""The model card of an exported drafter: README.md, with the front matter that the hub reads."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import yaml_dump

from draftopd.checkpoints.findings import Finding
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.evaluation.results import Training
from draftopd.evaluation.scores import Scores, Sets
from draftopd.evaluation.speed import BlockSize, Costs
from draftopd.evaluation.tables import set_names
from draftopd.publishing.base import Base
from draftopd.publishing.engines import NAMES, draft_vocabulary, recipes
from draftopd.publishing.record import Record

RECIPE = ("objective", "random_objective", "data", "traces", "prompts", "module", "budget", "seed")
"""groups of a run's configuration that the card repeats"""
MEASURE = "run `python -m draftopd.evaluate`, then export with `results=<its results.json>`."


@dataclass(frozen=True)
class Facts:
    """What a card says besides what is in config.json.

    Args:
        drafter: what an engine is told to load: the exported folder, or its hub id.
        trained: the configuration of its run, as plain data.
        run_id: of MLflow.
    """

    base: Base
    layout: str
    drafter: str
    licence: str | None = None
    trained: Mapping[str, Any] | None = None
    record: Record | None = None
    run_id: str | None = None


def model_card(facts: Facts, spec: DrafterSpec, warnings: Sequence[Finding]) -> str:
    """
    Args:
        warnings: of the checks of the folder.
    """
    parts = [_front_matter(facts, spec), *_opening(facts, spec), *_acceptance(facts), *_speed(facts)]
    parts += [*_serving(facts, spec), *_vocabulary(facts, spec)]
    if warnings:
        parts += ["## What an engine may get wrong", "\n".join(f"- {finding}" for finding in warnings)]
    return "\n\n".join([*parts, *_recipe(facts)]) + "\n"


def _front_matter(facts: Facts, spec: DrafterSpec) -> str:
    data = ModelCardData(
        library_name="draftopd",
        base_model=facts.base.hub_id,
        license=facts.licence,
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "draft-model", NAMES[spec.kind].lower()],
    )
    return f"---\n{data.to_yaml()}\n---"


def _opening(facts: Facts, spec: DrafterSpec) -> Iterator[str]:
    base, drafts = facts.base, spec.block_size - 1
    name = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})" if base.hub_id else f"`{base.place}`"
    yield f"# {NAMES[spec.kind]} drafter for {(base.hub_id or base.place).rstrip('/').split('/')[-1]}"
    yield (
        f"For speculative decoding: it proposes {drafts} tokens at a time, and the target, {name}, verifies them in "
        "one forward pass. What it accepts is exactly what it would have written; drafts only change the speed. "
        "A drafter works with the target that it was trained for, and no other."
    )
    if base.note:
        yield base.note
    weights = sum(parameter.numel() for parameter in spec.build("meta").parameters())
    licence = facts.licence or "none named"
    rows = [
        ("target", f"{name}, fingerprint `{spec.target_fingerprint}`, {base.dtype}"),
        ("drafter", f"{NAMES[spec.kind]}, {spec.num_layers} layers, {weights / 1e6:.1f} M parameters"),
        ("block size", f"{spec.block_size}: the last token of the text and {drafts} drafts"),
        ("reads", f"outputs of the target's layers {', '.join(map(str, spec.layer_ids))} (counted from 0)"),
        *([] if spec.window is None else [("sees", f"the last {spec.window} positions before each draft")]),
        ("layout", facts.layout),
        *_origin(facts),
        ("licence", licence),
    ]
    yield _table(["", ""], rows)


def _origin(facts: Facts) -> Iterator[tuple[str, str]]:
    trained, record = facts.trained, facts.record
    if trained is not None:
        yield "objective", f"`{_named(trained.get('objective'))}`"
        yield "data", f"`{_named(trained.get('data'))}`, prompts of `{_named(trained.get('prompts'))}`"
        yield "run", f"`{trained.get('name')}`"
    if record is not None and record.training is not None:
        yield "training", _costs(record.training)
    run_id = facts.run_id or (record and record.result.run_id)
    if run_id:
        yield "MLflow run", f"`{run_id}`"
    if record is not None:
        yield "commit", f"`{record.results.header.get('git_commit', 'unknown')}`"


def _costs(training: Training) -> str:
    own = f"{training.flops / 1e15:.3g} PFLOPs, {training.seconds / 60:.1f} minutes"
    if training.start is None and training.before in (None, 0):
        return own
    if training.before is None:
        return f"{own}; what it started from (`{training.start}`) comes on top"
    return f"{own}; {(training.before + training.flops) / 1e15:.3g} PFLOPs with what it started from"


def _acceptance(facts: Facts) -> Iterator[str]:
    yield "## Acceptance"
    if facts.record is None or not facts.record.result.answers:
        yield f"Not measured: {MEASURE}"
        return
    result, decoding = facts.record.result, facts.record.results.decoding
    yield (
        f"τ, the acceptance length: tokens per verification, the target's own token included. {len(result.answers)} "
        f"prompts, {decoding.words}, at most {decoding.max_new_tokens} new tokens; in brackets the 95 % interval over "
        "prompts."
    )
    sets, names = result.scores, set_names(result.scores)
    rows = [
        [_set(name), values["acceptance_length"].count]
        + [_cell(values, key) for key in ("acceptance_length", "acceptance_length_pooled", "speedup")]
        for name, values in ((name, sets[name]) for name in names)
    ]
    yield _table(["prompts", "n", "τ", "τ pooled", "speedup"], rows)
    yield "Share of blocks whose first k drafts were accepted:"
    yield _table(["k", *map(_set, names)], list(_positions(sets, names)))


def _positions(sets: Sets, names: Sequence[str]) -> Iterator[list[Any]]:
    width = sum(key.startswith("accept_at/") for key in sets[names[0]])
    for k in range(1, width + 1):
        yield [k, *(_cell(sets[name], f"accept_at/{k}") for name in names)]


def _speed(facts: Facts) -> Iterator[str]:
    result = None if facts.record is None else facts.record.result
    yield "## Speed"
    yield (
        "With blocks of W tokens, a step costs t(W) + t_draft(W) and commits τ(W) tokens, where plain decoding pays "
        "t(1) for each: speedup = τ(W) · t(1) / (t(W) + t_draft(W)). All four depend on machine and engine."
    )
    if result is None or result.costs is None or not result.block_sizes:
        yield f"The four were not measured: {MEASURE}"
        return
    assert facts.record is not None
    machine = facts.record.results.header.get("machine", "one machine")
    plain = f"t(1) = {1000 * result.costs.verify[1]:.1f} ms"
    yield f"Measured with draftopd itself, one prompt at a time, on {machine}; {plain}:"
    head = ["W", "τ", "t(W), ms", "t_draft(W), ms", "speedup by the model", "measured"]
    yield _table(head, [_size(row, result.costs) for row in result.block_sizes])


def _size(row: BlockSize, costs: Costs) -> list[Any]:
    times = [f"{1000 * of[row.block_size]:.1f}" for of in (costs.verify, costs.draft)]
    return [row.block_size, f"{row.acceptance_length:.2f}", *times, f"{row.model:.2f}x", f"{row.measured:.2f}x"]


def _serving(facts: Facts, spec: DrafterSpec) -> Iterator[str]:
    yield "## Serve it"
    for recipe in recipes(spec, facts.layout, facts.base, facts.drafter):
        yield f"### {recipe.engine}"
        if recipe.command is not None:
            yield f"```{recipe.language}\n{recipe.command}\n```"
        yield recipe.note


def _vocabulary(facts: Facts, spec: DrafterSpec) -> Iterator[str]:
    yield "## Draft vocabulary"
    if spec.draft_vocab_size not in (None, spec.shape.vocab_size):
        yield (
            f"It drafts from the {spec.draft_vocab_size:,} tokens of {spec.shape.vocab_size:,} that occur most in its "
            "training texts; the target writes any token."
        )
    drafts = draft_vocabulary(spec, facts.layout)
    yield "\n".join(f"- {engine}: {what}." for engine, what in drafts.items())


def _recipe(facts: Facts) -> Iterator[str]:
    if facts.trained is None:
        return
    yield "## How it was trained"
    chosen = {name: _plain(facts.trained[name]) for name in RECIPE if facts.trained.get(name) is not None}
    yield f"```yaml\n{yaml_dump(chosen).rstrip()}\n```"
    command = "" if facts.record is None else facts.record.results.header.get("command", "")
    if command and "/" not in command:  # no folders of somebody's machine
        yield f"```bash\n{command}\n```"


def _named(section: Any) -> str:
    """The class that a section of a configuration names."""
    return str(section.get("_target_") if isinstance(section, Mapping) else section).split(".")[-1]


def _plain(value: Any) -> Any:
    """Without nulls and Hydra's own keys, and of folders only the last name."""
    if isinstance(value, Mapping):
        kept = {key: _plain(inner) for key, inner in value.items() if inner is not None}
        return {key: inner for key, inner in kept.items() if key == "_target_" or not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _set(name: str) -> str:
    return "mean of the sets" if name == "mean" else name


def _cell(scores: Scores, key: str) -> str:
    return str(scores[key].estimate()) if key in scores and math.isfinite(scores[key].value) else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)

"""Figures from traces and runs."""

import io
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from draftopd.errors import DraftError
from draftopd.evaluation.curves import AXES, Curve
from draftopd.evaluation.metrics import Counts, add
from draftopd.evaluation.speed import BlockSize
from draftopd.evaluation.stats import Estimate
from draftopd.trace import Trace


def png(figure: Figure) -> bytes:
    """The figure as a picture for notebooks."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, bbox_inches="tight")  # with long names of runs, whole
    return buffer.getvalue()


def rejections(traces: Sequence[Trace]) -> Figure:
    """How many drafts blocks accepted, and acceptance by position: marginal and conditional."""
    sums = add(Counts.of(trace) for trace in traces)
    values = {name: top / bottom for name, (top, bottom) in sums.items() if bottom}
    shares = [values.get(f"accepted/{k}", 0.0) for k in range(traces[0].drafts.shape[1] + 1)]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    (left, right) = figure.subplots(1, 2)
    left.bar(range(len(shares)), shares, color="tab:blue")
    left.set(xlabel="accepted drafts of a block", ylabel="share of blocks", xticks=range(len(shares)))
    slots = range(1, len(shares))
    for key, label in (("accept_at", "first k drafts held"), ("accept_at_given", "draft k held, given k - 1 did")):
        points = [(k, values[f"{key}/{k}"]) for k in slots if f"{key}/{k}" in values]
        right.plot(*zip(*points, strict=True), marker="o", label=label)
    right.set(xlabel="position k in the block", ylabel="share of blocks", ylim=(0, 1), xticks=slots)
    right.legend(frameon=False)
    right.grid(alpha=0.3)
    blocks, length = int(sums["acceptance_length_pooled"][1]), values["acceptance_length"]
    figure.suptitle(f"{len(traces)} responses, {blocks} blocks, mean acceptance length {length:.2f}")
    return figure


def curves(stages: Sequence[Curve], reference: str | None = None, axis: str = "flops") -> Figure:
    """Acceptance length against what training cost; a continuation starts where the stage before it ended.

    Args:
        reference: name of the stage whose curve the others are read against: black and thick.
        axis: `flops`, `target_tokens` or `minutes`.

    Raises:
        DraftError: there is no such axis.
    """
    if axis not in AXES:
        raise DraftError(f"there is no axis '{axis}': choose one of {', '.join(AXES)}")
    beside = len(stages) > 6
    size = (9.5, max(4.6, 0.8 + 0.24 * len(stages))) if beside else (7, 4.2)
    figure = Figure(figsize=size, layout="constrained")
    plot = figure.subplots()
    for number, stage in enumerate(stages):
        style: dict[str, Any] = {"color": f"C{number % 10}", "ls": ("-", "--", ":", "-.")[number // 10 % 4]}
        style |= {"color": "black", "ls": "-", "lw": 3} if stage.name == reference else {}
        spent, lengths = ([getattr(p, key) for p in stage.points] for key in (axis, "acceptance_length"))
        plot.plot(spent, lengths, marker="o", ms=4, label=stage.name, **style)
    if axis != "minutes":  # half a minute is not 500 m
        plot.xaxis.set_major_formatter(EngFormatter())
    plot.set(xlabel=AXES[axis], ylabel="τ on validation prompts (tokens a verification)")
    plot.grid(alpha=0.3)
    if beside:  # names stand in the order of the curves' ends
        ends = {stage.name: stage.points[-1].acceptance_length if stage.points else -1.0 for stage in stages}
        lines = sorted(plot.get_lines(), key=lambda line: -ends[str(line.get_label())])
        plot.legend(handles=lines, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    else:
        plot.legend(frameon=False)
    return figure


def positions(scores: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> Figure:
    """What blocks accepted, with 95 % intervals over prompts: one row per set, one colour per drafter.

    Args:
        scores: estimates by drafter, set and key (scores.score).
    """
    kinds = {
        "accept_at": "first k drafts held",
        "accept_at_given": "draft k held, if k - 1 did",
        "accepted": "k accepted",
    }
    names = list(next(iter(scores.values())))
    size = (11, 0.4 + 2.9 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(kinds), squeeze=False)
    for (row, name), (column, (kind, label)) in product(enumerate(names), enumerate(kinds.items())):
        axis = axes[row, column]
        for number, (drafter, sets) in enumerate(scores.items()):
            points = {int(key.split("/")[1]): e for key, e in sets[name].items() if key.startswith(f"{kind}/")}
            color, marks = f"C{number}", points.values()
            axis.plot(list(points), [e.mean for e in marks], marker="o", ms=4, color=color, label=drafter)
            axis.fill_between(list(points), [e.low for e in marks], [e.high for e in marks], color=color, alpha=0.2)
        axis.set(title=f"{name}\n{label}", xlabel="k", ylabel="share of blocks", ylim=(0, 1))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, title="95 % over prompts")
    return figure


def block_sizes(rows: Sequence[BlockSize]) -> Figure:
    """Speedup of decoding against block size: predicted, by the model, measured."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    sizes = [row.block_size for row in rows]
    labels = {
        "predicted": "predicted from acceptance by position",
        "model": "model with this block size's τ",
        "measured": "measured",
    }
    for field, style in zip(labels, ("--", ":", "-"), strict=True):
        axis.plot(sizes, [getattr(row, field) for row in rows], style, marker="o", label=labels[field])
    axis.axhline(1.0, color="grey", lw=0.8)
    axis.set(xlabel="block size (anchor and drafts)", ylabel="speedup of decoding, one prompt at a time", xticks=sizes)
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure

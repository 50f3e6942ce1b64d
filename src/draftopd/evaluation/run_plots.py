"""Figures that explain one run, or compare several."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from draftopd.evaluation.diagnosis import Diagnosis
from draftopd.evaluation.stats import Estimate
from draftopd.evaluation.text_quality import Quality

GROUPS = {  # drafts by what the target made of them
    "accepted": ("tab:green", "accepted"),
    "first_rejected": ("tab:red", "first rejected"),
    "suffix": ("tab:orange", "after the first rejected"),
}


def diagnosis(phases: Sequence[Diagnosis], title: str) -> Figure:
    """Shares of drafts, divergences by group, and distances between anchors, of a run's phases."""
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    ((shares, offsets), (forward, reverse)) = figure.subplots(2, 2)
    marker = "o" if len(phases) <= 40 else None
    for axis, field in ((shares, "share"), (forward, "forward_kl"), (reverse, "reverse_kl")):
        for name, (color, label) in GROUPS.items():
            points = [(d.step, getattr(d, field)[name]) for d in phases if name in getattr(d, field)]
            if points:
                axis.plot(*zip(*points, strict=True), marker=marker, ms=4, color=color, label=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set(xlabel="optimizer step", ylim=(0, 1.05 * axis.get_ylim()[1]))
        axis.grid(alpha=0.3)
    shares.set(ylabel="share of verified drafts", ylim=(0, 1))
    forward.set(ylabel="KL(target ‖ drafter), nats a draft")
    reverse.set(ylabel="KL(drafter ‖ target), nats a draft")
    ends = {"first": phases[0]} if len(phases) == 1 else {"first": phases[0], "last": phases[-1]}
    for number, (name, phase) in enumerate(ends.items()):
        places = np.arange(1, len(phase.anchor_offset) + 1) + 0.4 * (number - 0.5 * (len(ends) - 1))
        label, color = f"{name}, step {phase.step}", ("tab:gray", "tab:blue")[number]
        offsets.bar(places, list(phase.anchor_offset.values()), 0.4, color=color, label=label)
    offsets.set(xlabel="tokens from an anchor to the next", ylabel="share of blocks")
    offsets.set_xticks(range(1, len(phases[0].anchor_offset) + 1))
    offsets.legend(frameon=False)
    lines, labels = shares.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), title="drafts", frameon=False)
    figure.suptitle(f"{len(phases)} {title if len(phases) > 1 else title.removesuffix('s')}")
    return figure


def own_text(history: Sequence[tuple[int, Quality]], reference: Quality) -> Figure:
    """-log p and repetition by position, of the drafter's own text at each step and of the target's."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, len(history)))
    labels = {"nll": "-log p under the target, nats a token", "repeated": "tokens ending a repeated 4-gram, share"}
    for axis, (field, label) in zip(axes, labels.items(), strict=True):
        for number, (step, seen) in enumerate(history):
            shown = f"drafter, step {step}" if number in (0, len(history) - 1) else None
            _by_position(axis, seen, field, color=colors[number], label=shown)
        _by_position(axis, reference, field, color="black", ls="--", label="target's own text")
        axis.set(xlabel="position in the response, tokens", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle("text that the drafter writes by itself, and the target's own for the same prompts")
    return figure


def _by_position(axis: Axes, seen: Quality, field: str, **style: Any) -> None:
    places = [(i + 0.5) * seen.width for i in range(len(seen.tokens))]
    axis.plot(places, getattr(seen, field), marker="o", ms=4, **style)


def differences(points: Mapping[str, Estimate], reference: str) -> Figure:
    """Paired differences of τ to a reference run, with 95 % intervals, the best on top."""
    rows = sorted(points.items(), key=lambda item: item[1].mean)
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (_, e) in enumerate(rows):
        color = "tab:green" if e.low > 0 else "tab:red" if e.high < 0 else "tab:gray"
        axis.plot([e.low, e.high], [place, place], color=color, lw=2)
        axis.plot(e.mean, place, "o", color=color)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set(
        xlabel=f"difference of τ to {reference}, tokens a verification [95 % over prompts]",
        ylim=(-0.7, len(rows) - 0.3),
    )
    axis.grid(alpha=0.3, axis="x")
    return figure


def acceptance(table: Mapping[str, Sequence[float]], reference: str) -> Figure:
    """Share of blocks whose first k drafts held, one row a run: numbers, coloured by the difference to a reference."""
    names = list(table)
    values = 100 * np.array([table[name] for name in names])
    change = values - 100 * np.array(table[reference])
    limit = 1.5 * max(1.0, float(np.nanmax(np.abs(change))))  # numbers stay readable on the strongest colour
    size = (3.5 + 0.8 * values.shape[1], 1.6 + 0.36 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(change, cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        axis.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center")
    axis.set_xticks(range(values.shape[1]), [str(k + 1) for k in range(values.shape[1])])
    axis.set_yticks(range(len(names)), names)
    colour = f"colour: percentage points more than {reference}"
    axis.set(xlabel=f"position k in the block\n({colour})", title="% of blocks whose first k drafts held")
    figure.colorbar(image, label="points")
    return figure

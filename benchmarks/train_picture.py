"""The picture of `train.py`: a panel for every part that is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEERS = ("rollout_b1", "rollout_b8", "unchunked", "speculators")
SIZE = 13
MB = 2**20


def draw(results: dict[str, Any], path: Path) -> None:
    panels = [panel for part in results["parts"] for panel in PANELS.get(part, ())]
    if not panels:
        return
    columns = 2
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(15, 3.6 * rows), layout="constrained", squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(grid.flat, panels, strict=False):
        panel(axis, results["parts"])
        axis.tick_params(labelsize=SIZE)
        axis.spines[["top", "right"]].set_visible(False)
    runs = [part.get("run", results) for part in results["parts"].values()]
    figure.suptitle("\n".join(dict.fromkeys(map(heading, runs))), fontsize=SIZE + 2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def heading(run: dict[str, Any]) -> str:
    """What was measured, and where."""
    settings, machine = run["settings"], run["machine"]
    words = f"{settings['target_parameters'] / 1e6:.3g}M target, {settings['drafter']}, {machine['processor']}"
    return f"{words}, threads: {machine['threads']}"


def bars(part: str, key: str, title: str, unit: str, scale: float = 1.0) -> Callable[[Axes, dict[str, Any]], None]:
    """Medians over rounds with their quartiles."""

    def panel(axis: Axes, parts: dict[str, Any]) -> None:
        spreads = parts[part]["summary"][key]
        names = list(spreads)
        medians = [spreads[name]["median"] / scale for name in names]
        low = [m - spreads[name]["q1"] / scale for name, m in zip(names, medians, strict=True)]
        high = [spreads[name]["q3"] / scale - m for name, m in zip(names, medians, strict=True)]
        colors = ["tab:gray" if any(peer in name for peer in PEERS) else "tab:blue" for name in names]
        axis.barh(names, medians, xerr=[low, high], color=colors, capsize=4)
        for row, value in enumerate(medians):
            axis.annotate(
                f"{value:.3g}" if value < 100 else f"{value:,.0f}",
                (value + high[row], row),
                (6, 0),
                textcoords="offset points",
                va="center",
                size=SIZE,
            )
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(title, fontsize=SIZE, loc="left")
        axis.set_xlabel(unit, fontsize=SIZE)

    return panel


def lines(over: str, key: str, unit: str, scale: float = 1.0) -> Callable[[Axes, dict[str, Any]], None]:
    """A value of every kind of work over the length of one text, or over the number of texts of one length."""

    def panel(axis: Axes, parts: dict[str, Any]) -> None:
        points = parts["growth"]["points"]
        by_length, length = over == "length", parts["growth"]["settings"]["text_length"]
        wanted = [p for p in points if (p["texts"] == 1 if by_length else p["length"] == length)]
        for kind in dict.fromkeys(point["kind"] for point in wanted):
            chosen = [p for p in wanted if p["kind"] == kind]
            axis.plot([p[over] for p in chosen], [p[key] / scale for p in chosen], "o-", label=kind)
        rest = "tokens of one text" if by_length else f"texts of {length} tokens"
        axis.set_title(f"{unit} over {rest}", fontsize=SIZE, loc="left")
        axis.set(xscale="log", yscale="log")
        measured = sorted({p[over] for p in wanted})
        axis.set_xticks(measured, [f"{value:,}" for value in measured])
        axis.set_xticks([], minor=True)
        axis.set_xlabel(rest, fontsize=SIZE)
        axis.set_ylabel(unit, fontsize=SIZE)
        axis.legend(fontsize=SIZE)

    return panel


PANELS = {
    "redraft": [bars("redraft", "seconds", "An epoch's traces", "seconds")],
    "step": [bars("step", "seconds", "An optimizer step", "seconds")],
    "epoch": [bars("epoch", "seconds", "An epoch on the same texts, as many blocks", "seconds")],
    "speculators": [bars("speculators", "seconds", "An SFT step beside speculators", "seconds")],
    "loss_memory": [bars("loss_memory", "peak_bytes", "Peak memory of the loss", "MiB", MB)],
    "growth": [
        lines("length", "seconds", "seconds"),
        lines("length", "peak_bytes", "MiB", MB),
        lines("texts", "seconds", "seconds"),
        lines("texts", "peak_bytes", "MiB", MB),
    ],
}

"""The tables and the picture of docs/results.md, made of the study's small files."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from draftopd.command import HOME
from draftopd.errors import DraftError
from draftopd.evaluation import stats
from draftopd.evaluation.stats import Bootstrap

FOLDER = HOME / "benchmarks" / "results" / "study"


@dataclass(frozen=True)
class Part:
    """A small file."""

    sets: list[str]
    runs: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, name: str) -> "Part":
        saved = json.loads((FOLDER / f"{name}.json").read_text())
        return cls(saved["sets"], saved["runs"])

    def members(self, arm: str) -> dict[str, dict[str, Any]]:
        """The runs of an arm, by what follows its name: `-seed0` and so on."""
        names = {name: re.fullmatch(rf"{arm}(|-seed\d+)", name) for name in self.runs}
        found = {match[1]: self.runs[name] for name, match in names.items() if match}
        if not found:
            raise DraftError(f"the study has no runs of {arm}: {', '.join(self.runs)}")
        return found

    def difference(self, arm: str, reference: str) -> Bootstrap:
        """Paired in prompts, and in the seeds that both have; where they have none in common, of all seeds."""
        common = self.members(arm).keys() & self.members(reference).keys() or None
        return self.length(arm, common) - self.length(reference, common)

    def length(self, arm: str, seeds: Collection[str] | None = None) -> Bootstrap:
        """τ, the mean over sets of prompts of the mean over responses, with resamples of seeds and prompts."""
        runs = [saved for seed, saved in self.members(arm).items() if seeds is None or seed in seeds]
        committed, blocks = (np.array([r[key] for r in runs], dtype=float) for key in ("committed", "blocks"))
        drafted = (blocks > 0).astype(float)
        lengths = np.divide(committed, blocks, out=np.zeros_like(committed), where=blocks > 0)
        return stats.average(
            [stats.crossed(lengths[:, at], drafted[:, at], seed) for seed, at in enumerate(self.places.values())]
        )

    @property
    def places(self) -> dict[str, list[int]]:
        """Of each set's prompts."""
        return {name: [i for i, s in enumerate(self.sets) if s == name] for name in sorted(set(self.sets))}

    def speedup(self, stage: str) -> Bootstrap | None:
        """Over plain decoding, the mean over sets of tokens per second; None where nothing was timed."""
        timed = self.runs[stage]["timed"]
        parts = []
        for seed, at in enumerate(self.places.values()):
            clocks = np.array([timed[str(i)] for i in at if str(i) in timed])
            if len(clocks):
                parts.append(stats.ratio(*clocks[:, :2].T, seed) / stats.ratio(*clocks[:, 2:].T, seed))
        return stats.average(parts) if parts else None


def arms(name: str, reference: str, *others: str) -> Iterator[str]:
    """A row an arm: τ, its difference to the reference arm, and what it cost."""
    part = Part.read(name)
    base = part.length(reference).value
    yield f"| arm | seeds | τ [95 %] | less `{reference}` [95 %] | gain | p | PFLOPs | minutes |"
    yield "|---|---|---|---|---|---|---|---|"
    for arm in (reference, *others):
        runs, length = part.members(arm), part.length(arm)
        versus = ("", "", "") if arm == reference else _difference(part.difference(arm, reference).estimate(), base)
        costs = [np.mean([r[key] for r in runs.values()]) for key in ("flops", "seconds")]
        cells = [f"`{arm}`", str(len(runs)), length.estimate().text(".3f"), *versus]
        yield "| " + " | ".join([*cells, f"{costs[0] / 1e15:.4f}", f"{costs[1] / 60:.1f}"]) + " |"


def _difference(difference: stats.Estimate, base: float) -> tuple[str, str, str]:
    return difference.text("+.3f"), f"{difference.mean / base:+.1%}", difference.p_text


def gains(*rows: str) -> Iterator[str]:
    """Several studies in one table: what new prompts gain over more SFT, in percent of its τ.

    Args:
        rows: `DRAFTER/START/PROMPTS=FILE:SFT:RANDOM:OWN:PAPER`, "_" for a space; the last four are names of arms, "-"
            for one that was not run.
    """
    titles = ("drafter", "texts × starts", "test prompts", "seeds", "more SFT, τ", "random anchors", "own blocks")
    yield "| " + " | ".join([*titles, "own blocks over random anchors", "Draft-OPD as in the paper"]) + " |"
    yield "|---" * 9 + "|"
    for row in rows:
        label, _, names = row.rpartition("=")
        name, sft, random, own, paper = names.split(":")
        part = Part.read(name)
        counts = sorted({len(part.members(arm)) for arm in (sft, random, own, paper) if arm != "-"})
        pairs = ((random, sft), (own, sft), (own, random), (paper, sft))
        cells = ["–".join(str(n) for n in sorted({counts[0], counts[-1]})), f"{part.length(sft).value:.2f}"]
        cells += [_gain(part, arm, over) if arm != "-" else "-" for arm, over in pairs]
        yield "| " + " | ".join([*label.replace("_", " ").split("/"), *cells]) + " |"


def _gain(part: Part, arm: str, reference: str) -> str:
    gain, base = part.difference(arm, reference).estimate(), part.length(reference).value / 100
    return f"{gain.mean / base:+.1f} % [{gain.low / base:+.1f}, {gain.high / base:+.1f}]"


def positions(name: str, *names: str) -> Iterator[str]:
    """A row an arm: the share of blocks whose first k drafts held, among those that drafted k, and the speedup."""
    part = Part.read(name)
    slots = len(next(iter(part.members(names[0]).values()))["held"])
    yield "| arm | " + " | ".join(f"first {k}" if k > 1 else "first" for k in range(1, slots + 1)) + " | speedup |"
    yield "|---" * (slots + 2) + "|"
    for arm in names:
        runs = part.members(arm)
        held, drafted = (np.sum([r[key] for r in runs.values()], axis=0) for key in ("held", "drafted"))
        timed = [of for of in (part.speedup(f"{arm}{seed}") for seed in runs) if of]
        cells = [f"`{arm}`", *(f"{share:.2f}" for share in held / drafted)]
        cells.append(stats.average(timed).estimate(1.0).text(".2f") if timed else "-")
        yield "| " + " | ".join(cells) + " |"


def stages(name: str, *names: str) -> Iterator[str]:
    """A row a stage of a run, and the differences of those that start alike."""
    part = Part.read(name)
    yield "| stage | τ on held-out prompts [95 %] | speedup | training PFLOPs | minutes |"
    yield "|---|---|---|---|---|"
    for stage in names:
        saved = part.runs[stage]
        before = f"{part.runs[saved['start']]['flops'] / 1e15:.3f} + " if saved["start"] else ""
        timed = part.speedup(stage)
        speed = f"{timed.value:.2f}x" if timed else "-"
        cells = [f"`{stage}`", part.length(stage).estimate().text(), speed, f"{before}{saved['flops'] / 1e15:.3f}"]
        yield "| " + " | ".join([*cells, f"{saved['seconds'] / 60:.1f}"]) + " |"
    yield ""
    for i, late in enumerate(names):
        for early in names[:i]:
            if part.runs[late]["start"] in (early, part.runs[early]["start"]):
                d = (part.length(late) - part.length(early)).estimate()
                yield f"- {late} - {early}: {d.text('+.3f')}, p {d.p_text}"


def border(name: str) -> Iterator[str]:
    """Gain of training on new prompts over more SFT, by the SFT before."""
    part = Part.read(name)
    yield "| prompts | epochs | start | more SFT | new prompts | gain [95 %] | |"
    yield "|---|---|---|---|---|---|---|"
    for (prompts, epochs), (start, sft, new) in _borders(part).items():
        values = [f"{length.value:.2f}" for length in (start, sft, new)]
        gain = (new - sft).estimate()
        yield (
            f"| {prompts} | {epochs} | "
            + " | ".join([*values, gain.text("+.2f"), f"{gain.mean / sft.value:+.1%}"])
            + " |"
        )


def picture(name: str) -> Figure:
    """The border map: gain over more SFT against the τ at which SFT was left, a line for each number of prompts."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[int, list[tuple[int, float, stats.Estimate]]] = {}
    for (prompts, epochs), (start, sft, new) in _borders(Part.read(name)).items():
        gain = (new - sft).estimate()
        lines.setdefault(prompts, []).append((epochs, start.value, gain))
    for prompts, points in lines.items():
        _, starts, gains = zip(*points, strict=True)
        ends = [[g.mean - g.low for g in gains], [g.high - g.mean for g in gains]]
        axes.errorbar(starts, [g.mean for g in gains], ends, marker="o", capsize=3, label=f"SFT on {prompts} texts")
        for count, start, gain in points:
            axes.annotate(str(count), (start, gain.mean), (6, 5), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="τ where SFT was left", ylabel="gain in τ of new prompts over more SFT")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="epochs at the points")
    return figure


def _borders(part: Part) -> dict[tuple[int, int], tuple[Bootstrap, Bootstrap, Bootstrap]]:
    """(prompts, epochs) -> τ of the start, of more SFT, and of training on new prompts."""
    found = (re.fullmatch(r"new_(\d+)_(\d+)", name) for name in part.runs)
    places = sorted((int(f[1]), int(f[2])) for f in found if f)
    kinds = ("warm", "sft", "new")
    return {(n, e): tuple(part.length(f"{kind}_{n}_{e}") for kind in kinds) for n, e in places}  # type: ignore[misc]


def rates(name: str) -> Iterator[str]:
    """τ on the validation prompts at the end of every run of a search, a row an arm."""
    part = Part.read(name)
    tries: dict[str, list[tuple[float, float]]] = {}
    for run_name, saved in part.runs.items():
        if found := re.fullmatch(r"(.*)-lr([\d.e-]+)", run_name):
            tries.setdefault(found[1], []).append((float(found[2]), saved["curve"][-1][2]))
    yield "| arm | learning rate: τ on the validation prompts | best |"
    yield "|---|---|---|"
    for arm, values in tries.items():
        best = max(values, key=lambda pair: pair[1])
        yield f"| `{arm}` | {', '.join(f'{lr:g}: {tau:.3f}' for lr, tau in sorted(values))} | {best[0]:g} |"


def curve(name: str, run_name: str) -> Iterator[str]:
    """τ on the validation prompts on the way of one run, and its slope over the last third of the compute."""
    points = np.array(Part.read(name).runs[run_name]["curve"])
    yield "| PFLOPs | " + " | ".join(f"{flops / 1e15:.3f}" for flops in points[:, 0]) + " |"
    yield "|---" * (len(points) + 1) + "|"
    yield "| τ | " + " | ".join(f"{tau:.2f}" for tau in points[:, 2]) + " |"
    late = points[points[:, 0] >= 2 / 3 * points[-1, 0] - 1]
    slope = np.polyfit(late[:, 0] / points[-1, 0], late[:, 2], 1)[0] / late[:, 2].mean() / 10
    yield ""
    yield f"Over the last third τ changes by {slope:+.2%} per 10 % of the compute."


TABLES = {
    "arms": arms,
    "gains": gains,
    "rates": rates,
    "curve": curve,
    "stages": stages,
    "border": border,
    "positions": positions,
}

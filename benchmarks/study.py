"""The study: final drafters at a temperature, one small file for each part, and the tables of docs/results.md.

    python -m benchmarks.study test outputs/study/dflash-mix --temperature 0.6
    python -m benchmarks.study join outputs/study/dflash-mix --to benchmarks/results/study/dflash-mix.json
    python -m benchmarks.study check [--write]

`test` redrafts the test prompts' texts that the target samples at a temperature (token matching: the text does not
depend on the drafter). `join` keeps of every run what it cost, its validations, and two numbers a test prompt. `check`
makes every table of docs/results.md between `<!-- study ... -->` and `<!-- end -->` anew from these files and fails
where a number differs.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import HOME, one_line_errors
from draftopd.console import progress
from draftopd.data.texts import TextCache
from draftopd.errors import DraftError
from draftopd.evaluation import measure, run, stats
from draftopd.evaluation.results import FILE, Result, Results, load
from draftopd.evaluation.stats import Bootstrap
from draftopd.target.model import Target
from draftopd.trace import Rollout

DOCUMENT = HOME / "docs" / "results.md"
FOLDER = HOME / "benchmarks" / "results" / "study"
MARK = re.compile(r"(<!-- study (?P<words>.*?) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("test", help="test the drafters of a study at a temperature")
    part.add_argument("folder", type=Path)
    part.add_argument("--temperature", type=float, default=0.6)
    part.add_argument("--only", nargs="*", help="stages, by name")
    part.add_argument("--cache-dir", default="~/.cache/draftopd", help="of the texts")
    part.set_defaults(run=lambda args: test(args.folder, args.temperature, args.only, TextCache(args.cache_dir)))
    part = parts.add_parser("join", help="write the small file of a study")
    part.add_argument("folder", type=Path)
    part.add_argument("--to", type=Path, required=True)
    part.add_argument("--results", default=FILE, help="name of the results file of each stage")
    part.set_defaults(run=lambda args: join(args.folder, args.to, args.results))
    part = parts.add_parser("check", help="compare docs/results.md with the small files")
    part.add_argument("--write", action="store_true", help="write the tables instead")
    part.set_defaults(run=lambda args: check(args.write))
    args = parser.parse_args(words)
    with one_line_errors():
        args.run(args)


def test(folder: Path, temperature: float, only: Sequence[str] | None, cache: TextCache) -> None:
    """Writes results-T<temperature>.json into the folder of every finished stage that has none."""
    target: Target | None = None
    for path in sorted(folder.glob(f"*/{FILE}")):
        output = path.parent / f"results-T{temperature:g}"
        if output.exists() or (only and path.parent.name not in only):
            continue
        found = restore(path.parent / "checkpoints" / "last.ckpt", target=target)
        target = found.target
        result = replace(load(path).results[0], answers=_answers(found, temperature, cache))
        decoding = replace(found.decoding, temperature=temperature, rule="token_matching")
        output.mkdir()
        Results(target.fingerprint, decoding, [result]).save(output)


def _answers(found: Restored, temperature: float, cache: TextCache) -> list[run.Answer]:
    decoding = replace(found.decoding, temperature=temperature, rule="token_matching")
    asked = found.asked("test")
    texts = cache.open(found.target, [ids for _, ids in asked], decoding, found.drafter.layer_ids)
    stored = [Rollout(texts[i], texts.features(i)) for i in range(len(asked))]
    with progress(f"T {temperature:g}", len(stored)) as on_done:
        traces = measure.redrafted(found.target, found.drafter, stored, decoding, on_done)
    return run.answers(asked, [[trace] for trace in traces])


def join(folder: Path, to: Path, name: str) -> None:
    """Keeps what tables need: per run its cost and curve, per test prompt the committed tokens and the blocks."""
    found = {path.parent.relative_to(folder).parts[0]: load(path) for path in sorted(folder.glob(f"*/{name}"))}
    if not found:
        raise DraftError(f"no {name} in the stages of {folder}: run experiment=study with hydra.run.dir={folder}")
    results = {stage: file.results[0] for stage, file in found.items()}
    answers = next((result.answers for result in results.values() if result.answers), [])  # a search has none
    document = {
        "git_commit": sorted({json.loads(path.read_text())["git_commit"] for path in folder.glob(f"*/{name}")}),
        "decoding": asdict(next(iter(found.values())).decoding),
        "sets": [answer.set for answer in answers],
        "runs": {stage: _small(result) for stage, result in results.items()},
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(document, separators=(",", ":")).replace('"runs":{', '"runs":{\n').replace("}},", "}},\n"))


def _small(result: Result) -> dict[str, Any]:
    training = result.training
    assert training is not None
    counts = [answer.responses[0] for answer in result.answers]
    return {
        "start": training.start,
        "flops": training.flops,
        "seconds": round(training.seconds, 1),
        "curve": [
            [point.flops, round(point.minutes, 3), round(point.acceptance_length, 5)] for point in training.curve
        ],
        "committed": [c.committed for c in counts],
        "blocks": [c.blocks for c in counts],
        "timed": {str(i): _clocks(a) for i, a in enumerate(result.answers) if a.speculative and a.plain},
    }


def _clocks(answer: run.Answer) -> list[float]:
    """Tokens and seconds of speculative, then of plain decoding."""
    return [v for c in (answer.speculative, answer.plain) if c for v in (c.tokens, round(c.seconds, 4))]


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
    for prompts, epochs in _borders(part):
        start, sft, new = (part.length(f"{kind}_{prompts}_{epochs}") for kind in ("warm", "sft", "new"))
        values = [f"{length.value:.2f}" for length in (start, sft, new)]
        gain = (new - sft).estimate()
        yield (
            f"| {prompts} | {epochs} | "
            + " | ".join([*values, gain.text("+.2f"), f"{gain.mean / sft.value:+.1%}"])
            + " |"
        )


def _borders(part: Part) -> list[tuple[int, int]]:
    found = (re.fullmatch(r"new_(\d+)_(\d+)", name) for name in part.runs)
    return sorted((int(f[1]), int(f[2])) for f in found if f)


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


TABLES = {"arms": arms, "rates": rates, "curve": curve, "stages": stages, "border": border}


def check(write: bool) -> None:
    """Every marked table of docs/results.md, made anew from the small files."""
    text = DOCUMENT.read_text()

    def made(found: re.Match[str]) -> str:
        kind, *words = found["words"].split()
        return found[1] + "\n".join(TABLES[kind](*words)) + "\n" + found[4]

    new = MARK.sub(made, text)
    if write:
        DOCUMENT.write_text(new)
    elif new != text:
        sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), new.splitlines(True), "docs", "recomputed"))
        raise DraftError("docs/results.md differs from benchmarks/results/study: make study-check ARGS=--write")
    print(
        f"{len(MARK.findall(text))} tables of {DOCUMENT.name} {'written' if write else 'recomputed: no number differs'}"
    )


if __name__ == "__main__":
    main()

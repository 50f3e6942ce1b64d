"""The study: final drafters at a temperature, one small file for each part, and the tables of docs/results.md.

    python -m benchmarks.study test outputs/study/dflash-mix --temperature 0.6
    python -m benchmarks.study join outputs/study/dflash-mix [FOLDER ...] --to benchmarks/results/study/dflash-mix.json
    python -m benchmarks.study check [--write]
    python -m benchmarks.study picture border --to docs/border.png

`test` redrafts the test prompts' texts that the target samples at a temperature (token matching: the text does not
depend on the drafter). `join` keeps of every run what it cost, its validations, and two numbers a test prompt, and with
`--add` the other runs that the file holds. `check` makes every table of docs/results.md between `<!-- study ... -->`
and `<!-- end -->` anew from these files and fails where a number differs. `picture` draws a border map.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.study_tables import TABLES, picture

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import HOME, one_line_errors
from draftopd.console import progress
from draftopd.data.texts import TextCache
from draftopd.errors import DraftError
from draftopd.evaluation import measure, run
from draftopd.evaluation.results import FILE, Result, Results, load
from draftopd.target.model import Target
from draftopd.trace import Rollout

DOCUMENT = HOME / "docs" / "results.md"
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
    part.add_argument("folders", type=Path, nargs="+", metavar="folder")
    part.add_argument("--to", type=Path, required=True)
    part.add_argument("--add", action="store_true", help="keep the other runs that the file holds")
    part.add_argument("--results", default=FILE, help="name of the results file of each stage")
    part.add_argument("--timed", type=Path, help="results of draftopd.evaluate, whose clocks are taken")
    part.set_defaults(run=lambda args: join(args.folders, args.to, args.results, args.timed, args.add))
    part = parts.add_parser("check", help="compare docs/results.md with the small files")
    part.add_argument("--write", action="store_true", help="write the tables instead")
    part.set_defaults(run=lambda args: check(args.write))
    part = parts.add_parser("picture", help="draw the gain of new prompts against the SFT before")
    part.add_argument("name", help="of a file in benchmarks/results/study")
    part.add_argument("--to", type=Path, required=True)
    part.set_defaults(run=lambda args: picture(args.name).savefig(args.to, dpi=120))
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
        result = replace(_trained(load(path)), answers=_answers(found, temperature, cache))
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


def join(folders: Sequence[Path], to: Path, name: str, timed: Path | None, add: bool) -> None:
    """Keeps what tables need: per run its cost and curve, per test prompt the committed tokens and the blocks.

    Args:
        timed: results of final drafters that were timed after the study, under the names of their stages.
        add: to the file that there is, of the same prompts and decoding.
    """
    paths = {path.parent.name: path for folder in folders for path in sorted(folder.glob(f"*/{name}"))}
    if not paths:
        where = ", ".join(map(str, folders))
        raise DraftError(f"no {name} in the stages of {where}: run experiment=study with hydra.run.dir={where}")
    found = {stage: load(path) for stage, path in paths.items()}
    results = {stage: _trained(file) for stage, file in found.items()}
    answers = next((result.answers for result in results.values() if result.answers), [])  # a search has none
    document: dict[str, Any] = {
        "git_commit": sorted({json.loads(path.read_text())["git_commit"] for path in paths.values()}),
        "decoding": asdict(next(iter(found.values())).decoding),
        "sets": [answer.set for answer in answers],
        "runs": {stage: _small(result) for stage, result in results.items()},
    }
    if add:
        _keep(json.loads(to.read_text()), document, to)
    for clocked in load(timed).results if timed else ():
        document["runs"][clocked.name]["timed"] = _timed(clocked)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(document, separators=(",", ":")).replace('"runs":{', '"runs":{\n').replace("}},", "}},\n"))


def _keep(saved: dict[str, Any], document: dict[str, Any], to: Path) -> None:
    """Puts the runs of a small file into a new one."""
    seed = {"seed": document["decoding"]["seed"]}  # that of the run, as in one study of several seeds
    same = {"decoding": saved["decoding"] | seed == document["decoding"], "sets": saved["sets"] == document["sets"]}
    if unlike := [key for key, alike in same.items() if not alike]:
        raise DraftError(f"{to} has other {' and '.join(unlike)}: name another file, or leave out --add")
    document["git_commit"] = sorted({*saved["git_commit"], *document["git_commit"]})
    document["runs"] = dict(sorted({**saved["runs"], **document["runs"]}.items()))


def _trained(results: Results) -> Result:
    """Not what it started from, which may be there too."""
    return next(result for result in results.results if result.training)


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
        "held": [sum(of) for of in zip(*(c.held for c in counts), strict=True)],
        "drafted": [sum(of) for of in zip(*(c.drafted for c in counts), strict=True)],
        "timed": _timed(result),
    }


def _timed(result: Result) -> dict[str, list[float]]:
    """By the place of the test prompt."""
    return {str(i): _clocks(a) for i, a in enumerate(result.answers) if a.speculative and a.plain}


def _clocks(answer: run.Answer) -> list[float]:
    """Tokens and seconds of speculative, then of plain decoding."""
    return [v for c in (answer.speculative, answer.plain) if c for v in (c.tokens, round(c.seconds, 4))]


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

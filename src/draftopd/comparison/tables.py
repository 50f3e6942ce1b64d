"""Runs side by side as a table: acceptance, speed, cost, and the paired difference to a reference run."""

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.table import Table

from draftopd.comparison.runs import Run, difference, flops_before
from draftopd.evaluation.stats import Estimate


def table(runs: Sequence[Run], reference: Run) -> pd.DataFrame:
    """One row per run, the longest acceptance length first.

    PFLOPs: those of the run that it started from, where they are known, plus its own; minutes are its own.
    """
    rows = []
    for run in sorted(runs, key=lambda run: -run.acceptance_length.mean):
        training, before = run.result.training, flops_before(run, runs) / 1e15
        paired = None if run is reference else difference(run, reference)
        rows.append(
            {
                "run": run.name,
                "τ [95 %]": str(run.acceptance_length),
                "τ pooled": f"{run.scores['acceptance_length_pooled'].value:.2f}",
                f"τ - {reference.name} [95 %]": _difference(paired, run, reference),
                "p": paired.p_text if isinstance(paired, Estimate) else "",
                "prompts": len(run.result.answers),
                "speedup": f"{run.scores['speedup'].value:.2f}x" if "speedup" in run.scores else "",
                "PFLOPs": (f"{before:.3g}+" if before else "") + f"{training.flops / 1e15:.3g}" if training else "",
                "minutes": f"{training.seconds / 60:.1f}" if training else "",
                "commit": _short(run.origin.get("git_commit", "")),
            }
        )
    return pd.DataFrame(rows).set_index("run")


def _difference(paired: Estimate | str | None, run: Run, reference: Run) -> str:
    """Says so where it rests on other prompts than the two runs' own."""
    if paired is None or isinstance(paired, str):
        return paired or ""
    fewer = paired.count < max(len(run.result.answers), len(reference.result.answers))
    return paired.text("+.2f") + (f" on {paired.count} common prompts" if fewer else "")


def _short(commit: str) -> str:
    """Seven digits, and a plus where the tree differed."""
    return commit[:7] + ("+" if "+" in commit else "")


def in_terminal(runs: Sequence[Run], reference: Run) -> Iterator[Table]:
    """The same in parts that fit 80 columns."""
    whole = table(runs, reference)
    paired = f"τ - {reference.name} [95 %]"
    title = f"{len(reference.result.answers)} prompts; τ = acceptance length, bonus included"
    yield _part(whole[["τ [95 %]", "speedup", "PFLOPs", "minutes"]], title)
    if len(runs) > 1:
        title = f"difference of τ to {reference.name}, paired over prompts"
        others = whole.drop(index=reference.name)
        yield _part(others[[paired, "p", "prompts"]].rename(columns={paired: "difference [95 %]"}), title)


def _part(rows: pd.DataFrame, title: str) -> Table:
    out = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    out.add_column("run", overflow="fold")
    for name in rows.columns:
        out.add_column(str(name), justify="right", no_wrap=True)
    for name, *cells in rows.itertuples(name=None):
        out.add_row(str(name), *map(str, cells))
    return out


def commands(runs: Sequence[Run]) -> list[str]:
    """What was typed to make these runs, each once."""
    return list(dict.fromkeys(run.origin["command"] for run in runs if run.origin.get("command")))

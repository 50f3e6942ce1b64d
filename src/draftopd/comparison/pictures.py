"""Runs side by side as figures."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from draftopd.comparison.runs import Run, curve, difference, start_of
from draftopd.errors import DraftError
from draftopd.evaluation import plots, run_plots
from draftopd.evaluation.stats import Estimate


def differences(runs: Sequence[Run], reference: Run) -> dict[str, Estimate]:
    """τ less the reference's, for the runs that can be compared with it prompt by prompt."""
    found = {run.name: difference(run, reference) for run in runs if run is not reference}
    return {name: paired for name, paired in found.items() if isinstance(paired, Estimate)}


def difference_picture(runs: Sequence[Run], reference: Run) -> Figure:
    """Raises:
    DraftError: no other run was tested on the reference's prompts.
    """
    points = differences(runs, reference)
    if not points:
        raise DraftError(f"no other run was tested on the prompts of {reference.name}: nothing to compare")
    return run_plots.differences(points, reference.name)


def acceptance_picture(runs: Sequence[Run], reference: Run) -> Figure:
    """Acceptance by position, for the runs whose blocks are as long as the reference's."""
    wanted = len(reference.accept_at)
    shares = {run.name: run.accept_at for run in runs if len(run.accept_at) == wanted}
    return run_plots.acceptance(shares, reference.name)


def curve_picture(runs: Sequence[Run], reference: Run, axis: str = "flops") -> Figure:
    """τ on validation prompts against what training cost, the cost of the run that a run started from included.

    A run that others started from is shown as the point where they begin.

    Args:
        axis: `flops`, `target_tokens` or `minutes`.
    """
    starts = [start_of(run, runs) for run in runs]
    shown = [curve(run, runs) for run in runs if run not in starts]
    return plots.curves([line for line in shown if line.points], reference.name, axis)


def pictures(runs: Sequence[Run], reference: Run) -> dict[str, tuple[str, Figure]]:
    """Those that the runs have the numbers for: file name -> title and figure."""
    out = {}
    if differences(runs, reference):
        out["differences"] = f"Differences to {reference.name}", difference_picture(runs, reference)
    for axis, words in (("flops", "FLOPs"), ("minutes", "minutes")):
        if any(run.result.curve.points for run in runs):
            title = f"τ on validation prompts against training {words}"
            out[f"tau_by_{axis}"] = title, curve_picture(runs, reference, axis)
    out["acceptance_by_position"] = "Acceptance by position", acceptance_picture(runs, reference)
    return out

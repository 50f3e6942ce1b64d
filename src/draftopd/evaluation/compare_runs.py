"""Runs side by side, from MLflow only: a table, paired differences to a reference run, curves."""

from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from draftopd.errors import DraftError
from draftopd.evaluation import plots, results, run_plots
from draftopd.evaluation.curves import Curve
from draftopd.evaluation.results import Result, Results
from draftopd.evaluation.scores import Scores, compare
from draftopd.evaluation.stats import Estimate
from draftopd.tracking.store import open_store


@dataclass(frozen=True)
class Run:
    """A finished run of `fit` or `evaluate` with its numbers on the test prompts."""

    id: str
    name: str
    """MLflow's, with the start of the id where several runs share it"""
    tags: dict[str, str]
    tested: Results

    @property
    def result(self) -> Result:
        """Of the run's own drafter; in an evaluation of two, of the first."""
        return self.tested.own

    @property
    def scores(self) -> Scores:
        """Means over the sets of prompts."""
        return self.result.scores["mean"]

    @property
    def acceptance_length(self) -> Estimate:
        return self.scores["acceptance_length"].estimate()

    @property
    def tested_on(self) -> tuple:
        """Runs that agree here can be compared prompt by prompt."""
        decoding = self.tested.decoding
        return (
            self.tested.target_fingerprint,
            decoding.max_new_tokens,
            *decoding.recipe.items(),
            *((answer.set, answer.id, answer.digest) for answer in self.result.answers),
        )


def load_runs(
    tracking_uri: str, experiment: str = "draftopd", run_ids: Sequence[str] = (), names: Sequence[str] = ()
) -> list[Run]:
    """Finished runs, in the order of their start.

    Args:
        run_ids: only these runs; else all of the experiment.
        names: only runs of these names.

    Raises:
        DraftError: the store, the experiment or a run is not there, or no run has results.
    """
    client = open_store(tracking_uri)
    try:
        found = [client.get_run(run) for run in run_ids] or _finished(client, experiment)
    except MlflowException as error:
        raise DraftError(f"cannot read runs from {tracking_uri}: {str(error).splitlines()[0]}") from error
    found = sorted((r for r in found if not names or r.info.run_name in names), key=lambda r: r.info.start_time)
    tested = [(r, t) for r in found if (t := _results(client, r)) is not None]
    if not tested:
        raise DraftError(
            f"no finished run with a {results.FILE} of schema {results.SCHEMA}, of {len(found)} runs in {tracking_uri}"
        )
    counts = Counter(r.info.run_name for r, _ in tested)
    runs = []
    for r, t in tested:
        name, run_id = r.info.run_name, r.info.run_id
        runs.append(Run(run_id, name if counts[name] == 1 else f"{name} ({run_id[:6]})", r.data.tags, t))
    return runs


def _finished(client: MlflowClient, experiment: str) -> list[MlflowRun]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise DraftError(f"there is no MLflow experiment '{experiment}': name the one that mlflow.yaml had")
    runs: list[MlflowRun] = []
    token = None
    while token != "":
        page = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", page_token=token)
        runs, token = [*runs, *page], page.token or ""
    return runs


def _results(client: MlflowClient, run: MlflowRun) -> Results | None:
    """None for parents of stages, runs without a test, and whatever else has no results that this version reads."""
    if not any(file.path == results.FILE for file in client.list_artifacts(run.info.run_id)):
        return None
    with redirect_stderr(StringIO()):  # a progress bar for every small file
        path = Path(client.download_artifacts(run.info.run_id, results.FILE))
    try:
        found = results.load(path)
    except DraftError:
        return None
    own = found.own
    return found if own.answers and (own.training is None or own.run_id == run.info.run_id) else None


def reference_run(runs: Sequence[Run], name: str) -> Run:
    """The run of this name, or id.

    Raises:
        DraftError: there is none, or several.
    """
    found = [run for run in runs if name in (run.name, run.id)]
    if len(found) != 1:
        raise DraftError(f"no single run is called '{name}': choose one of {', '.join(run.name for run in runs)}")
    return found[0]


def differences(runs: Sequence[Run], reference: Run) -> dict[str, Estimate]:
    """τ less the reference's, paired over prompts; runs that were tested on other prompts are left out."""
    return {
        run.name: compare(run.result.scores, reference.result.scores)["mean"]["acceptance_length"].estimate()
        for run in runs
        if run is not reference and run.tested_on == reference.tested_on
    }


def table(runs: Sequence[Run], reference: Run) -> pd.DataFrame:
    """One row per run, the longest acceptance length first."""
    paired = differences(runs, reference)
    rows = []
    for run in sorted(runs, key=lambda run: -run.acceptance_length.mean):
        d, training = paired.get(run.name), run.result.training
        other = run.tested_on != reference.tested_on
        rows.append(
            {
                "run": run.name,
                "τ [95 %]": str(run.acceptance_length),
                "τ pooled": f"{run.scores['acceptance_length_pooled'].value:.2f}",
                f"τ - {reference.name} [95 %]": "other prompts" if other else d.text("+.2f") if d else "",
                "p": "" if d is None else d.p_text,
                "prompts": len(run.result.answers),
                "speedup": f"{run.scores['speedup'].value:.2f}x" if "speedup" in run.scores else "",
                "PFLOPs": f"{training.flops / 1e15:.3g}" if training else "",
                "minutes": f"{training.seconds / 60:.1f}" if training else "",
                "commit": _short(run.tags.get("git_commit", "")),
            }
        )
    return pd.DataFrame(rows).set_index("run")


def _short(commit: str) -> str:
    """Seven digits, and a plus where the tree differed."""
    return commit[:7] + ("+" if "+" in commit else "")


def difference_picture(runs: Sequence[Run], reference: Run) -> Figure:
    """Raises:
    DraftError: no other run was tested on the reference's prompts.
    """
    points = differences(runs, reference)
    if not points:
        raise DraftError(f"no other run was tested on the prompts of {reference.name}: nothing to compare")
    return run_plots.differences(points, reference.name)


def accept_at(run: Run) -> list[float]:
    """[K] share of blocks whose first k drafts held, among blocks that drafted so many; mean over sets of prompts."""
    return [value.value for key, value in run.scores.items() if key.startswith("accept_at/")]


def acceptance_picture(runs: Sequence[Run], reference: Run) -> Figure:
    """Acceptance by position, for the runs whose blocks are as long as the reference's."""
    wanted = accept_at(reference)
    shares = {run.name: accept_at(run) for run in runs}
    return run_plots.acceptance({k: v for k, v in shares.items() if len(v) == len(wanted)}, reference.name)


def curve_picture(runs: Sequence[Run], reference: Run, axis: str = "flops") -> Figure:
    """τ on validation prompts against what training cost, the cost of the run that a run started from included.

    A run that others started from is shown as the point where they begin.

    Args:
        axis: `flops`, `target_tokens` or `minutes`.
    """
    starts = [_start(run, runs) for run in runs]
    return plots.curves([_curve(run, runs) for run in runs if run not in starts], reference.name, axis)


def _curve(run: Run, runs: Sequence[Run]) -> Curve:
    """Where the run that it started from is shown too, the curve begins at that one's end."""
    start = _start(run, runs)
    curve = Curve(run.name, run.result.curve.points)
    return curve if start is None else curve.after(_curve(start, runs))


def _start(run: Run, runs: Sequence[Run]) -> Run | None:
    given = run.tags.get("init_from")
    return next((r for r in runs if given and given in (r.id, r.tags.get("checkpoint")) and r is not run), None)


def commands(runs: Sequence[Run]) -> list[str]:
    """What was typed to make these runs, each once."""
    return list(dict.fromkeys(run.tags["command"] for run in runs if "command" in run.tags))

"""Runs side by side, from MLflow alone: a table, paired differences to a reference run, curves."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from draftopd.errors import DraftError
from draftopd.evaluation import plots, run_plots, stats
from draftopd.evaluation.curves import Curve, Point
from draftopd.evaluation.stats import Estimate

DECODING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Run:
    """A finished training run with its numbers on the test prompts (report.StageResult, as JSON)."""

    id: str
    name: str
    """MLflow's, with the start of the id where several runs share it"""
    tags: dict[str, str]
    params: dict[str, str]
    result: dict[str, Any]

    @property
    def acceptance_lengths(self) -> list[float]:
        """One a test prompt."""
        return self.result["acceptance_lengths"]

    @property
    def tested_on(self) -> tuple:
        """Runs that agree here can be compared prompt by prompt."""
        decoding = [self.params.get(f"data.decoding.{name}") for name in DECODING]
        return self.tags.get("target_fingerprint"), *decoding, *((a["set"], a["id"]) for a in self.result["answers"])


def load_runs(
    tracking_uri: str, experiment: str = "draftopd", run_ids: Sequence[str] = (), names: Sequence[str] = ()
) -> list[Run]:
    """Finished training runs, in the order of their start.

    Args:
        run_ids: these runs alone; else all of the experiment.
        names: runs of these names alone.

    Raises:
        DraftError: the store, the experiment or a run is not there, or no run has results.
    """
    client = MlflowClient(tracking_uri)
    try:
        found = [client.get_run(run) for run in run_ids] or _finished(client, experiment)
    except MlflowException as error:
        raise DraftError(f"cannot read runs from {tracking_uri}: {str(error).splitlines()[0]}") from error
    found = sorted((r for r in found if not names or r.info.run_name in names), key=lambda r: r.info.start_time)
    results = [(r, result) for r in found if (result := _result(client, r)) is not None]
    if not results:
        raise DraftError(f"no finished training run with a results.json among {len(found)} runs in {tracking_uri}")
    counts = Counter(r.info.run_name for r, _ in results)
    named = {r.info.run_id: r.info.run_name for r, _ in results}
    return [
        Run(run_id, name if counts[name] == 1 else f"{name} ({run_id[:6]})", r.data.tags, r.data.params, result)
        for (r, result), (run_id, name) in zip(results, named.items(), strict=True)
    ]


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


def _result(client: MlflowClient, run: MlflowRun) -> dict[str, Any] | None:
    """None for parents of runs, evaluations, and whatever else has no training result of its own."""
    if not any(file.path == "results.json" for file in client.list_artifacts(run.info.run_id)):
        return None
    with redirect_stderr(StringIO()):  # a progress bar for every small file
        path = client.download_artifacts(run.info.run_id, "results.json")
    document = json.loads(Path(path).read_text())
    return next((s for s in document.get("stages", []) if s["run_id"] == run.info.run_id and "answers" in s), None)


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
        run.name: stats.paired(run.acceptance_lengths, reference.acceptance_lengths)
        for run in runs
        if run is not reference and run.tested_on == reference.tested_on
    }


def table(runs: Sequence[Run], reference: Run) -> pd.DataFrame:
    """One row a run, the longest acceptance length first."""
    paired = differences(runs, reference)
    rows = []
    for run in sorted(runs, key=lambda run: -stats.bootstrap(run.acceptance_lengths).mean):
        speedup, other = run.result["metrics"].get("speedup"), run.tested_on != reference.tested_on
        d = paired.get(run.name)
        rows.append(
            {
                "run": run.name,
                "τ [95 %]": str(stats.bootstrap(run.acceptance_lengths)),
                "τ pooled": f"{run.result['metrics']['acceptance_length_pooled']:.2f}",
                f"τ - {reference.name} [95 %]": "other prompts" if other else d.text("+.2f") if d else "",
                "p": "" if d is None else d.p_text,
                "prompts": len(run.acceptance_lengths),
                "speedup": "" if speedup is None else f"{speedup:.2f}x",
                "PFLOPs": f"{run.result['training_flops'] / 1e15:.3g}",
                "minutes": f"{run.result['seconds'] / 60:.1f}",
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
    """[K] share of blocks whose first k drafts held, among blocks that drafted so many, over all prompts."""
    answers = run.result["answers"]
    sums = [[sum(column) for column in zip(*(a[key] for a in answers), strict=True)] for key in ("held", "judged")]
    return [held / judged if judged else float("nan") for held, judged in zip(*sums, strict=True)]


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
    curve = Curve(run.name, [Point.of(saved) for saved in run.result["curve"]])
    return curve if start is None else curve.behind(_curve(start, runs))


def _start(run: Run, runs: Sequence[Run]) -> Run | None:
    given = run.tags.get("init_from")
    return next((r for r in runs if given and given in (r.id, r.tags.get("checkpoint")) and r is not run), None)


def commands(runs: Sequence[Run]) -> list[str]:
    """What was typed to make these runs, each once."""
    return list(dict.fromkeys(run.tags["command"] for run in runs if "command" in run.tags))

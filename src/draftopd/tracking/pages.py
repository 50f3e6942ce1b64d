"""What MLflow's pages show of an experiment at first: columns of its table of runs, charts, and the link to that.

MLflow keeps such a view as a tag of the experiment, as its own "Share" does.
"""

import json
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment

TAU, TAU_DELTA, TAU_VAL = "acceptance/tau", "acceptance/tau_delta", "acceptance/tau_val"
SPEEDUP, PFLOPS = "cost/speedup", "cost/pflops"
"""metrics that every run has; MLflow sorts sections of charts by name, and these come first"""
STAGE, DRAFTER, OBJECTIVE = "stage", "drafter", "objective"
"""tags"""
VIEW, CURVES = "draftopd", "draftopd-curves"
"""names of views: the table of runs, and the charts of stages"""
PAGES = "workflowType=machine_learning"
"""in links: not the pages for GenAI, which MLflow shows first"""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""of an experiment, for links without that"""
COLUMNS = [
    *(f"metrics.`{name}`" for name in (TAU, TAU_DELTA, SPEEDUP, PFLOPS)),
    "params.`seed`",
    *(f"tags.`{name}`" for name in (STAGE, DRAFTER, OBJECTIVE)),
]


def _chart(kind: str, metric: str, section: str, title: str, against: str = "") -> dict[str, Any]:
    """A chart as MLflow's pages keep it.

    Args:
        against: the metric on the other axis of a curve; empty = steps.
    """
    axis = {"xAxisKey": "metric" if against else "step", "selectedXAxisMetricKey": against, "useGlobalXaxisKey": False}
    return {
        "uuid": f"{metric}-{against or 'step'}",
        "type": kind,
        "metricKey": metric,
        "metricSectionId": section,
        "displayName": title,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
        **({"selectedMetricKeys": [metric], "lineSmoothness": 0, **axis} if kind == "LINE" else {}),
    }


def _view(facets: dict[str, Any]) -> dict[str, Any]:
    names = ("acceptance", "cost", "Model metrics", "System metrics")
    charts = [
        _chart("LINE", TAU_VAL, "acceptance", "τ on validation prompts, by step"),
        _chart("LINE", TAU_VAL, "acceptance", "τ on validation prompts, by PFLOPs of training", PFLOPS),
        _chart("BAR", TAU, "acceptance", "τ on test prompts"),
        _chart("BAR", TAU_DELTA, "acceptance", "τ on test prompts, less that of the start"),
        _chart("BAR", SPEEDUP, "cost", "speedup over plain decoding"),
        _chart("LINE", PFLOPS, "cost", "PFLOPs of training, the start's included"),
    ]
    return facets | {
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [{"uuid": n, "name": n, "display": True, "isReordered": n in names[:2]} for n in names],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "groupBy": None,
        "groupsExpanded": {},
    }


VIEWS = {
    VIEW: _view({"searchFilter": "", "orderByKey": "attributes.start_time"}),
    # runs that train, side by side: MLflow puts stages below the run that they belong to only where it sorts by time
    CURVES: _view({"searchFilter": "params.seed LIKE '%'", "orderByKey": f"metrics.`{TAU}`"}),
}
TAGS = KIND | {f"mlflow.sharedViewState.{name}": json.dumps(view) for name, view in VIEWS.items()}
"""of an experiment"""


def show(client: MlflowClient, experiment: Experiment) -> None:
    """Gives an experiment our view, where it has none or an older one."""
    for name, value in TAGS.items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def link(address: str, experiment_id: str, view: str = VIEW) -> str:
    """To the runs of an experiment.

    Args:
        address: at which MLflow's pages are served.
    """
    mode = "&compareRunsMode=CHART" if view == CURVES else ""
    page = f"experiments/{experiment_id}/runs?{PAGES}&viewStateShareKey={view}{mode}"
    return f"{address.rstrip('/')}/#/{page}"

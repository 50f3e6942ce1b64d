"""What an evaluation ends with: tables in the terminal, results.json, pictures, and all of it in MLflow."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from draftopd.evaluation import plots, scores
from draftopd.evaluation.run import Evaluation
from draftopd.evaluation.stats import Bootstrap
from draftopd.evaluation.tables import Sets, names, tables
from draftopd.tracking import command, git_commit, machine, versions


def show(evaluation: Evaluation, config: DictConfig, folder: Path) -> None:
    console = get_console()
    scored = {c.name: scores.score(c.answers) for c in evaluation.candidates}
    difference = scores.compare(*scored.values()) if len(scored) == 2 else None
    if evaluation.left_out:
        console.print(f"{evaluation.left_out} prompts were longer than max_prompt_length and left out")
    for part in tables(evaluation, scored, difference):
        console.print(part)
        console.print()
    document = _json(_document(evaluation, scored, difference, config))
    (folder / "results.json").write_text(json.dumps(document, indent=1))
    files = ["results.json", *_draw(evaluation, scored, folder)]
    _log(document, config, folder, files)
    for name in files:
        console.print(f"{'numbers' if name.endswith('json') else 'picture'}: {folder / name}", soft_wrap=True)


def _document(evaluation: Evaluation, scored: dict[str, Sets], difference: Sets | None, config: DictConfig) -> dict:
    def numbers(sets: Sets, *parts: str) -> dict:
        return {name: {k: _number(k, v, parts) for k, v in values.items()} for name, values in sets.items()}

    drafters = {}
    for c in evaluation.candidates:
        model = {
            "costs": None if c.costs is None else asdict(c.costs),
            "block_sizes": [asdict(r) for r in c.block_sizes],
        }
        prompts = [
            {"id": a.id, "set": a.set, "acceptance_lengths": [t.acceptance_length for t in a.traces]} for a in c.answers
        ]
        drafters[c.name] = {
            "scores": numbers(scored[c.name], "mean", "low", "high", "count"),
            "speed_model": model,
            "prompts": prompts,
        }
    return {
        "command": command("evaluate"),
        "commit": git_commit(),
        "target_fingerprint": evaluation.target.fingerprint,
        "decoding": asdict(evaluation.decoding),
        "checkpoint": config.checkpoint,
        "against": config.against,
        "drafters": drafters,
        "paired": difference and numbers(difference, "mean", "low", "high", "p_value", "count"),
    }


def _number(key: str, value: Bootstrap, parts: Sequence[str]) -> dict[str, float]:
    """Speeds are compared as quotients, whose null is 1."""
    estimate = asdict(value.estimate(1.0 if "speedup" in key or "per_second" in key else 0.0))
    return {part: estimate[part] for part in parts}


def _json(value: Any) -> Any:
    """NaN, which JSON does not know, becomes null: nothing was drafted, or one prompt gives no interval."""
    if isinstance(value, dict):
        return {key: _json(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _draw(evaluation: Evaluation, scored: dict[str, Sets], folder: Path) -> list[str]:
    files = []
    marks = {
        drafter: {name: {key: value.estimate() for key, value in sets[name].items()} for name in names(sets)}
        for drafter, sets in scored.items()
    }
    drawn = {"acceptance_by_position": plots.positions(marks)}
    for c in evaluation.candidates:
        if c.block_sizes:
            drawn[f"block_sizes_{c.name}"] = plots.block_sizes(c.block_sizes)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        plots.close(figure)
        files.append(f"{name}.png")
    return files


def _log(document: dict, config: DictConfig, folder: Path, files: list[str]) -> None:
    if not config.logger:
        return
    logger = instantiate(config.logger, _convert_="all")
    client, run = logger.experiment, logger.run_id
    client.log_text(run, OmegaConf.to_yaml(config, resolve=True), "config.yaml")
    client.log_dict(run, versions(), "versions.json")
    client.set_tag(run, "machine", machine())
    for key in ("command", "commit", "target_fingerprint", "checkpoint", "against"):
        client.set_tag(run, {"commit": "git_commit"}.get(key, key), str(document[key]))
    metrics: dict[str, float] = {}
    for name, values in document["drafters"]["drafter"]["scores"].items():
        prefix = "test/" if name == "mean" else f"test/{name}/"
        for key, e in values.items():
            named = {"": e["mean"], "_low": e["low"], "_high": e["high"]}
            metrics |= {prefix + key + end: value for end, value in named.items() if value is not None}
    logger.log_metrics(metrics, 0)
    for name in files:
        client.log_artifact(run, str(folder / name))
    client.set_terminated(run, "FINISHED")

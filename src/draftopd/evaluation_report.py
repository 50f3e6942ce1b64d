"""What an evaluation ends with: tables in the terminal, results.json, pictures, and all of it in MLflow."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from draftopd import pictures, scores
from draftopd.evaluation import Candidate, Evaluation
from draftopd.record import command, git_commit
from draftopd.scores import Scores
from draftopd.stats import Estimate

Sets = dict[str, Scores]
SPEEDS = ("speedup", "without prefill", "tokens/s", "plain")


def show(evaluation: Evaluation, config: DictConfig, folder: Path) -> None:
    console = get_console()
    tables = {c.name: scores.score(c.answers) for c in evaluation.candidates}
    difference = scores.compare(*tables.values()) if len(tables) == 2 else None
    if evaluation.left_out:
        console.print(f"{evaluation.left_out} prompts were longer than max_prompt_length and left out")
    console.print(_acceptance(evaluation, tables))
    console.print(_positions(tables))
    if "speedup" in next(iter(tables.values()))["mean"]:
        console.print(_speed(tables))
    for candidate in evaluation.candidates:
        if candidate.costs is not None:
            console.print(_block_sizes(candidate))
            console.print(_best(candidate), soft_wrap=True)
    for line in _differences(difference):
        console.print(line, soft_wrap=True)
    document = _document(evaluation, tables, difference, config)
    (folder / "results.json").write_text(json.dumps(document, indent=1))
    files = ["results.json", *_draw(evaluation, tables, folder)]
    _log(document, config, folder, files)
    for name in files:
        console.print(f"{'numbers' if name.endswith('json') else 'picture'}: {folder / name}", soft_wrap=True)


def _cell(scores: Scores, key: str) -> str:
    return str(scores[key].estimate()) if key in scores else "-"


def _acceptance(evaluation: Evaluation, tables: dict[str, Sets]) -> Table:
    decoding = evaluation.decoding
    how = "greedy" if decoding.greedy else f"temperature {decoding.temperature}, {decoding.rule.replace('_', ' ')}"
    title = f"{how}, at most {decoding.max_new_tokens} new tokens; τ = acceptance length, bonus included [95 %]"
    table = _table(title, "set", "drafter", right=("n", "τ", "pooled"))
    for name, drafter, values in _lines(tables):
        lengths = [_cell(values, key) for key in ("acceptance_length", "acceptance_length_pooled")]
        table.add_row(name, drafter, str(values["acceptance_length"].count), *lengths)
    return table


def _speed(tables: dict[str, Sets]) -> Table:
    table = _table("one prompt at a time, beside plain decoding [95 %]", "set", "drafter", right=SPEEDS)
    for name, drafter, values in _lines(tables):
        rates = [f"{values[key].value:.1f}" for key in ("tokens_per_second", "tokens_per_second_plain")]
        table.add_row(name, drafter, _cell(values, "speedup"), _cell(values, "decode_speedup"), *rates)
    return table


def _lines(tables: dict[str, Sets]) -> Iterator[tuple[str, str, Scores]]:
    for name in _names(next(iter(tables.values()))):
        for drafter, values in tables.items():
            yield name, drafter, values[name]


def _table(title: str, *left: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _positions(tables: dict[str, Sets]) -> Table:
    """One drafter: marginal and conditional acceptance; two: the marginal ones side by side."""
    table = _table("acceptance by position, mean over sets [95 %]", right=("k",))
    kinds = {"accept_at": "the first k held", "accept_at_given": "k held, if k - 1 did"}
    shown = [(drafter, key) for drafter in tables for key in (kinds if len(tables) == 1 else ["accept_at"])]
    for drafter, key in shown:
        table.add_column(kinds[key] if len(tables) == 1 else f"{drafter}: {kinds[key]}", justify="right", no_wrap=True)
    for k in range(1, max(len(_slots(sets["mean"])) for sets in tables.values()) + 1):
        table.add_row(str(k), *(_cell(tables[drafter]["mean"], f"{key}/{k}") for drafter, key in shown))
    return table


def _slots(values: Scores) -> list[int]:
    return sorted(int(key.split("/")[1]) for key in values if key.startswith("accept_at/"))


def _block_sizes(candidate: Candidate) -> Table:
    costs = candidate.costs
    assert costs is not None
    title = f"{candidate.name}: speedup by block size W; ms a step behind {costs.length} tokens, "
    columns = ("W", "draft", "verify", "predicted", "τ", "model", "measured", "to model")
    table = _table(title + f"plain {_ms(costs.verify[1])}", right=columns)
    for row in candidate.block_sizes:
        size = row.block_size
        speeds = [f"{v:.2f}x" if v == v else "-" for v in (row.predicted, row.model, row.measured)]
        parts = [str(size), _ms(costs.draft[size]), _ms(costs.verify[size]), speeds[0], f"{row.acceptance_length:.2f}"]
        table.add_row(*parts, *speeds[1:], f"{row.measured / row.model:.3f}")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _best(candidate: Candidate) -> str:
    model = max(candidate.block_sizes, key=lambda row: row.model)
    measured = max(candidate.block_sizes, key=lambda row: row.measured)
    return (
        f"{candidate.name}: best block size on this machine: {measured.block_size} measured "
        f"({measured.measured:.2f}x), {model.block_size} by the model ({model.model:.2f}x)"
    )


def _differences(difference: Sets | None) -> Iterator[str]:
    """τ as a difference, speed as a quotient, both paired over prompts."""
    for name in _names(difference or {}):
        values = (difference or {})[name]
        if "acceptance_length" in values:
            e = values["acceptance_length"].estimate()
            interval = f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"
            yield f"{name}: τ of drafter - against: {interval}, {_paired(e)}"
        if "speedup" in values and values["speedup"].count > 1:  # one prompt has no spread
            e = values["speedup"].estimate(null=1.0)
            yield f"{name}: speed of drafter / against: {e.mean:.3f} [{e.low:.3f}, {e.high:.3f}], {_paired(e)}"


def _paired(estimate: Estimate) -> str:
    p_value = f"= {estimate.p_value:.3f}" if estimate.p_value >= 0.001 else "< 0.001"
    return f"p {p_value}, paired over {estimate.count} prompts"


def _names(sets: Sets) -> list[str]:
    """The sets, and their mean where there are several."""
    names = list(sets)
    return names if len(names) > 2 else names[:1]


def _document(evaluation: Evaluation, tables: dict[str, Sets], difference: Sets | None, config: DictConfig) -> dict:
    def numbers(sets: Sets, null: Any = lambda key: 0.0) -> dict:
        return {name: {k: asdict(v.estimate(null(k))) for k, v in values.items()} for name, values in sets.items()}

    drafters = {}
    for c in evaluation.candidates:
        histogram = pictures.histogram([t for a in c.answers for t in a.drafted])
        model = {
            "costs": None if c.costs is None else asdict(c.costs),
            "block_sizes": [asdict(r) for r in c.block_sizes],
        }
        prompts = [
            {"id": a.id, "set": a.set, "acceptance_lengths": [t.acceptance_length for t in a.traces]} for a in c.answers
        ]
        drafters[c.name] = {
            "scores": numbers(tables[c.name]),
            "accepted_histogram": histogram,
            "speed_model": model,
            "prompts": prompts,
        }
    null = lambda key: 1.0 if "speedup" in key or "per_second" in key else 0.0  # noqa: E731
    return {
        "command": command("evaluate"),
        "commit": git_commit(),
        "target_fingerprint": evaluation.target.fingerprint,
        "decoding": asdict(evaluation.decoding),
        "checkpoint": config.checkpoint,
        "against": config.against,
        "drafters": drafters,
        "paired": None if difference is None else numbers(difference, null),
    }


def _draw(evaluation: Evaluation, tables: dict[str, Sets], folder: Path) -> list[str]:
    names = []
    curves = {
        drafter: {k: sets["mean"][f"accept_at/{k}"].estimate() for k in _slots(sets["mean"])}
        for drafter, sets in tables.items()
    }
    drawn = {"acceptance_by_position": pictures.positions(curves)}
    for c in evaluation.candidates:
        drawn[f"rejections_{c.name}"] = pictures.rejections([t for a in c.answers for t in a.drafted])
        if c.block_sizes:
            drawn[f"block_sizes_{c.name}"] = pictures.block_sizes(c.block_sizes)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        pictures.close(figure)
        names.append(f"{name}.png")
    return names


def _log(document: dict, config: DictConfig, folder: Path, files: list[str]) -> None:
    if not config.logger:
        return
    logger = instantiate(config.logger, _convert_="all")
    client, run = logger.experiment, logger.run_id
    client.log_text(run, OmegaConf.to_yaml(config, resolve=True), "config.yaml")
    for key in ("command", "commit", "target_fingerprint", "checkpoint", "against"):
        client.set_tag(run, {"commit": "git_commit"}.get(key, key), str(document[key]))
    metrics: dict[str, float] = {}
    for name, values in document["drafters"]["drafter"]["scores"].items():
        prefix = "test/" if name == "mean" else f"test/{name}/"
        for key, e in values.items():
            if e["mean"] == e["mean"]:
                metrics |= {prefix + key: e["mean"], f"{prefix}{key}_low": e["low"], f"{prefix}{key}_high": e["high"]}
    logger.log_metrics(metrics, 0)
    for name in files:
        client.log_artifact(run, str(folder / name))
    client.set_terminated(run, "FINISHED")

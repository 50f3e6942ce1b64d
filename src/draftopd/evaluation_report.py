"""What an evaluation ends with: tables in the terminal, results.json, pictures, and all of it in MLflow."""

import json
from collections.abc import Iterator
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

Sets = dict[str, Scores]


def show(evaluation: Evaluation, config: DictConfig, folder: Path) -> None:
    console = get_console()
    tables = {c.name: scores.score(c.answers) for c in evaluation.candidates}
    difference = scores.compare(*tables.values()) if len(tables) == 2 else None
    if evaluation.left_out:
        console.print(f"{evaluation.left_out} prompts were longer than max_prompt_length and left out")
    console.print(_overview(evaluation, tables))
    console.print(_positions(tables))
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


def _cell(scores: Scores, key: str, unit: str = "") -> str:
    if key not in scores:
        return "-"
    e = scores[key].estimate()
    return f"{e.mean:.2f}{unit} [{e.low:.2f}, {e.high:.2f}]"


def _overview(evaluation: Evaluation, tables: dict[str, Sets]) -> Table:
    decoding = evaluation.decoding
    how = "greedy" if decoding.greedy else f"temperature {decoding.temperature}, {decoding.rule.replace('_', ' ')}"
    table = Table(
        title=f"{how}, at most {decoding.max_new_tokens} new tokens; [95 % over prompts]", title_justify="left"
    )
    for column in ("set", "drafter", "n", "τ a response", "τ pooled", "speedup", "tokens/s", "plain"):
        table.add_column(column, justify="left" if column in ("set", "drafter") else "right", no_wrap=True)
    for name in next(iter(tables.values())):
        for drafter, sets in tables.items():
            values = sets[name]
            speeds = [_plain(values, key) for key in ("tokens_per_second", "tokens_per_second_plain")]
            cells = [_cell(values, "acceptance_length"), _cell(values, "acceptance_length_pooled")]
            count = str(values["acceptance_length"].count)
            table.add_row(name, drafter, count, *cells, _cell(values, "speedup", "x"), *speeds)
    return table


def _plain(values: Scores, key: str) -> str:
    return f"{values[key].value:.1f}" if key in values else "-"


def _positions(tables: dict[str, Sets]) -> Table:
    table = Table(title="acceptance by position, mean over sets", title_justify="left")
    table.add_column("k", justify="right")
    for drafter in tables:
        table.add_column(f"{drafter}: first k held", justify="right", no_wrap=True)
        table.add_column("k held, given k - 1 did", justify="right", no_wrap=True)
    most = max(len(_slots(sets["mean"])) for sets in tables.values())
    for k in range(1, most + 1):
        cells = [
            _cell(sets["mean"], f"{key}/{k}") for sets in tables.values() for key in ("accept_at", "accept_at_given")
        ]
        table.add_row(str(k), *cells)
    return table


def _slots(values: Scores) -> list[int]:
    return sorted(int(key.split("/")[1]) for key in values if key.startswith("accept_at/"))


def _block_sizes(candidate: Candidate) -> Table:
    costs = candidate.costs
    assert costs is not None
    title = f"{candidate.name}: milliseconds of a step behind {costs.length} tokens; plain {_ms(costs.verify[1])}"
    table = Table(title=title, title_justify="left")
    for column in ("block size", "draft", "verify", "predicted", "τ pooled", "model", "measured", "measured/model"):
        table.add_column(column, justify="right", no_wrap=True)
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
    for name, values in (difference or {}).items():
        for key, null in (("acceptance_length", 0.0), ("speedup", 1.0)):
            if key in values:
                e = values[key].estimate(null)
                p_value = f"= {e.p_value:.3f}" if e.p_value >= 0.001 else "< 0.001"
                sign = "-" if null == 0 else "/"
                yield (
                    f"{name}: {key} drafter {sign} against: {e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}], "
                    f"p {p_value}, paired over {e.count} prompts"
                )


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
    metrics = {}
    for name, values in document["drafters"]["drafter"]["scores"].items():
        prefix = "test/" if name == "mean" else f"test/{name}/"
        for key, e in values.items():
            if e["mean"] == e["mean"]:
                metrics |= {prefix + key: e["mean"], f"{prefix}{key}_low": e["low"], f"{prefix}{key}_high": e["high"]}
    logger.log_metrics(metrics, 0)
    for name in files:
        client.log_artifact(run, str(folder / name))
    client.set_terminated(run, "FINISHED")

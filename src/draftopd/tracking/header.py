"""The header of a run: what ran, where, and on what. One function writes it into MLflow, whoever starts the run."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from draftopd.tracking.pages import DRAFTER, OBJECTIVE, STAGE
from draftopd.tracking.run import Run

PACKAGES = ("draftopd", "torch", "lightning", "transformers", "torchmetrics", "hydra-core", "mlflow")
COMMANDS = ("fit", "evaluate", "compare", "chat", "export", "check")
KINDS = (DRAFTER, OBJECTIVE)
"""sections whose kinds are tags"""
PARAMS = (
    "target",
    "drafter",
    "objective",
    "random_objective",
    "data",
    "traces",
    "prompts",
    "module",
    "budget",
    "decoding",
    "seed",
)
"""groups of the config that are logged as MLflow parameters, flattened: `drafter.num_layers`"""


def header() -> dict[str, str]:
    """Command, commit and machine of this process."""
    return {"command": command(), "git_commit": git_commit(), "machine": machine()}


def write_header(run: Run, config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Writes what a run was into MLflow: tags, parameters, `config.yaml` and `versions.json`.

    Args:
        config: resolved.
        fingerprints: further tags: of the target and the prompts, the checkpoint, what the run started from.
    """
    run.log_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), "config.yaml")
    run.log_text(json.dumps(versions(), indent=2), "versions.json")
    run.log_tags(header() | dict(fingerprints))
    if not config.get("stages"):  # each stage has tags and parameters of its own
        run.log_tags(
            {STAGE: str(config["name"])} | {name: in_short(config[name]) for name in KINDS if config.get(name)}
        )
        run.log_params({key: str(value)[:500] for name in PARAMS for key, value in _flat(name, config.get(name))})


def in_short(section: Mapping[str, Any]) -> str:
    """What a section makes, in short: its class, and the divergence that it has."""
    words = [str(part["_target_"]).rpartition(".")[2] for part in (section, section.get("divergence")) if part]
    return " ".join(words)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    elif value is not None or "." in prefix:
        yield prefix, value


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def machine() -> str:
    return f"{platform.platform()}, python {platform.python_version()}"


def command(words: Sequence[str] | None = None) -> str:
    """What was typed, quoted so that a shell takes it again; with other words, if these are given."""
    name = Path(sys.argv[0]).stem.removeprefix("draftopd-")
    program = ["python", "-m", f"draftopd.{name}"] if name in COMMANDS else sys.argv[:1]
    return shlex.join([*program, *(sys.argv[1:] if words is None else words)])


@cache
def git_commit() -> str:
    """Commit of the code at the first call, with "+changes" where the tree differs; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()

    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""What a run was: its versions, machine, commit and command, as MLflow keeps them."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("draftopd", "torch", "lightning", "transformers", "torchmetrics", "hydra-core", "mlflow")


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def machine() -> str:
    return f"{platform.platform()}, python {platform.python_version()}"


def command(name: str = "fit") -> str:
    return " ".join([f"python -m draftopd.{name}", *sys.argv[1:]])


def git_commit() -> str:
    """Commit of the code that runs, with "+changes" where the tree differs; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()

    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""vLLM's own environment, which pins other versions than this package: made on first use, asked through files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from draftopd.errors import DraftError

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "vllm-requirements.txt"
SETTINGS = {  # vLLM takes these from nowhere else
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as OMP_NUM_THREADS allows, on whatever cores are free
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def ask_vllm(environment: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of `serve_vllm.py` to a request.

    Raises:
        DraftError: the environment cannot be made, or vLLM stopped.
    """
    python = ensure(environment)
    with TemporaryDirectory(prefix="serve-check-") as scratch:
        source, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        source.write_text(json.dumps(request))
        command = [str(python), str(HERE / "serve_vllm.py"), str(source), str(answer)]
        # stdout=2 is stderr: vLLM logs to stdout, and ours ends with the result
        done = subprocess.run(command, stdout=2, check=False, cwd=scratch, env=clean() | SETTINGS)
        if done.returncode != 0 or not answer.exists():
            raise DraftError(f"vLLM stopped with exit code {done.returncode}: its message stands above")
        return json.loads(answer.read_text())


def ensure(environment: Path, requirements: Path = REQUIREMENTS, name: str = "vLLM") -> Path:
    """The environment's Python; installs what a file of requirements names unless that was done.

    Raises:
        DraftError: pip failed.
    """
    python, ready, wanted = environment / "bin" / "python", environment / ".ready", requirements.read_text()
    if ready.exists() and ready.read_text() == wanted:
        return python.absolute()
    print(f"installing {name} into {environment} (once; 4 GB, minutes)", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        # torch first and with what it needs: CPU machines keep the CPU build that the pin finds
        [*pip, "-c", str(requirements), "torch"],
        [*pip, "--no-deps", "-r", str(requirements)],
    ):
        if subprocess.run(command, stdout=2, check=False, env=clean()).returncode != 0:
            raise DraftError(f"cannot make {name}'s environment {environment}: see the message above and run again")
    ready.write_text(wanted)
    return python.absolute()


def clean() -> dict[str, str]:
    """Our environment without our Python's paths, which lead to packages that vLLM does not want."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

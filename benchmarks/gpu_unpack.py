"""Puts a bundle of `gpu_bundle.py` together again, on a machine without a network: python gpu_unpack.py [FOLDER]

Standard library alone. Every part is checked by its sha256 first.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

NEXT = """unpacked into {folder}

    cd {folder}/tree
    python -m pip install --no-index --find-links ../wheels {requirements}
    PYTHONPATH=src python -m benchmarks.gpu_check {options}
"""


def main(words: Sequence[str]) -> None:
    here = Path(__file__).parent
    folder = Path(words[0] if words else here / "draftopd-gpu").absolute()
    facts = json.loads((here / "bundle.json").read_text())
    bad = [name for name, digest in facts["parts"].items() if digest != sha256(here / name)]
    if bad:
        sys.exit(f"error: missing or not as they were made: {', '.join(bad)}; copy them again")
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "bundle.tar.xz"
    with whole.open("wb") as out:
        for name in facts["parts"]:
            out.write((here / name).read_bytes())
    with tarfile.open(whole, "r:xz") as archive:
        archive.extractall(folder, filter="data")
    whole.unlink()
    if (folder / "target").exists():
        keep_target(folder / "target", Path("~/.cache/draftopd").expanduser() / facts["target"])
    options = "--checkpoint ../drafter.ckpt" if (folder / "drafter.ckpt").exists() else ""
    print(NEXT.format(folder=folder, requirements=" ".join(facts["requirements"]), options=options).rstrip())


def sha256(file: Path) -> str | None:
    if not file.exists():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def keep_target(made: Path, place: Path) -> None:
    """Moves the target to where the package looks for it, unless it is there."""
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted(made.iterdir(), key=lambda file: file.name == "complete.json"):  # that file last: it says whole
        if not (place / file.name).exists():
            shutil.move(file, place / file.name)


if __name__ == "__main__":
    main(sys.argv[1:])

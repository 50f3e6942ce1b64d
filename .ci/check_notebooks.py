"""Notebooks ship the outputs of real runs: no output may be an error or name a folder of someone's machine."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ABSOLUTE = re.compile(r"(?<![\w.:/<~-])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w+")


def faults(path: Path) -> Iterator[str]:
    for number, cell in enumerate(json.loads(path.read_text())["cells"], 1):
        texts = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"{path}: cell {number} ends with {output['ename']}: run the notebook again"
            shown = {"text": output.get("text", ""), **output.get("data", {})}
            texts += ["".join(value) for kind, value in shown.items() if not kind.startswith("image/")]
        for found in ABSOLUTE.findall("\n".join(texts)):
            yield f"{path}: cell {number} names {found}: use a relative path"


if __name__ == "__main__":
    found = [fault for name in sys.argv[1:] for fault in faults(Path(name))]
    sys.exit("\n".join(found) or 0)

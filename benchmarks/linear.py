"""Linear layers of SmolLM2-135M on this processor: torch's own, oneDNN's, and both libraries' with packed weights.

    python -m benchmarks.linear

Each measurement runs the products of all 30 layers and of the head once, in turns; medians of 20 turns. The last line
is one JSON object with the ratios torch / chosen by number of rows; chosen are the packed weights of the library that
draftopd takes on this processor (for one row it takes torch's own).
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarks.bench import machine, versions
from torch import Tensor

from draftopd.target.cpu.linear import LIBRARY, MKL, Library, OneDNN

SIZE, INNER, HEADS, VOCABULARY, LAYERS = 576, 1536, 192, 49152, 30
SHAPES = [(SIZE, SIZE), (HEADS, SIZE), (HEADS, SIZE), (SIZE, SIZE), (INNER, SIZE), (INNER, SIZE), (SIZE, INNER)]
ROWS = (1, 4, 8, 16, 64, 256)
TURNS = 20


def main() -> None:
    if LIBRARY is None:
        raise SystemExit("libraries are chosen on x86 processors alone: here linear layers are torch's own")
    torch.manual_seed(0)
    weights = [torch.randn(shape) * 0.02 for shape in [*SHAPES * LAYERS, (VOCABULARY, SIZE)]]
    ways: dict[str, Callable[[Tensor, int], Tensor]] = {
        "torch": lambda x, i: F.linear(x, weights[i]),
        "onednn": lambda x, i: OneDNN().plain(x, weights[i], None),
        "onednn_packed": packed(OneDNN(), weights),
        **({"mkl_packed": packed(MKL(), weights)} if torch.backends.mkl.is_available() else {}),
    }
    found = {rows: {name: 1e3 * statistics.median(s) for name, s in measure(ways, weights, rows)} for rows in ROWS}
    for rows, medians in found.items():
        print(f"{rows:4d} rows: " + ", ".join(f"{name} {value:6.1f} ms" for name, value in medians.items()))
    chosen = "mkl_packed" if isinstance(LIBRARY, MKL) else "onednn_packed"
    facts = {
        "machine": machine(torch.device("cpu")),
        "versions": versions("torch"),
        "chosen": chosen,
        "milliseconds": found,
    }
    (Path(__file__).parent / "results" / "linear-cpu.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({rows: round(m["torch"] / m[chosen], 2) for rows, m in found.items()}))


def packed(library: Library, weights: list[Tensor]) -> Callable[[Tensor, int], Tensor]:
    layouts = [library.pack(weight) for weight in weights]
    return lambda x, i: library.packed(x, layouts[i], weights[i], None)


@torch.no_grad()
def measure(
    ways: dict[str, Callable[[Tensor, int], Tensor]], weights: list[Tensor], rows: int
) -> list[tuple[str, list[float]]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    inputs = {size: torch.randn(rows, size) for size in (SIZE, INNER)}
    for turn in range(TURNS + 2):  # two turns warm up
        for name, product in ways.items():
            began = time.perf_counter()
            for i, weight in enumerate(weights):
                product(inputs[weight.shape[1]], i)
            seconds[name] += [time.perf_counter() - began] if turn > 1 else []
    return list(seconds.items())


if __name__ == "__main__":
    main()

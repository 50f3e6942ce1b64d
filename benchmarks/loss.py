"""Peak memory and time of a loss and its gradient, all logits at once and in chunks: `make bench-loss`.

    python -m benchmarks.loss [rows [vocabulary [hidden_size]]]

Every case is a process of its own. Memory is the peak of the resident set above what it was before the loss. The
hidden size is small, so that what counts are the logits. Gradients of the hidden states are compared.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from draftopd.head import Head
from draftopd.losses import CrossEntropy, DraftOPD
from draftopd.rows import Rows
from draftopd.terms import chunked_loss

OBJECTIVES = {"sft": CrossEntropy(decay=7.0), "draft_opd": DraftOPD()}
CHUNK_ROWS = 512  # the default of conf/module
SLOTS = 15


def blocks_of_rows(rows: int, vocabulary: int, generator: torch.Generator) -> Rows:
    """Blocks of 15 drafts of which 0 to 15 were accepted."""
    slot, block = torch.arange(rows) % SLOTS + 1, torch.arange(rows) // SLOTS
    kept = torch.randint(0, SLOTS + 1, (rows,), generator=generator)[block]
    draft, text = torch.randint(0, vocabulary, (2, rows), generator=generator)
    return Rows(draft, torch.where(slot <= kept, draft, text), slot, kept, block)


def case(name: str, rows: int, vocabulary: int, size: int, chunk_rows: int, file: str) -> None:
    """One loss in this process: bytes and seconds to stdout, the gradient to a file."""
    generator, objective = torch.Generator().manual_seed(0), OBJECTIVES[name]
    hidden, judged = torch.randn(2, rows, size, generator=generator)
    drafted = blocks_of_rows(rows, vocabulary, generator)
    head = Head(torch.randn(vocabulary, size, generator=generator) / size**0.5)
    coefficients = {name: 1 / total.sum() for name, total in objective.denominators(drafted).items()}
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    began = time.perf_counter()
    loss, _ = chunked_loss(
        objective, drafted, head, hidden.requires_grad_(), head, judged, None, chunk_rows, coefficients
    )
    loss.backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(hidden.grad, file)
    print(json.dumps({"bytes": peak - before, "seconds": seconds}))


def compare(name: str, rows: int, vocabulary: int, size: int, chunk_rows: int = CHUNK_ROWS) -> dict[str, float]:
    """Both ways in processes of their own, and the largest difference of a gradient over the largest gradient."""
    found, gradients = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for way, chunk in (("whole", rows), ("chunks", chunk_rows)):
            file = f"{folder}/{way}.pt"
            words = [name, rows, vocabulary, size, chunk, file]
            command = [sys.executable, "-m", "benchmarks.loss", "case", *map(str, words)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            found |= {f"{key}_{way}": value for key, value in json.loads(run.stdout).items()}
            gradients.append(torch.load(file))
    whole, chunks = gradients
    found["share"] = found["bytes_chunks"] / found["bytes_whole"]
    found["gradient_difference"] = float((whole - chunks).abs().max() / whole.abs().max())
    return found


def main() -> None:
    sizes = [*map(int, sys.argv[1:]), *(4096, 151_936, 64)[len(sys.argv) - 1 :]]
    results = {name: compare(name, *sizes) for name in OBJECTIVES}
    for name, found in results.items():
        whole, chunks = (
            f"{found[f'bytes_{w}'] / 1e9:.2f} GB, {found[f'seconds_{w}']:.1f} s" for w in ("whole", "chunks")
        )
        print(
            f"{name}: {whole} whole; {chunks} in chunks of {CHUNK_ROWS}; {found['share']:.3f} of the memory; "
            f"gradients differ by {found['gradient_difference']:.1e}"
        )
    facts = {
        "rows": sizes[0],
        "vocabulary": sizes[1],
        "hidden_size": sizes[2],
        "chunk_rows": CHUNK_ROWS,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    out = Path(__file__).parent / "results" / "loss-memory-cpu.json"
    out.write_text(json.dumps({**facts, **results}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        case(sys.argv[2], *map(int, sys.argv[3:7]), sys.argv[7])
    else:
        main()

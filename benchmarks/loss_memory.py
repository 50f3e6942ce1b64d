"""How much memory does the loss take? Logits of a chunk of rows at a time, or of all rows at once.

    python -m benchmarks.loss_memory RESULT --objective draft_opd --rows 4096 --vocabulary 151936 --chunk-rows 512

runs one backward pass of `DraftModule.loss` and writes what it took; `measure` starts a fresh process for each way.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.bench import blank, rounds_of, spread
from benchmarks.memory import cost
from benchmarks.train_step import module

from draftopd.checkpoints.native import Restored
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.trace import ReplayBatch

HIDDEN, SLOTS, TEXTS, LENGTH = 64, 8, 16, 128
FACTS = ("loss", "peak_bytes", "seconds")
NOTES = {
    "pair": f"random, of hidden size {HIDDEN}, so that logits are nearly all of the memory",
    "peak_bytes": "most memory in forward and backward of DraftModule.loss, above what the process held before",
    "ratio": "peak of the loss in chunks / of the same loss in one chunk",
    "largest_gradient_difference": "|chunked - unchunked| / largest |gradient|, over all weights of the drafter",
}


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    sizes = {"rows": args.loss_rows, "vocabulary": args.loss_vocabulary, "chunk_rows": args.loss_chunk_rows}
    rounds: list[dict[str, Any]] = []
    for _ in rounds_of(args.loss_rounds, "memory of the loss"):
        done = {}
        for objective in args.loss_objectives:
            whole = ask(objective, **{**sizes, "chunk_rows": args.loss_rows})
            done[objective] = compared(ask(objective, **sizes), whole)
        rounds.append(done)
        save({"notes": NOTES, "settings": sizes, "rounds": rounds, "summary": summary(rounds)})


def compared(chunked: dict[str, Any], unchunked: dict[str, Any]) -> dict[str, Any]:
    pairs = [(chunked["gradients"][name], whole) for name, whole in unchunked["gradients"].items()]
    largest = max(float(whole.abs().max()) for _, whole in pairs)
    apart = max(float((part - whole).abs().max()) for part, whole in pairs)
    return {
        "chunked": {fact: chunked[fact] for fact in FACTS},
        "unchunked": {fact: unchunked[fact] for fact in FACTS},
        "ratio": chunked["peak_bytes"] / unchunked["peak_bytes"],
        "largest_gradient_difference": apart / largest,
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(rounds[0])
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r[name]["ratio"] for r in rounds]) for name in names},
        "peak_bytes": {
            f"{name}, {way}": spread([r[name][way]["peak_bytes"] for r in rounds])
            for name in names
            for way in ("unchunked", "chunked")
        },
        "largest_gradient_difference": max(r[name]["largest_gradient_difference"] for r in rounds for name in names),
    }


def ask(objective: str, rows: int, vocabulary: int, chunk_rows: int) -> dict[str, Any]:
    """What a fresh process says.

    Raises:
        DraftError: it was stopped, for memory perhaps.
    """
    with TemporaryDirectory(prefix="loss-memory-") as scratch:
        result = Path(scratch, "result.pt")
        sizes = ["--rows", str(rows), "--vocabulary", str(vocabulary), "--chunk-rows", str(chunk_rows)]
        command = [sys.executable, "-m", "benchmarks.loss_memory", str(result), "--objective", objective, *sizes]
        done = subprocess.run(command, stdout=2, check=False, cwd=Path(__file__).parents[1])
        if done.returncode != 0:
            why = f"the loss of {rows} rows in chunks of {chunk_rows} stopped with exit code {done.returncode}"
            raise DraftError(f"{why}: lower --loss-rows if memory ended")
        return torch.load(result, weights_only=True)


def backward(objective: str, rows: int, vocabulary: int, chunk_rows: int) -> dict[str, Any]:
    """One backward pass here: loss, gradients by name, seconds and memory."""
    sizes = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": HIDDEN, "hidden_size": HIDDEN}
    architecture = {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": vocabulary, **sizes}
    torch.manual_seed(0)
    target = blank(architecture, vocabulary - 1, "float32", "cpu")
    step = module(target, DFlash(target.shape, num_layers=1, block_size=SLOTS + 1), objective)
    step.chunk_rows = chunk_rows
    batch, found = blocks(rows // (SLOTS * TEXTS), vocabulary), {}

    def work() -> None:
        found["loss"] = step.loss(batch)
        found["loss"].backward()

    took = cost(work)
    gradients = {name: weight.grad for name, weight in step.drafter.named_parameters()}
    return {**took, "loss": float(found["loss"].detach()), "gradients": gradients}


def blocks(count: int, vocabulary: int) -> ReplayBatch:
    """`count` random blocks in each text, half of their drafts rejected, with random features and hidden states."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocabulary - 1, (TEXTS, LENGTH), generator=draw)
    anchors = torch.arange(count).expand(TEXTS, -1) % (LENGTH - SLOTS - 1)
    accepted = torch.randint(SLOTS + 1, anchors.shape, generator=draw)
    drafts = torch.randint(vocabulary - 1, (*anchors.shape, SLOTS), generator=draw)
    text = tokens.gather(1, (anchors[..., None] + torch.arange(1, SLOTS + 1)).flatten(1)).view_as(drafts)
    return ReplayBatch(
        tokens=tokens,
        anchors=anchors,
        drafts=torch.where(torch.arange(SLOTS) < accepted[..., None], text, drafts),
        accepted=accepted,
        drafted=torch.full_like(accepted, SLOTS),
        lengths=torch.full((TEXTS,), LENGTH),
        drafter_step=torch.zeros(TEXTS, dtype=torch.long),
        features=torch.randn(TEXTS, LENGTH, HIDDEN, generator=draw),
        target_hidden=torch.randn(*drafts.shape, HIDDEN, generator=draw),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--objective", required=True, help="a file of conf/objective")
    for name in ("--rows", "--vocabulary", "--chunk-rows"):
        parser.add_argument(name, type=int, required=True)
    given = vars(parser.parse_args())
    torch.save(backward(given["objective"], given["rows"], given["vocabulary"], given["chunk_rows"]), given["result"])


if __name__ == "__main__":
    main()

"""A training step with each objective that reads the target's distribution, beside one with cross-entropy.

    OMP_NUM_THREADS=1 python -m benchmarks.objective_cost    # the default target; --tiny for a try

Forward, backward and AdamW on one micro-batch whose features and target hidden states are at hand, in turns, with a
reduced draft vocabulary and the whole one. The drafter has the quickstart's sizes and random weights; draft_opd and
one_token_opd get blocks of which the target accepted half, the others texts. With one thread the processor's seconds of
this process are counted too, which other work on the machine disturbs less than the clock.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import full_head, machine, rounds_of, spread, versions
from benchmarks.objectives import NAMES, shipped
from benchmarks.train_step import counted, module

from draftopd.command import one_line_errors
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Trace, text_blocks

RESULT = Path(__file__).parent / "results" / "objective-cost-cpu.json"
HARD, ON_BLOCKS = "cross_entropy", ("draft_opd", "one_token_opd")
TINY = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def batch_of(target: Target, drafter: Drafter, texts: int, length: int, blocks: int) -> ReplayBatch:
    """Texts with blocks spread over them, and what the target computed for them."""
    none, layers, at = torch.zeros(0, dtype=torch.long), target.shape.num_layers, length - drafter.block_size - 1
    traces, features, hidden = [], [], []
    for number in range(texts):
        words = " ".join(f"A shop sells {i} apples at {number + 3 * i} cents each." for i in range(10, 10 + length))
        tokens = torch.tensor(target.tokenizer.encode(words)[:length])
        states = target.read(tokens[None], (*drafter.layer_ids, layers))[1][0]
        features.append(states[:, : -target.shape.hidden_size])
        hidden.append(states[:, -target.shape.hidden_size :])
        traces.append(Trace(tokens, 8, none, none.view(0, 0), none))
    anchors = [torch.linspace(8, at, blocks).long()] * texts
    return text_blocks(traces, anchors, drafter.num_draft_tokens, features, hidden)


def measure(target: Target, drafter: Drafter, batch: ReplayBatch, soft: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds of steps with these objectives over those with cross-entropy, by the processor's and by the clock."""
    steps = {}
    for name in (HARD, *soft):
        given = replace(batch, accepted=batch.accepted // 2) if name in ON_BLOCKS else batch
        steps[name] = step(target, drafter, name, given)
        steps[name]()  # loads kernels
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    names = list(steps)
    for number in rounds_of(rounds, "steps"):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start, used = time.perf_counter(), time.process_time()
            steps[name]()
            seconds[name].append((time.process_time() - used, time.perf_counter() - start))
    found: dict[str, Any] = {"batch": counted(batch)}
    for column, clock in enumerate(("processor", "clock")):
        found[f"{clock}_seconds"] = {name: spread([pair[column] for pair in pairs]) for name, pairs in seconds.items()}
        found[f"{clock}_ratios"] = {
            name: spread([a[column] / b[column] for a, b in zip(seconds[name], seconds[HARD], strict=True)])
            for name in soft
        }
    return found


def step(target: Target, drafter: Drafter, objective: str, batch: ReplayBatch) -> Callable[[], None]:
    made = module(target, drafter, objective)
    optimizer = made.make_optimizer(drafter.parameters())

    def run() -> None:
        optimizer.zero_grad()
        made.loss(batch).backward()
        optimizer.step()

    return run


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--length", type=int, default=96, help="tokens of a text")
    parser.add_argument("--blocks", type=int, default=24, help="of a text")
    parser.add_argument("--vocabulary", type=int, default=4096, help="the reduced one")
    parser.add_argument(
        "--objectives", nargs="+", choices=NAMES, help="default: all that read the target's distribution"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(words)
    torch.manual_seed(0)
    target = load.tiny({**TINY, **HEADS}) if args.tiny else load.smollm2("~/.cache/draftopd")
    size = min(args.vocabulary, target.vocab_size - 1)
    drafter = DFlash(target.shape, num_layers=2, block_size=8, num_taps=1 if args.tiny else 5, draft_vocab_size=size)
    drafter.set_vocabulary(torch.arange(size))
    batch = batch_of(target, drafter, args.texts, args.length, args.blocks)
    found: dict[str, Any] = {"machine": machine(target.device), "versions": versions("torch", "transformers")}
    soft = args.objectives or [name for name in NAMES if shipped(name).needs_target]
    for one in (drafter, full_head(drafter)):
        vocabulary = target.vocab_size if one.vocabulary is None else size
        found[str(vocabulary)] = measure(target, one, batch, soft, args.rounds)
        args.output.write_text(json.dumps(found, indent=1) + "\n")
        ratios = found[str(vocabulary)]["processor_ratios"]
        print(vocabulary, json.dumps({name: round(value["median"], 2) for name, value in ratios.items()}), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""What does an on-policy epoch's data cost? Rollouts beside drafting along texts that the target has written before.

Every round makes the same traces in every way, in an order that changes from round to round; ratios are taken within a
round.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.bench import rounds_of, spread
from benchmarks.identity import difference, differing

from draftopd.checkpoints.native import Restored
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate_rollouts

Way = Callable[[Ledger], list[Trace]]
Unlike = Callable[[Sequence[Trace], Sequence[Trace]], list[dict[str, Any]]]
RATIOS = {  # of seconds
    "redraft_vs_rollout_b1": ("rollout_b1", "redraft"),
    "redraft_vs_rollout_b8": ("rollout_b8", "redraft"),
    "redraft_replay_vs_rollout_b1": ("rollout_b1", "redraft_replay"),
    "redraft_replay_vs_rollout_b8": ("rollout_b8", "redraft_replay"),
}
NOTES = {
    "rollout": "writes the responses again and stores features and the target's hidden state for each draft, as "
    "training does",
    "redraft": "only traces: the chain of blocks along each text, all texts together, from features in memory; the "
    "target does not run",
    "redraft_replay": "and Target.replay of the new traces: everything that a rollout stores. The target reads the "
    "texts and the rejected tails after them",
    "texts": "written once, before the rounds and not timed with them",
    "ratios": "seconds of the rollout / seconds of the other, above 1 where the other is faster",
    "differing_traces": "traces that are not those of rollout_b1 of the same round; a tie, where the drafter's best "
    "two logits are within 1e-4, is decided by the order of additions and counts as none",
}


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    texts = rollout(run.target, None, prompts, Decoding(args.tokens), keep_states=True, layer_ids=run.drafter.layer_ids)
    ways = systems(run.target, run.drafter, prompts, texts, args.tokens, args.micro_batch_size)

    def unlike(traces: Sequence[Trace], others: Sequence[Trace]) -> list[dict[str, Any]]:
        """Prompts whose traces differ, and whether a tie of the drafter's logits explains it."""
        pairs = [(Rollout(traces[i], texts[i].features), Rollout(others[i])) for i in range(len(texts))]
        found = differing(traces, others)
        return [{"prompt": i, **difference(run.target, run.drafter, *pairs[i])} for i in found]

    rounds: list[dict[str, Any]] = []
    for number in rounds_of(args.redraft_rounds, "traces"):
        rounds.append(one_round(ways, number, unlike))
        save({"notes": NOTES, "rounds": rounds, "summary": summary(rounds)})


def systems(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Rollout],
    max_new_tokens: int,
    micro_batch_size: int,
) -> dict[str, Way]:
    """The ways to the traces of these prompts, by name; their texts exist, with features."""
    decoding = Decoding(max_new_tokens, len(texts))

    def rolled(batch_size: int, ledger: Ledger) -> list[Trace]:
        size = Decoding(max_new_tokens, batch_size)
        return [r.trace for r in rollout(target, drafter, prompts, size, keep_states=True, ledger=ledger)]

    def redrafted(replay: bool, ledger: Ledger) -> list[Trace]:
        fresh = redraft(target, drafter, texts, decoding, ledger=ledger)
        drafted = [r for r in fresh if len(r.trace.anchors)]
        for at in range(0, len(drafted) if replay else 0, micro_batch_size):
            replayed(drafted[at : at + micro_batch_size], ledger)
        return [r.trace for r in fresh]

    def replayed(part: list[Rollout], ledger: Ledger) -> None:
        batch = collate_rollouts(part).to(target.device)
        ledger.replay(target, batch)
        target.replay(batch, drafter.layer_ids)

    return {
        "rollout_b1": partial(rolled, 1),
        "rollout_b8": partial(rolled, 8),
        "redraft": partial(redrafted, False),
        "redraft_replay": partial(redrafted, True),
    }


def one_round(ways: dict[str, Way], number: int, unlike: Unlike) -> dict[str, Any]:
    names = list(ways)
    shift = number % len(names)
    done, traces = {}, {}
    for name in names[shift:] + names[:shift]:
        ledger, start = Ledger(), time.perf_counter()
        traces[name] = ways[name](ledger)
        seconds = time.perf_counter() - start
        tokens = sum(trace.response_length for trace in traces[name])
        done[name] = {
            "seconds": seconds,
            "response_tokens_per_second": tokens / seconds,
            "target_tokens": ledger.target_tokens,
            "flops": ledger.training_flops,
        }
    return {
        "order": list(done),
        "systems": {name: done[name] for name in names},
        "differing_traces": {name: unlike(traces[name], traces["rollout_b1"]) for name in names},
        "acceptance_length": acceptance_length(traces["rollout_b1"]),
        "ratios": {name: done[a]["seconds"] / done[b]["seconds"] for name, (a, b) in RATIOS.items()},
    }


def acceptance_length(traces: list[Trace]) -> float:
    """Mean over the responses in which something was drafted."""
    lengths = [trace.acceptance_length for trace in traces if len(trace.anchors)]
    return sum(lengths) / len(lengths) if lengths else float("nan")


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over rounds; what is counted does not change from round to round."""
    systems = rounds[0]["systems"]
    every = [one for r in rounds for found in r["differing_traces"].values() for one in found]
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r["ratios"][name] for r in rounds]) for name in RATIOS},
        "seconds": {name: spread([r["systems"][name]["seconds"] for r in rounds]) for name in systems},
        "target_tokens": {name: system["target_tokens"] for name, system in systems.items()},
        "flops": {name: system["flops"] for name, system in systems.items()},
        "acceptance_length": rounds[0]["acceptance_length"],
        "differing_traces": sum(not one["tie"] for one in every),
        "ties": sum(one["tie"] for one in every),
    }

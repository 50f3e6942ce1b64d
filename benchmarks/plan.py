"""Memory and time of training on GPUs, computed and not measured: the table of docs/scale.md.

    python -m benchmarks.plan experiment=qwen3_8b_opd
    python -m benchmarks.plan --costs experiment=qwen3_8b_opd    # of the whole training, part by part

Target and drafter are built on the meta device from the experiment's own settings; FLOPs are the ledger's, rows of a
rollout are those that `rollout.affordable_rows` allows. ASSUMED stands for what a measurement would tell.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from benchmarks.bench import blank
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.command import CONFIG_DIR
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import affordable_rows
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Trace, no_blocks
from draftopd.training.run import drafter_group

GB = 1e9
# from the configs on the hub
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
SIZES = {
    "Qwen/Qwen3-4B": {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728},
    "Qwen/Qwen3-8B": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12_288},
}


@dataclass(frozen=True)
class Assumed:
    """Of an H100 SXM and of the texts."""

    flops: float = 989e12  # dense bfloat16, the data sheet's
    flops_used: float = 0.35  # of them, in training and prefill
    bandwidth: float = 3.35e12  # bytes a second, the data sheet's
    bandwidth_used: float = 0.6  # of it, in decoding
    overhead: float = 0.03  # seconds of one block at least: Python and kernel launches of 41 eager layers
    link: float = 300e9  # bytes a second of an all-reduce within a machine
    prompt: int = 128  # tokens
    response: int = 2048  # tokens, the mean; a micro-batch of the longest decides about memory
    acceptance: float = 5.0  # tokens committed a verification
    engine_memory: float = 50e9  # bytes for keys and values in an engine that holds the target alone


ASSUMED = Assumed()
PROMPTS, PASSES = 16_000, 8  # of the paper's Draft-OPD (arXiv 2605.29343)
GPUS = (1, 8, 64)
SETUPS = [("one process", 1, False), ("trainer=ddp", 2, False), ("trainer=ddp", 8, False), ("trainer=fsdp2", 8, True)]


def batch_of(texts: int, blocks: int, drafter: Drafter) -> ReplayBatch:
    """What the ledger reads of a micro-batch: lengths, and blocks spread over the responses."""
    length, slots = ASSUMED.prompt + ASSUMED.response, drafter.num_draft_tokens
    anchors = torch.linspace(ASSUMED.prompt, length - slots - 1, blocks).long().expand(texts, -1)
    full = torch.full_like(anchors, slots)
    return ReplayBatch(
        **{
            **vars(no_blocks(slots, 1, 1)),
            "tokens": torch.zeros(texts, length, dtype=torch.long),
            "anchors": anchors,
            "accepted": full,
            "drafted": full,
            "lengths": torch.full((texts,), length),
        }
    )


def memory(config: DictConfig, target: Target, drafter: Drafter, gpus: int, sharded: bool) -> dict[str, float]:
    """Bytes: on one GPU what stays, what training adds and what decoding adds; and kept rollouts in the hosts' memory.

    Training and decoding take turns, so a GPU holds what stays and the larger of the two.
    """
    shape, parts, batching = target.shape, gpus if sharded else 1, config.data.batching
    weights = sum(p.numel() for p in drafter.parameters())
    on_policy = "prompts_per_epoch" in config.data

    def states(response: int) -> tuple[int, int]:
        """Blocks of a text, and bytes of its features and of the hidden states that judge its drafts."""
        blocks = round(response / ASSUMED.acceptance) if on_policy else config.data.num_anchors
        features = (ASSUMED.prompt + response) * len(drafter.layer_ids)
        return blocks, 2 * shape.hidden_size * (features + (blocks * drafter.num_draft_tokens if on_policy else 0))

    longest = config.data.decoding.max_new_tokens
    blocks, evidence = states(longest)
    # a layer keeps for each row about 12 D + 4 I numbers, 2 bytes each; attention matrices are never there (fused)
    share = batching.batch_size / gpus
    texts = min(batching.micro_batch_size, share)
    brought = on_policy or config.texts.features_dtype is not None
    arrived = min(2 * texts, share) if brought else texts  # the next micro-batch comes while this one is computed
    rows = blocks * drafter.block_size
    layer = 2 * (12 * shape.hidden_size + 4 * shape.intermediate_size)
    mask = 2 * rows * (ASSUMED.prompt + longest + rows)
    kept = config.data.prompts_per_epoch * states(ASSUMED.response)[1] if on_policy else 0.0
    return {
        "target": 2.0 * sum(p.numel() for p in target.parameters()),
        "drafter": weights * (4 + 4 + 8) / parts + weights * 2 + (weights * 4 if not sharded and gpus > 1 else 0),
        "activations": texts * (rows * layer * config.drafter.num_layers + mask),
        "states": arrived * evidence,
        "logits": 8 * 4.0 * config.module.chunk_rows * shape.vocab_size,  # both sides, their logs and gradients
        "decoding": config.data.decoding.memory_gib * 2**30 + (weights * 4 if sharded else 0),
        "host": min(kept, gpus * config.data.keep_gib * 2**30) if on_policy else 0.0,
    }


def peak(parts: dict[str, float]) -> float:
    """Bytes of one GPU."""
    training = parts["activations"] + parts["states"] + parts["logits"]
    return parts["target"] + parts["drafter"] + max(training, parts["decoding"])


def seconds(config: DictConfig, target: Target, drafter: Drafter, gpus: int) -> dict[str, float]:
    """Of one optimizer step."""
    on_policy, batching, decoding = "prompts_per_epoch" in config.data, config.data.batching, config.data.decoding
    weights = sum(p.numel() for p in drafter.parameters())
    speed, stream = ASSUMED.flops * ASSUMED.flops_used, ASSUMED.bandwidth * ASSUMED.bandwidth_used
    length = ASSUMED.prompt + ASSUMED.response
    blocks = round(ASSUMED.response / ASSUMED.acceptance) if on_policy else config.data.num_anchors
    ledger, share = Ledger(), batching.batch_size / gpus
    batch = batch_of(1, blocks, drafter)
    ledger.train(target, drafter, batch, on_policy)
    if not on_policy:
        ledger.replay(target, batch)
    train = ledger.training_flops * share / speed + (2 * (gpus - 1) / gpus) * 4 * weights / ASSUMED.link
    if not on_policy:
        return {"rollout": 0.0, "train": train}
    limits = instantiate(decoding)
    capacity = batching.max_prompt_length + limits.max_new_tokens + drafter.num_draft_tokens + 1
    states = len(drafter.layer_ids) + drafter.num_draft_tokens
    sizes = {"capacity": capacity, "prompt": batching.max_prompt_length, "states": states}
    width = min(affordable_rows(target, drafter, limits, **sizes), share)
    step = Ledger()
    step.verify(target, drafter, 1, drafter.block_size, length // 2)
    step.verify_head(target, drafter.block_size)
    cache = 2 * 2 * target.shape.num_layers * target.shape.num_key_value_heads * target.shape.head_dim * length / 2
    read = 2.0 * sum(p.numel() for p in target.parameters()) + 4.0 * weights + width * cache
    block = max(step.training_flops * width / speed, read / stream, ASSUMED.overhead)
    rollout = ASSUMED.response / ASSUMED.acceptance * block * share / width
    return {"rollout": rollout, "train": train, "rows": width}


def text_trace(drafter: Drafter) -> Trace:
    """Of a text with its blocks, for the ledger."""
    batch = batch_of(1, round(ASSUMED.response / ASSUMED.acceptance), drafter)
    return Trace(batch.tokens[0], ASSUMED.prompt, batch.anchors[0], batch.drafts[0], batch.accepted[0])


def costs(config: DictConfig, target: Target, drafter: Drafter) -> Iterator[tuple[str, float, float]]:
    """Part of the training, PFLOPs by the ledger, and seconds on one GPU."""
    speed, stream = ASSUMED.flops * ASSUMED.flops_used, ASSUMED.bandwidth * ASSUMED.bandwidth_used
    shape, trace, each = target.shape, text_trace(drafter), PROMPTS * PASSES
    weights = 2.0 * sum(p.numel() for p in target.parameters())

    ledger = Ledger()
    ledger.write(target, trace, 0)
    position = 2 * 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim  # bytes of keys and values
    rows = ASSUMED.engine_memory // (position * len(trace.tokens))  # an engine's pages hold a text of any length
    forward = (weights + rows * position * len(trace.tokens) / 2) / stream
    prefill = 2 * target.linear_weights * ASSUMED.prompt / speed
    yield (
        "texts, by engines, once",
        ledger.training_flops * PROMPTS,
        PROMPTS * (prefill + ASSUMED.response * forward / rows),
    )

    ledger = Ledger()
    ledger.read(target, len(trace.tokens))
    yield "features of the texts, every pass", ledger.training_flops * each, each * ledger.training_flops / speed

    ledger, width = Ledger(), config.data.decoding.batch_size
    ledger.redraft(target, drafter, trace)
    together = max(
        ledger.training_flops / len(trace.anchors) * width / speed,
        4.0 * sum(p.numel() for p in drafter.parameters()) / stream,
        ASSUMED.overhead * config.drafter.num_layers / (shape.num_layers + config.drafter.num_layers),
    )
    yield "redraft, every pass", ledger.training_flops * each, each * len(trace.anchors) * together / width

    ledger, batch = Ledger(), batch_of(1, len(trace.anchors), drafter)
    batch.accepted = torch.full_like(batch.accepted, round(ASSUMED.acceptance) - 1)
    ledger.replay(target, batch)
    yield (
        "replay of texts and rejected drafts, every pass",
        (flops := ledger.training_flops) * each,
        each * flops / speed,
    )

    ledger = Ledger()
    ledger.train(target, drafter, batch, True)
    yield "steps, every pass", ledger.training_flops * each, each * ledger.training_flops / speed


def costs_table(words: list[str]) -> str:
    """Of the whole training on traces redrafted along the texts of engines, and of rollouts in their place."""
    config, target, drafter = parts_of(words)
    size = config.data.batching.batch_size
    lines = [" | ".join(["part", "PFLOPs", *(f"hours on {gpus}" for gpus in GPUS)])]
    lines += [" | ".join(["---"] * (2 + len(GPUS)))]

    def line(part: str, flops: float | None, hours: list[float]) -> None:
        first = "" if flops is None else f"{flops / 1e15:,.0f}"
        lines.append(" | ".join([part, first, *(f"{value:,.2f}" for value in hours)]))

    whole, total = [0.0] * len(GPUS), 0.0
    for part, flops, seconds_of_one in costs(config, target, drafter):
        # a step's texts do not divide evenly: the processes wait for the fullest
        uneven = [1 / gpus if "once" in part else -(-size // gpus) / size for gpus in GPUS]
        hours = [seconds_of_one / 3600 * share for share in uneven]
        whole, total = [a + b for a, b in zip(whole, hours, strict=True)], total + flops
        line(part, flops, hours)
    line("**all**", total, whole)
    steps = PROMPTS * PASSES / size
    rolled = [seconds(config, target, drafter, gpus)["rollout"] * steps / 3600 for gpus in GPUS]
    line("rollouts, in place of the first four", None, rolled)
    return "\n".join(f"| {text} |" for text in lines)


def parts_of(words: list[str]) -> tuple[DictConfig, Target, Drafter]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("fit", overrides=[*words, "output_dir=none"])
    target = blank(SIZES[config.target.path], config.target.mask_token_id)
    with torch.device("meta"):
        return config, target, instantiate(drafter_group(config, target))(target=target.shape)


def estimates(words: list[str]) -> Iterator[tuple[str, int, dict[str, float], dict[str, float]]]:
    """Set-up, GPUs, bytes and seconds of an experiment, for each way to run it."""
    config, target, drafter = parts_of(words)
    for name, gpus, sharded in SETUPS:
        parts = memory(config, target, drafter, gpus, sharded)
        yield name, gpus, parts, seconds(config, target, drafter, gpus)


def plan(words: list[str]) -> str:
    """The table of one experiment."""
    lines = []
    for name, gpus, parts, times in estimates(words):
        if not lines:
            head = ["set-up", "GPUs", *parts, "peak, GB", "rollout rows", "rollout, s", "training, s"]
            lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        cells = [name, str(gpus), *(f"{value / GB:.1f}" for value in parts.values())]
        cells += [f"**{peak(parts) / GB:.0f}**", f"{times['rows']:.0f}" if "rows" in times else "-"]
        lines.append("| " + " | ".join([*cells, f"{times['rollout']:.0f}", f"{times['train']:.1f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    given = sys.argv[1:]
    print(costs_table([word for word in given if word != "--costs"]) if "--costs" in given else plan(given))

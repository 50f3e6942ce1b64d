"""What does training cost, in time and memory, beside rollouts, beside SFT, beside vLLM's speculators?

    python -m benchmarks.train CHECKPOINT

Parts, one after the other; --parts chooses:

    redraft       an epoch's on-policy traces: rolled out, or drafted along texts that are there
    identity      the same traces in all fields, prompt by prompt (--identity N prompts, none by default)
    step          an optimizer step of Draft-OPD beside one of SFT, and the tokens that a replay reads
    epoch         an epoch on redrafted traces beside an epoch of SFT on the same texts, with as many blocks
    loss_memory   peak memory of the loss, in chunks of rows and whole
    growth        time and memory over the length and the number of texts
    speculators   an SFT step beside the one of vLLM's speculators, in an environment of its own; DFlash alone

Within a part every round runs every system once, in an order that changes; ratios are taken within a round. Results are
written after every round, the picture after every part. Parts of the same file that are not measured again stay in it,
with the commit, machine and settings of their own run. Ratios are printed with what they are to be; the last line is
one JSON object with medians.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import machine, opened, pair, versions

from benchmarks import epoch, growth, identity, loss_memory, redraft, train_picture, train_speculators, train_step
from draftopd.checkpoints.native import Restored
from draftopd.command import one_line_errors
from draftopd.console import quiet
from draftopd.evaluation.results import place
from draftopd.tracking.header import git_commit

Save = Callable[[dict[str, Any]], None]
PARTS: dict[str, Callable[[Restored, Sequence[Sequence[int]], argparse.Namespace, Save], None]] = {
    "redraft": redraft.measure,
    "identity": identity.measure,
    "step": train_step.measure,
    "epoch": epoch.measure,
    "loss_memory": loss_memory.measure,
    "growth": growth.measure,
    "speculators": train_speculators.measure,  # last: it may have to install first
}
RATIOS = {  # what is printed: part, and the name there
    "redraft_vs_rollout_b1": ("redraft", "redraft_vs_rollout_b1"),
    "redraft_vs_rollout_b8": ("redraft", "redraft_vs_rollout_b8"),
    "redraft_replay_vs_rollout_b1": ("redraft", "redraft_replay_vs_rollout_b1"),
    "redraft_replay_vs_rollout_b8": ("redraft", "redraft_replay_vs_rollout_b8"),
    "opd_step_vs_sft_step": ("step", "opd_step_vs_sft_step"),
    "opd_replay_step_vs_sft_step": ("step", "opd_replay_vs_sft"),
    "on_policy_epoch_vs_sft_epoch": ("epoch", "on_policy_seconds"),
    "on_policy_epoch_vs_sft_epoch_flops": ("epoch", "on_policy_flops"),
    "on_policy_epoch_reuse_2_vs_sft_epoch": ("epoch", "on_policy_reuse_2_seconds"),
    "on_policy_epoch_reuse_2_vs_sft_epoch_flops": ("epoch", "on_policy_reuse_2_flops"),
    "sft_step_vs_speculators": ("speculators", "cross_entropy"),
    "sft_step_vs_speculators_kl": ("speculators", "forward_kl"),
    "loss_memory_vs_unchunked": ("loss_memory", "forward_kl"),
}
LOSS = 1e-4  # largest difference from speculators'
WANTED = {  # what the medians are to be
    "redraft_vs_rollout_b1": ">= 5",
    "redraft_vs_rollout_b8": ">= 2",
    "opd_step_vs_sft_step": "<= 2",
    "on_policy_epoch_vs_sft_epoch": "<= 1.3",
    "on_policy_epoch_vs_sft_epoch_flops": "<= 1.3",
    "sft_step_vs_speculators": ">= 1.3",
    "loss_memory_vs_unchunked": "<= 0.25",
}


def main(words: Sequence[str] | None = None) -> None:
    args, commit = arguments(words), git_commit()
    quiet()
    device = torch.device(args.device)
    run, prompts = opened(args.checkpoint, "train", args.prompts, device)
    output = args.output or Path(__file__).parent / "results" / f"train-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "commit": commit,
        "machine": machine(device),
        "versions": versions("torch", "transformers", "lightning"),
        "settings": {
            **pair(args.checkpoint, run.target, run.drafter),
            **{name: value for name, value in vars(args).items() if isinstance(value, int | list | str)},
            "checkpoint": place(args.checkpoint),  # no path of the machine
            "prompt_tokens": sum(map(len, prompts)),
        },
    }
    results: dict[str, Any] = {**header, "wanted": WANTED, "parts": earlier(output, header, args.parts)}

    def keep(part: str, found: dict[str, Any], begun: float) -> None:
        parts = {**results["parts"], part: {"minutes": (time.perf_counter() - begun) / 60, **found}}
        results["parts"] = {name: parts[name] for name in PARTS if name in parts}
        results["summary"] = {name: ratio["median"] for name, ratio in ratios(results["parts"]).items()}
        output.write_text(json.dumps(results, indent=1) + "\n")

    for part in args.parts:
        begun = time.perf_counter()
        PARTS[part](run, prompts, args, lambda found, part=part, begun=begun: keep(part, found, begun))
        train_picture.draw(results, output.with_suffix(".png"))
    measured = {name: found for name, found in results["parts"].items() if name in args.parts}
    report(ratios(measured))
    wrong = faults(measured)
    if wrong:
        sys.exit(f"{'; '.join(wrong)}: see {output}")


def earlier(output: Path, header: dict[str, Any], measured: Collection[str]) -> dict[str, dict[str, Any]]:
    """The file's parts that this run does not measure, each with the header of the run that did (`run`)."""
    if not output.exists():
        return {}
    last = json.loads(output.read_text())
    own = {"run": {name: last[name] for name in header}}
    return {part: own | found for part, found in last["parts"].items() if part not in measured}


def ratios(parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of what is printed, of the parts that are there."""
    found = {part: one.get("summary", {}).get("ratios", {}) for part, one in parts.items()}
    return {name: found[part][key] for name, (part, key) in RATIOS.items() if key in found.get(part, {})}


def report(found: dict[str, dict[str, float]]) -> None:
    """Prints ratios: first those that are to reach something, line by line, then all of them as JSON."""
    for name in WANTED:
        if name in found:
            median, low, high = (found[name][what] for what in ("median", "q1", "q3"))
            print(f"{name:<36} {median:7.3f} [{low:.3f}, {high:.3f}]  wanted {WANTED[name]}")
    print(json.dumps({name: round(ratio["median"], 3) for name, ratio in found.items()}))


def unequal(parts: dict[str, dict[str, Any]]) -> int:
    """Traces that are not those of the rollout; of the part `identity` without ties."""
    compared = parts.get("identity", {"differing": [], "ties": 0})
    return parts.get("redraft", {}).get("summary", {}).get("differing_traces", 0) + (
        len(compared["differing"]) - compared["ties"]
    )


def faults(parts: dict[str, dict[str, Any]]) -> list[str]:
    """What makes times meaningless: other traces than the rollout's, another loss than speculators'."""
    traces, agreement = unequal(parts), parts.get("speculators", {}).get("agreement", {})
    found = [f"{traces} traces are not those of the rollout"] if traces else []
    apart = {loss: pair["loss_difference"] for loss, pair in agreement.items() if pair["loss_difference"] > LOSS}
    return found + [f"{loss} is {difference:.1e} from speculators'" for loss, difference in apart.items()]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="a drafter's checkpoint file")
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--prompts", type=int, default=12, help="of the drafter's own training split")
    add("--tokens", type=int, default=128, help="longest response, at least 2")
    add("--rounds", type=int, default=3, help="of step and speculators")
    add("--redraft-rounds", type=int, default=3)
    add("--micro-batch-size", type=int, default=8, help="texts of one replay")
    add("--identity", type=int, default=0, help="prompts whose traces are compared in all fields")
    add("--identity-prompts", type=Path, help="a JSON Lines file of them; default: the drafter's own")
    add("--steps", type=int, default=2, help="timed optimizer steps a round")
    add("--step-texts", type=int, default=4, help="prompts of one optimizer step")
    add("--epoch-texts", type=int, default=64, help="of one epoch, rounded down to whole steps")
    add("--epoch-rounds", type=int, default=5)
    add("--epoch-reuse", type=int, nargs="+", default=[1, 2], help="epochs that train on the same redrafts")
    add("--epoch-objective", default="cross_entropy", help="a file of conf/objective, of both kinds of epoch")
    add("--speculators-python", type=Path, help="of an environment that has speculators 0.9")
    add("--speculators-environment", type=Path, default=Path(".venv-speculators"), help="made if it is not there")
    add("--loss-rows", type=int, default=4096, help="a multiple of 128")
    add("--loss-vocabulary", type=int, default=151_936, help="Qwen3's")
    add("--loss-chunk-rows", type=int, default=512)
    add("--loss-objectives", nargs="+", default=["forward_kl"], help="files of conf/objective")
    add("--loss-rounds", type=int, default=1)
    add("--growth-lengths", type=int, nargs="*", default=[128, 512, 2048, 4096], help="tokens of one text")
    add("--growth-texts", type=int, nargs="*", default=[2, 4, 8], help="texts of --growth-text-length")
    add("--growth-text-length", type=int, default=512)
    add("--growth-blocks", type=int, default=64, help="of a text, in the steps")
    add("--device", default="cpu", help="cpu or cuda; memory is measured on the CPU alone")
    add("--output", type=Path, help="default: results/train-DEVICE.json beside this file")
    args = parser.parse_args(words)
    numbers = (args.prompts, args.rounds, args.redraft_rounds, args.loss_rounds, args.steps, args.step_texts)
    epochs = (args.epoch_texts, args.epoch_rounds, *args.epoch_reuse)
    if min(*numbers, *epochs, args.micro_batch_size) < 1 or args.tokens < 2:
        parser.error("counts must be at least 1, --tokens at least 2")
    if args.loss_rows % 128 or args.loss_rows < 128:
        parser.error(f"--loss-rows={args.loss_rows} must be a multiple of 128")
    if min([64, *args.growth_lengths, args.growth_text_length]) < 64:
        parser.error("--growth-lengths and --growth-text-length must be at least 64")
    return args


if __name__ == "__main__":
    with one_line_errors():
        main()

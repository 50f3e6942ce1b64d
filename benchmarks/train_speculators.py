"""What does an SFT step cost beside that of vLLM's speculators? Same weights, features, anchors, position weights."""

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.bench import full_head, rounds_of, spread
from benchmarks.train_step import Work, counted, module, prepare, run_steps, summary
from benchmarks.vllm_environment import clean, ensure
from safetensors.torch import save_file
from torch import Tensor

from draftopd.checkpoints.native import Restored
from draftopd.checkpoints.published import write
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch
from draftopd.training.module import DraftModule

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "speculators-requirements.txt"
LOSSES = {"cross_entropy": "ce", "forward_kl": "kl_div"}  # our objective: the peer's name of the same loss
ATTENTION = "sdpa"
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # it would ask the hub how the target normalizes, and takes plain RMSNorm without
NOTES = {
    "cross_entropy": "the default loss of both for DFlash. Our label is the text's token; theirs is the argmax of the "
    "target's logits, for which they run the target's head over every row. On greedy text it is the same token",
    "forward_kl": "both run the target's head over every row: the same work",
    "loss": "ours divides by the sum of the position weights, theirs by the number of supervised rows (+ 1e-5): "
    "`loss_difference` and `gradient_difference` compare after theirs was multiplied by rows / sum of weights; the "
    "second is the largest relative difference of a weight's gradient norm",
    "packing": "they lay all texts in one row, where every block's attention runs over all texts under a mask; ours "
    "pads texts side by side. With one text there is no difference; on GPUs their flex attention skips what is masked",
    "attention": f"their --draft-attn-impl {ATTENTION}, which they offer where flex attention does not run: it has no "
    "backward pass on CPUs",
    "anchors": "they draw anchors at random: `select_anchors` was replaced by the given ones",
    "metrics": "their step also counts hits by position, ours logs its losses; both as they come",
    "ratio": "their seconds / ours",
}


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    """
    Raises:
        DraftError: the drafter is no DFlash, or speculators cannot be installed or stopped.
    """
    if type(run.drafter) is not DFlash:
        raise DraftError("speculators trains DFlash drafters alone with our weights: leave the part 'speculators' out")
    python = args.speculators_python or ensure(args.speculators_environment, REQUIREMENTS, "speculators")
    target, drafter = run.target, full_head(run.drafter)
    work = prepare(target, drafter, prompts[: args.step_texts], args.tokens)
    ours = {loss: (module(target, drafter, loss), work.sft(hidden=loss != "cross_entropy")) for loss in LOSSES}
    found: dict[str, Any] = {"notes": NOTES, "batch": counted(work.sft()), "rounds": []}
    with TemporaryDirectory(prefix="speculators-") as scratch:
        folder = Path(scratch, "drafter")
        hand_over(folder, target, drafter, work, args.steps)
        for number in rounds_of(args.rounds, "beside speculators"):
            mine = {} if number % 2 else own(ours, args.steps)
            theirs = ask(python, folder)
            mine = mine or own(ours, args.steps)
            if not number:
                found["speculators"] = theirs["versions"]
                found["agreement"] = {loss: agreement(*ours[loss], theirs["losses"][LOSSES[loss]]) for loss in LOSSES}
            seconds = {f"{loss}, ours": mine[loss] for loss in LOSSES}
            seconds |= {f"{loss}, speculators": theirs["losses"][name]["seconds"] for loss, name in LOSSES.items()}
            middle = {name: spread(values)["median"] for name, values in seconds.items()}
            ratios = {loss: middle[f"{loss}, speculators"] / middle[f"{loss}, ours"] for loss in LOSSES}
            order = ["speculators", "ours"] if number % 2 else ["ours", "speculators"]
            found["rounds"].append({"order": order, "seconds": seconds, "ratios": ratios})
            save({**found, "summary": summary(found["rounds"])})


def own(ours: dict[str, tuple[DraftModule, ReplayBatch]], steps: int) -> dict[str, list[float]]:
    """Seconds of our steps; the first of a fit makes the optimizer's state and does not count."""
    return {loss: run_steps(step, [batch] * (steps + 1))[1:] for loss, (step, batch) in ours.items()}


def hand_over(folder: Path, target: Target, drafter: Drafter, work: Work, steps: int) -> None:
    """Writes what `speculators_step.py` reads: the drafter in speculators' layout, inputs packed as its loader does."""
    write(drafter, folder, "speculators", target, "target")
    traces = [r.trace for r in work.rolled]
    lengths = [len(trace.tokens) for trace in traces]
    offsets = [sum(lengths[:i]) for i in range(len(lengths))]
    spare = drafter.block_size  # a block at the end of the last text must not leave the row

    def packed(rows: Sequence[Tensor], fill: int = 0) -> Tensor:
        end = torch.full((spare, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
        return torch.cat([*rows, end]).contiguous()

    responses = [(torch.arange(len(t.tokens)) >= t.prompt_length).long() for t in traces]
    inputs = {
        "embedding": target.model.get_input_embeddings().weight,
        "head": target.head().weight,
        "final_norm": target.body.norm.weight,
        "input_ids": packed([trace.tokens for trace in traces]),
        "loss_mask": packed(responses),
        "document_ids": packed([torch.full((length,), i) for i, length in enumerate(lengths)], -1),
        "position_ids": packed([torch.arange(length) for length in lengths]),
        "hidden_states": packed(work.features),
        "verifier_last_hidden_states": packed(work.before_norm),
        "anchors": torch.cat([at + offset for at, offset in zip(work.anchors, offsets, strict=True)]),
    }
    save_file({name: value.detach().cpu().clone() for name, value in inputs.items()}, folder / "inputs.safetensors")
    step = module(target, drafter, "cross_entropy")
    optimizer = step.make_optimizer(step.drafter.parameters())
    request = {
        "threads": torch.get_num_threads(),
        "attention": ATTENTION,
        "losses": list(LOSSES.values()),
        "steps": steps + 1,
        "decay": step.objective.decay,
        "gradient_clip": step.gradient_clip,
        "lr": optimizer.defaults["lr"],
        "weight_decay": optimizer.defaults["weight_decay"],
    }
    (folder / "request.json").write_text(json.dumps(request))


def ask(python: Path, folder: Path) -> dict[str, Any]:
    answer = folder / "answer.json"
    command = [str(python), str(HERE / "speculators_step.py"), str(folder), str(answer)]
    done = subprocess.run(command, stdout=2, check=False, cwd=folder, env=clean() | OFFLINE)
    if done.returncode != 0:
        raise DraftError(f"speculators stopped with exit code {done.returncode}: its message stands above")
    return json.loads(answer.read_text())


def agreement(step: DraftModule, batch: ReplayBatch, peer: dict[str, Any]) -> dict[str, float]:
    """Losses and gradient norms of both on the same batch, before any step."""
    step.train()
    loss = step.loss(batch)
    loss.backward()
    norms = {
        name: float(weight.grad.norm()) for name, weight in step.drafter.named_parameters() if weight.grad is not None
    }
    step.zero_grad()
    rows = flatten(batch, None)
    (weights,) = step.objective.denominators(rows).values()
    factor = len(rows) / float(weights.sum())
    assert norms.keys() == peer["gradient_norms"].keys(), "both train the same weights"
    apart = [abs(factor * peer["gradient_norms"][name] - norm) / norm for name, norm in norms.items()]
    return {
        "loss": float(loss.detach()),
        "speculators_loss": peer["loss"],
        "rows": len(rows),
        "speculators_rows": peer["rows"],
        "rows_by_weights": factor,
        "loss_difference": abs(factor * peer["loss"] - float(loss.detach())),
        "gradient_difference": max(apart),
    }

"""Do the block drafters of others compute what ours compute? Block logits of one drafter, exported, on the same inputs.

    python -m benchmarks.peer_logits CHECKPOINT --peer PYTHON [--zlab model.py]     # DFlash, DFlash2 (no --zlab)
    python -m benchmarks.peer_logits CHECKPOINT --peer PYTHON --deepspec CHECKOUT    # DSpark

Ours: texts of the target, its features, anchors spread over each text, and the logits of each block by cached decoding.
Theirs, in the environment of PYTHON (with `speculators` 0.9): speculators' own model loads its layout; z-lab's own
model file, where one is named, loads z-lab's and reads the target's features itself besides. DSpark's layout is loaded
by DeepSpec's own model file, from a checkout of its repository, with transformers 5. The last line printed is
one JSON object with the largest absolute differences; the exit code is 1 where one of logits is above 1e-4, or one of
features above 1e-4 of the largest feature.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.vllm_environment import clean
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftopd.checkpoints.native import Restored, restore
from draftopd.checkpoints.published import write
from draftopd.command import one_line_errors
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Propose
from draftopd.drafters.dspark import DSpark
from draftopd.errors import DraftError
from draftopd.evaluation.measure import roll
from draftopd.target.head import Head
from draftopd.trace import Trace, collate
from draftopd.tracking.header import git_commit

TOLERANCE = 1e-4
PEER = Path(__file__).resolve().parent / "peer_blocks.py"


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    with one_line_errors():
        report = compare(restore(args.checkpoint), args)
        print(json.dumps(report))
        return 0 if report["passed"] else 1


def compare(run: Restored, args: argparse.Namespace) -> dict[str, Any]:
    inputs = texts(run, args.texts, args.tokens, args.blocks)
    own = run.drafter.head(run.target.head)
    heads = {"speculators": own, "zlab": run.target.head(None), "deepspec": own}
    report: dict[str, Any] = {"commit": git_commit(), "blocks": args.texts * args.blocks}
    differences = []
    with TemporaryDirectory(prefix="peer-logits-") as scratch:
        save_file(inputs, Path(scratch, "inputs.safetensors"))
        for layout in peers(run, args):
            write(run.drafter, Path(scratch, layout), layout, run.target)
            theirs, version = ask(args, layout, Path(scratch), run.target.model.config.name_or_path)
            mine = logits(run, inputs, heads[layout]) | {name: inputs[name] for name in theirs if "features" in name}
            largest = {
                kind: max(float((theirs[n] - mine[n]).abs().max()) for n in theirs if kind in n)
                for kind in sorted({name.split(".")[0] for name in theirs})
            }
            scale = {kind: max(float(mine[n].abs().max()) for n in theirs if kind in n) for kind in largest}
            report[layout] = {"difference": largest, "largest": scale, "version": version}
            # features reach ten thousands, where a float32 is no finer than 1e-3
            differences += [largest["logits"], largest.get("confidence", 0.0)]
            differences += [largest.get("features", 0.0) / scale.get("features", 1.0)]
    return report | {"passed": all(value <= TOLERANCE for value in differences)}


def peers(run: Restored, args: argparse.Namespace) -> list[str]:
    """The layouts that the others read."""
    if not isinstance(run.drafter, DSpark):
        return ["speculators", "zlab"] if args.zlab else ["speculators"]
    if args.deepspec is None or run.drafter.d2t is not None:
        raise DraftError("a DSpark drafter needs --deepspec, and drafter.draft_vocab_size=null: DeepSpec has no other")
    return ["deepspec"]


def texts(run: Restored, count: int, tokens: int, blocks: int) -> dict[str, Tensor]:
    """Prompts with the target's responses: tokens [T], the features that the drafter reads [T, F], anchors [N]."""
    inputs, width = {}, run.drafter.block_size
    for i, trace in enumerate(roll(run.target, None, run.encoded("test", count), Decoding(tokens, batch_size=count))):
        _, features = run.target.read(trace.tokens[None], run.drafter.layer_ids)
        # speculators takes no anchor in the last W positions
        anchors = torch.linspace(8, len(trace.tokens) - width - 1, blocks).long()
        inputs |= {f"tokens.{i}": trace.tokens, f"features.{i}": features[0].contiguous(), f"anchors.{i}": anchors}
    return inputs


@torch.no_grad()
def logits(run: Restored, inputs: dict[str, Tensor], head: Head) -> dict[str, Tensor]:
    """Of every text's blocks [N, K, V'], as rollouts compute them, and what a confidence head says [N, K]."""
    drafter, embed, seen = run.drafter, run.target.embed, []

    class Seen(Propose):
        def __call__(self, logits: Tensor, confidence: Callable[[], Tensor] | None = None) -> Tensor:
            seen.append(logits)
            return super().__call__(logits)

    result = {}
    for name in [name for name in inputs if name.startswith("tokens")]:
        i = name.partition(".")[2]
        tokens, features = inputs[name][None], inputs[f"features.{i}"][None]
        anchors, drafts = inputs[f"anchors.{i}"], []
        for anchor in anchors.tolist():
            state = drafter.start(1, tokens.shape[1] + drafter.block_size, tokens.device)
            drafter.extend(state, features[:, :anchor], tokens[:, 1 : anchor + 1], embed)
            state.lengths += anchor
            drafts.append(drafter.draft(state, tokens[:, anchor], embed, head, Seen()))
        result[f"logits.{i}"] = torch.cat(seen).view(len(anchors), drafter.num_draft_tokens, -1)
        if drafter.confidence_head is not None:
            trace = Trace(tokens[0], 1, anchors, torch.cat(drafts), torch.zeros_like(anchors))
            result[f"confidence.{i}"] = drafter.confidence_head(drafter(collate([trace], [features[0]]), embed))[0]
        seen.clear()
    return result


def ask(args: argparse.Namespace, layout: str, scratch: Path, target: str) -> tuple[dict[str, Tensor], str]:
    """
    Raises:
        DraftError: the other code stopped.
    """
    answer = scratch / f"{layout}.safetensors"
    words = [layout, str(scratch / layout), str(scratch / "inputs.safetensors"), str(answer)]
    if layout == "zlab":
        words += [str(args.zlab.resolve()), target]
    elif layout == "deepspec":
        words += [str(args.deepspec.resolve())]
    # stdout=2 is stderr: ours ends with the result
    done = subprocess.run([str(args.peer), str(PEER), *words], stdout=2, check=False, cwd=scratch, env=clean())
    if done.returncode != 0 or not answer.exists():
        raise DraftError(f"the peer stopped with exit code {done.returncode}: its message stands above")
    return load_file(answer), answer.with_suffix(".version").read_text()


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a DFlash, DFlash2 or DSpark drafter's checkpoint file")
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with speculators 0.9")
    parser.add_argument("--deepspec", type=Path, help="a checkout of deepseek-ai/DeepSpec")
    parser.add_argument("--zlab", type=Path, help="z-lab's dflash/model.py")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="max_new_tokens of a text")
    parser.add_argument("--blocks", type=int, default=8, help="of a text")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())

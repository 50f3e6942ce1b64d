"""What training makes of texts that servers wrote, beside texts of the target here: the second part of serve_texts.

SFT on the first texts, once on the servers' and once on local ones: where the texts are equal, so are the drafters, bit
for bit. Then an on-policy phase that redrafts along the servers' texts, beside local rollouts of the same drafter: the
traces are equal in all fields. Texts are stored as ids, so the target here reads features in each step.
"""

import copy
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.identity import difference, unlike
from hydra import compose, initialize_config_dir

from draftopd.command import CONFIG_DIR
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.trace import Rollout
from draftopd.training.run import System, build

EXPERIMENT = ("experiment=dflash_sft",)
SFT_TEXTS, SIZE = 32, 8  # texts, and those of a step


def compared(args: Namespace, count: int, scratch: Path) -> dict[str, Any]:
    """
    Args:
        count: prompts of `args.prompts` whose texts lie in the caches `served` and `local` in `scratch`.
    """
    for split in ("val", "test"):  # a run has to have them; these ask nothing
        (scratch / f"{split}.jsonl").write_text(json.dumps({"prompt": f"not asked in {split}"}))
    source = ["prompts=jsonl", f"prompts.path={args.prompts}", f"prompts.train={count}"]
    source += [f"prompts.{split}_path={scratch}/{split}.jsonl" for split in ("val", "test")]
    source += ["data.batching.max_prompt_length=1000000"]
    alone = ["+trainer.limit_val_batches=0", "test.prompts=0", "logger=none", "budget.epochs=1"]
    stored = ["texts.features_dtype=null", f"texts.shard_size={count}", f"data.decoding.max_new_tokens={args.tokens}"]
    words = [*EXPERIMENT, *source, *alone, f"data.batching.batch_size={SIZE}"]
    local = [*words, "texts=cache", f"texts.folder={scratch}/local", *stored]
    served = [*words, "texts=engine", f"texts.folder={scratch}/served", *stored, "texts.writer.urls=[http://gone]"]
    steps = f"budget.steps={max(1, min(count, SFT_TEXTS) // SIZE)}"
    one, two = fitted([*local, steps], scratch / "sft-local"), fitted([*served, steps], scratch / "sft-served")
    ours, theirs = one.data.texts("train"), two.data.texts("train")
    number = min(count, SFT_TEXTS)
    start = f"init_from={scratch}/sft-served/checkpoints/last.ckpt"
    phase = [f"data.prompts_per_epoch={min(args.train, count)}", "budget.steps=1", start]
    on_policy = [*served, "data=on_policy", "traces=redrafts", "objective=draft_opd", *phase]
    return {
        "sft": {
            "texts": number,
            "texts_equal": sum(torch.equal(theirs[i].tokens, ours[i].tokens) for i in range(number)),
            "weights_equal": same_weights(one, two),
        },
        "on_policy": same_traces(made(on_policy, scratch / "on-policy"), args.tokens),
    }


def made(words: Sequence[str], folder: Path) -> System:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("fit", overrides=[*words, f"output_dir={folder}"])
    return build(config)


def fitted(words: Sequence[str], folder: Path) -> System:
    system = made(words, folder)
    system.trainer.fit(system.module, datamodule=system.data)
    return system


def same_weights(one: System, two: System) -> bool:
    a, b = one.module.drafter.state_dict(), two.module.drafter.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def same_traces(system: System, tokens: int) -> dict[str, Any]:
    """Traces of a phase of this run, which is trained, beside rollouts of the drafter that it started from."""
    drafter = copy.deepcopy(system.module.drafter)
    system.trainer.fit(system.module, datamodule=system.data)
    count = system.config.data.prompts_per_epoch
    prompts = [ids for _, ids in system.data.encoded("train")][:count]  # redrafts take them in order at first
    rolled = rollout(system.module.target, drafter, prompts, Decoding(tokens, batch_size=16))
    drafted = [r for r in rolled if len(r.trace.anchors)]
    pairs = list(zip(system.data.results, drafted, strict=True))
    apart = [(a, b) for a, b in pairs if unlike(a.trace, b.trace)]
    found = [difference(system.module.target, drafter, a, Rollout(b.trace)) for a, b in apart]
    lengths = [r.trace.acceptance_length for r in drafted]
    return {
        "prompts": count,
        "traces": len(pairs),
        "equal": len(pairs) - len(apart),
        "ties": sum(one["tie"] for one in found),
        "verifications": sum(len(r.trace.anchors) for r in drafted),
        "acceptance_length": sum(lengths) / len(lengths),
        "differing": found,
    }


def passed(report: dict[str, Any]) -> bool:
    sft, phase = report["sft"], report["on_policy"]
    # a text that differs at a tie makes another drafter
    return (sft["weights_equal"] or sft["texts_equal"] < sft["texts"]) and (
        phase["equal"] + phase["ties"] == phase["traces"]
    )

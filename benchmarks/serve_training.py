"""What training makes of texts that servers wrote, beside texts of the target here: the second part of serve_texts.

SFT on the first texts, once on the servers' and once on local ones: where the texts are equal, so are the drafters, bit
for bit. Then an on-policy phase that redrafts along the servers' texts, beside local rollouts of the same drafter: the
traces are equal in all fields. Ids alone are stored, and the target here reads features in each step.
"""

import copy
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.identity import difference, unlike
from hydra import compose, initialize_config_dir

from draftopd.command import CONFIG_DIR
from draftopd.data.texts import Texts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.trace import Rollout
from draftopd.training.run import System, build

EXPERIMENT = ("experiment=dflash_sft",)
SFT_TEXTS, SIZE = 32, 8  # texts, and those of a step


def compared(args: Namespace, urls: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Of the servers' prompts as many are trained on as `args.train` says, and 4 validate."""
    count, tokens = args.train, args.tokens
    words = [*EXPERIMENT, f"cache_dir={scratch}/local", "logger=none", "test.prompts=0", "texts.features_dtype=null"]
    words += ["prompts=jsonl", f"prompts.path={args.prompts}", f"prompts.records={args.limit}"]
    words += [f"prompts.train={count}", "prompts.val=4", "prompts.test=4"]
    words += [f"data.decoding.max_new_tokens={tokens}", f"data.batching.batch_size={SIZE}", "budget.epochs=1"]
    served = ["texts=engine", "texts.features_dtype=null", f"texts.writer.urls=[{','.join(urls)}]"]
    served += [f"cache_dir={scratch}/served", "texts.writer.concurrency=4"]
    sft = f"budget.steps={max(1, min(count, SFT_TEXTS) // SIZE)}"
    local = fitted([*words, sft], scratch / "sft-local")
    there = fitted([*words, *served, sft], scratch / "sft-served")
    texts, ours = there.data.texts("train"), local.data.texts("train")
    start = f"init_from={scratch}/sft-served/checkpoints/last.ckpt"
    on_policy = ["data=on_policy", "traces=redrafts", "objective=draft_opd", f"data.prompts_per_epoch={count}", start]
    phase = made([*words, *served, *on_policy, "budget.steps=1"], scratch / "on-policy")
    return {
        "sft": {
            "texts": min(count, SFT_TEXTS),
            "texts_equal": sum(torch.equal(texts[i].tokens, ours[i].tokens) for i in range(min(count, SFT_TEXTS))),
            "weights_equal": same_weights(local, there),
        },
        "on_policy": same_traces(phase, texts, tokens),
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


def same_traces(system: System, texts: Texts, tokens: int) -> dict[str, Any]:
    """Traces of a phase of this run, which is trained, beside rollouts of the drafter that it started from."""
    drafter = copy.deepcopy(system.module.drafter)
    system.trainer.fit(system.module, datamodule=system.data)
    redrafted = {tuple(r.trace.tokens[: r.trace.prompt_length].tolist()): r for r in system.data.results}
    rolled = rollout(system.module.target, drafter, texts.prompts, Decoding(tokens, batch_size=16))
    drafted = [r for r in rolled if len(r.trace.anchors)]
    pairs = [(redrafted[tuple(r.trace.tokens[: r.trace.prompt_length].tolist())], r) for r in drafted]
    apart = [(a, b) for a, b in pairs if unlike(a.trace, b.trace)]
    found = [difference(system.module.target, drafter, a, Rollout(b.trace)) for a, b in apart]
    lengths = [r.trace.acceptance_length for r in drafted]
    return {
        "prompts": len(rolled),
        "traces": len(pairs),
        "equal": len(pairs) - len(apart),
        "ties": sum(one["tie"] for one in found),
        "acceptance_length": sum(lengths) / len(lengths),
        "differing": found,
    }


def passed(report: dict[str, Any]) -> bool:
    sft, phase = report["sft"], report["on_policy"]
    # a text that differs at a tie makes another drafter
    return (sft["weights_equal"] or sft["texts_equal"] < sft["texts"]) and (
        phase["equal"] + phase["ties"] == phase["traces"]
    )

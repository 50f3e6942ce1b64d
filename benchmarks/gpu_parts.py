"""One part of `gpu_check.py`: python -m benchmarks.gpu_parts [--rehearse] decoding RESULT

The target is the default one where the cache has it, else random weights of its sizes: as fast, with worse text. Both
models are in bfloat16 on a GPU, where texts may differ by ties; in the rehearsal a text that differs is an error.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.bench import as_it_comes, blank, machine, spread, versions
from benchmarks.decode import differing, timing
from benchmarks.decode_systems import System, greedy, ours, theirs
from benchmarks.memory import largest

from benchmarks import launches, redraft, train_step
from draftopd.checkpoints.native import restore
from draftopd.command import one_line_errors
from draftopd.console import quiet
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.target.smollm2 import NAME, is_made
from draftopd.trace import ReplayBatch

CACHE = Path("~/.cache/draftopd").expanduser()
TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
SMOLLM2 = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
SOFT = ("forward_kl", "reverse_kl", "draft_opd")
"""objectives that read the target's distribution"""


@dataclass(frozen=True)
class Sizes:
    few: int
    """prompts that are decoded one at a time"""
    prompts: int
    tokens: int
    """longest response"""
    texts: int
    """of an optimizer step"""
    steps: int
    """timed, of every kind"""


REAL = Sizes(few=3, prompts=64, tokens=64, texts=32, steps=5)
REHEARSED = Sizes(few=2, prompts=8, tokens=16, texts=4, steps=2)


@dataclass(frozen=True)
class Setting:
    device: torch.device
    rehearse: bool
    checkpoint: Path | None
    result: Path

    @property
    def sizes(self) -> Sizes:
        return REHEARSED if self.rehearse else REAL

    def save(self, found: dict[str, Any]) -> None:
        facts = {"machine": machine(self.device), "versions": versions("torch", "transformers", "lightning")}
        self.result.write_text(json.dumps({**facts, **found}, indent=1) + "\n")

    def settle(self) -> None:
        """Waits for what the device still computes: before every look at the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def pair(self) -> tuple[Target, Drafter, str]:
        """Target and drafter on the device, and what they are."""
        torch.manual_seed(0)
        if self.rehearse:
            target = load.tiny({"model_type": "llama", "num_hidden_layers": 4, **TINY})
            return target, DFlash(target.shape, num_layers=1, block_size=4, layer_ids=[1, 2]), "tiny, random"
        made = is_made(CACHE / NAME)
        drafter: Drafter | None = None
        if made and self.checkpoint is not None:  # it names its target by the float32 weights
            drafter = restore(self.checkpoint, target=load.smollm2(str(CACHE), cpu_layers=False)).drafter
        sizes = {"model_type": "llama", "num_hidden_layers": 30, "vocab_size": 49152, **SMOLLM2}
        target = load.smollm2(str(CACHE), dtype="bfloat16") if made else blank(sizes, 49151, "bfloat16", "cuda")
        what = (
            f"{NAME if made else 'random weights of its sizes'}, drafter {'random' if drafter is None else 'trained'}"
        )
        if drafter is None:
            drafter = DFlash(target.shape, num_layers=2, block_size=8, num_taps=5, draft_vocab_size=4096)
            drafter.set_vocabulary(torch.arange(4096))
        return target.to(self.device), drafter.to(self.device), what

    def prompts(self, target: Target) -> list[list[int]]:
        """Questions of nearly the same length."""
        asked = [
            f"A shop sells {10 + i} apples a day at {20 + i} cents each. How much does it earn in {30 + i} days?"
            for i in range(self.sizes.prompts)
        ]
        template = target.tokenizer.apply_chat_template
        chats = [[{"role": "user", "content": question}] for question in asked]
        return [template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def tests(setting: Setting) -> None:
    """The tests marked `gpu`, which take the CPU where there is no GPU."""
    watch = Outcomes(setting.save)
    # this file alone: others import what a GPU machine may lack
    words = ["tests/test_gpu.py", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
    code = pytest.main(words, plugins=[watch])
    if code != 0:
        raise DraftError(f"pytest ended with {code!r}")


class Outcomes:
    """A plugin of pytest that saves each test's outcome when it has ended."""

    def __init__(self, save: Callable[[dict[str, Any]], None]) -> None:
        self.save, self.tests = save, dict[str, dict[str, Any]]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            seconds = round(report.duration, 2)
            self.tests[report.nodeid] = {"outcome": report.outcome, "seconds": seconds, "error": report.longreprtext}
            self.save({"tests": self.tests})


def decoding(setting: Setting) -> None:
    """Tokens per second: plain, speculative in batches of 1, 8 and 64, and transformers' generate."""
    target, drafter, what = setting.pair()
    sizes, drafter = setting.sizes, drafter.to(target.model.dtype)
    ways = {
        "plain_batch64": (ours(target, None, sizes.tokens, 64), sizes.prompts),
        "plain": (ours(target, None, sizes.tokens), sizes.few),
        "batch1": (ours(target, drafter, sizes.tokens), sizes.few),
        "batch8": (ours(target, drafter, sizes.tokens, 8), 8),
        "batch64": (ours(target, drafter, sizes.tokens, 64), sizes.prompts),
        "transformers": (theirs(as_it_comes(target), greedy(target, sizes.tokens)), sizes.few),
    }
    time_all(setting, ways, setting.prompts(target), {"pair": what, "dtype": str(target.model.dtype)})


def compiled(setting: Setting) -> None:
    """The same with `decoding.compile`, and the launches of a step, eager and compiled."""
    target, drafter, what = setting.pair()
    sizes, drafter, prompts = setting.sizes, drafter.to(target.model.dtype), setting.prompts(target)
    compile = "eager" if setting.rehearse else True
    found: dict[str, Any] = {"pair": what, "compile": compile}
    found["launches"] = {
        name: {how: launches.of_a_step(target, one, prompts[0], how) for how in (False, compile)}
        for name, one in {"plain": None, "batch1": drafter}.items()
    }
    ways = {
        "plain": (ours(target, None, sizes.tokens), sizes.few),
        "plain_compiled": (ours(target, None, sizes.tokens, 1, compile), sizes.few),
        "batch1_compiled": (ours(target, drafter, sizes.tokens, 1, compile), sizes.few),
        "batch8_compiled": (ours(target, drafter, sizes.tokens, 8, compile), 8),
    }
    time_all(setting, ways, prompts, found)


def time_all(
    setting: Setting, ways: dict[str, tuple[System, int]], prompts: list[list[int]], found: dict[str, Any]
) -> None:
    """Every system on so many prompts, once to load kernels and once for its time."""
    found["systems"], plain = {}, {}
    for name, (way, count) in ways.items():
        way(prompts[:count])
        setting.settle()
        start = time.perf_counter()
        done = way(prompts[:count])
        setting.settle()
        took = timing(done, prompts[:count], time.perf_counter() - start)
        for prompt, text in enumerate(done.texts):
            plain.setdefault(prompt, text)
        took["differing_texts"] = len(differing(done.texts, [plain[prompt] for prompt in range(count)]))
        found["systems"][name] = took
        setting.save(found)
    refuse_differing(setting, {name: took["differing_texts"] for name, took in found["systems"].items()})


def refuse_differing(setting: Setting, counts: dict[str, int]) -> None:
    wrong = {name: count for name, count in counts.items() if count}
    if wrong and setting.rehearse:
        raise DraftError(f"texts that are not the plain ones: {wrong}")


def redrafting(setting: Setting) -> None:
    """Texts per second: traces along texts that are there, beside rollouts in batches of 8."""
    target, drafter, what = setting.pair()
    prompts, tokens = setting.prompts(target), setting.sizes.tokens
    drafter = drafter.to(target.model.dtype)
    decoding = Decoding(tokens, batch_size=len(prompts))
    texts = rollout(target, None, prompts, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    ways = redraft.systems(target, drafter, prompts, texts, tokens, micro_batch_size=16)
    found: dict[str, Any] = {"pair": what, "texts": len(texts), "systems": {}}
    traces = {}
    for name in ("redraft", "redraft_replay", "rollout_b8"):
        if name != "rollout_b8":
            ways[name](Ledger())  # loads kernels
        setting.settle()
        start = time.perf_counter()
        traces[name] = ways[name](Ledger())
        setting.settle()
        seconds = time.perf_counter() - start
        found["systems"][name] = {"seconds": seconds, "texts_per_second": len(texts) / seconds}
        setting.save(found)
    found["differing_traces"] = {name: len(redraft.differing(t, traces["rollout_b8"])) for name, t in traces.items()}
    setting.save(found)
    refuse_differing(setting, found["differing_traces"])


def training(setting: Setting) -> None:
    """Seconds and memory of optimizer steps: SFT, on-policy, objectives that read the target's distribution."""
    target, drafter, what = setting.pair()
    sizes = setting.sizes
    texts = setting.prompts(target)[: sizes.texts]
    work = train_step.prepare(target, drafter.to(target.model.dtype), texts, sizes.tokens)
    drafter = drafter.float()
    sft, opd = work.sft(hidden=True), work.opd()
    flex: dict[str, Any] = {} if setting.rehearse else {"attention": "flex_attention"}
    ways: dict[str, tuple[str, ReplayBatch, dict[str, Any]]] = {
        "sft": ("cross_entropy", work.sft(), {}),
        "opd": ("draft_opd", opd, {}),
        **{f"sft_{name}": (name, sft, {}) for name in SOFT[:2]},
        "opd_replay": ("draft_opd", work.opd(kept=False), {}),
        "opd_flex": ("draft_opd", opd, flex),
        "sft_compiled": ("cross_entropy", work.sft(), {"torch_compile": "eager" if setting.rehearse else True, **flex}),
    }
    found: dict[str, Any] = {"pair": what, "systems": {}, "over_cross_entropy": {}}
    for name, (objective, batch, options) in ways.items():
        found["systems"][name] = steps(setting, target, drafter, objective, batch, options)
        if name.startswith("sft_") and not options:
            seconds = [found["systems"][one]["seconds"]["median"] for one in (name, "sft")]
            found["over_cross_entropy"][name] = seconds[0] / seconds[1]
        setting.save(found)


def steps(
    setting: Setting, target: Target, drafter: Drafter, objective: str, batch: ReplayBatch, options: dict[str, Any]
) -> dict[str, Any]:
    """What optimizer steps on a batch take; the first one, which makes Adam's states, is left out."""
    sizes, cuda = setting.sizes, setting.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = train_step.module(target, drafter, objective, **options)
    precision = "bf16-mixed" if cuda else "32-true"
    seconds = spread(train_step.run_steps(step, [batch] * (sizes.steps + 1), precision)[1:])
    counts = train_step.counted(batch)
    return {
        "seconds": seconds,
        "samples_per_second": counts["texts"] / seconds["median"],
        "tokens_per_second": counts["tokens"] / seconds["median"],
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else largest(),
        **counts,
    }


PARTS: dict[str, Callable[[Setting], None]] = {
    "tests": tests,
    "decoding": decoding,
    "compiled": compiled,
    "redraft": redrafting,
    "training": training,
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("result", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args(words)
    quiet()
    device = torch.device("cpu" if args.rehearse else "cuda")
    PARTS[args.part](Setting(device, args.rehearse, args.checkpoint, args.result))


if __name__ == "__main__":
    with one_line_errors():
        main()

"""What benchmarks share: a drafter with its prompts, what every one writes down, spreads over rounds, a picture."""

import copy
import hashlib
import os
import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from draftopd.checkpoints.native import Restored, restore
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.cpu.linear import Linear
from draftopd.target.model import Target

Model = TypeVar("Model", bound=nn.Module)
CPUINFO = Path("/proc/cpuinfo")


def blank(architecture: dict[str, Any], mask_token_id: int, dtype: str = "bfloat16", device: str = "meta") -> Target:
    """A target of given sizes without weights, on the meta device: to count parameters and check shapes."""
    config = AutoConfig.for_model(**architecture)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return Target(model, load.tiny_tokenizer(), mask_token_id)


def opened(checkpoint: str, split: str, count: int, device: torch.device) -> tuple[Restored, list[list[int]]]:
    """A drafter with its target on a device, and the first `count` prompts of its own split.

    Raises:
        DraftError: the split has fewer.
    """
    run = restore(checkpoint)
    run.target.to(device)
    run.drafter.to(device)
    prompts = run.encoded(split, count)
    if len(prompts) < count:
        raise DraftError(f"the drafter's {split} split has {len(prompts)} prompts: lower --prompts={count}")
    return run, prompts


def full_head(drafter: Drafter) -> Drafter:
    """A copy that drafts from the target's whole vocabulary; a drafter with a head of its own keeps it."""
    copied = copy.deepcopy(drafter)
    if not drafter.own_head_weights(1):
        copied.d2t = None
    return copied


def rounds_of(count: int, what: str) -> Iterable[int]:
    """0, 1, ..., with a bar on stderr."""
    return track(range(count), what, console=Console(stderr=True))


def pair(checkpoint: str, target: Target, drafter: Drafter) -> dict[str, Any]:
    """What was measured: target, drafter and the file that it came from."""
    return {
        "target": type(target.model).__name__,
        "target_parameters": target.model.num_parameters(),
        "target_fingerprint": target.fingerprint,
        "dtype": str(target.model.dtype).removeprefix("torch."),
        "attention": target.attention,
        "drafter": type(drafter).__name__,
        "checkpoint_sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:16],
        "block_size": drafter.block_size,
        "draft_vocab_size": target.vocab_size if drafter.vocabulary is None else len(drafter.vocabulary),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads and load; the load tells whether somebody else was computing."""
    facts = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "load_average_at_start": os.getloadavg()[0],
    }
    return facts | ({"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def processor() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def as_it_comes(target: Target) -> PreTrainedModel:
    """A target's model as transformers makes it, without our layers; it shares no weights."""
    model, config = target.model, copy.deepcopy(target.model.config)
    config._attn_implementation = target.attention
    fresh = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.to(model.device).eval()


def stock(model: Model) -> Model:
    """A copy with torch's own linear layers where ours were; it shares no weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                layer = nn.Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
                layer.weight, layer.bias = child.weight, child.bias
                setattr(parent, name, layer)
    return model


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "q1": float(low), "q3": float(high)}


def profiles(runs: dict[str, Callable[[], Any]], rows: int = 15) -> str:
    """Tables of the operations that take most of the processor's own time, one for each run."""
    tables = []
    for name, run in runs.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        tables.append(f"{name}\n{profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=rows)}")
    return "\n".join(tables)


def bars(values: dict[str, Sequence[float]], peers: Collection[str], unit: str, title: str, path: Path) -> None:
    """A picture of values by system: median as a bar, quartiles as a whisker, each round as a dot; peers in gray."""
    names = list(values)
    spreads = [spread(values[name]) for name in names]
    medians = [s["median"] for s in spreads]
    whiskers = [[s["median"] - s["q1"] for s in spreads], [s["q3"] - s["median"] for s in spreads]]
    figure, axis = plt.subplots(figsize=(10, 1.5 + 0.55 * len(names)), layout="constrained")
    colors = ["tab:gray" if name in peers else "tab:blue" for name in names]
    axis.barh(names, medians, xerr=whiskers, color=colors, capsize=4, height=0.7)
    for row, name in enumerate(names):
        axis.plot(values[name], [row] * len(values[name]), "o", color="black", ms=4, alpha=0.5)
        where = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{medians[row]:.1f}", (max(values[name]), row), fontsize=15, **where)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(title, fontsize=15, loc="left")
    axis.set_xlabel(f"{unit} (bar: median, whisker: quartiles, dots: rounds)", fontsize=15)
    axis.tick_params(labelsize=14)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)

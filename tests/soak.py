"""Trains for long in one process, and shows that nothing grows: memory, tensors, open files, threads.

`python tests/soak.py [steps]` takes 500 steps of Draft-OPD with 2,000 rollouts, 500 steps of SFT, and 20 runs of two
stages, all on the tiny pair. The exit code is 1 where something grows by more than the share `MOST` over the second
half of one of them. Memory is the process's resident set.

oneDNN and torch's caller of it each keep a program for the last 1,024 shapes of matrices, of which rollouts have many:
memory grows until there are so many (0.6 MB each), and no further. Here they keep 128, so that a growth without an end
is seen.
"""

import gc
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # read when torch multiplies for the first time
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from draftopd import fit
from draftopd.training.module import DraftModule
from runs import UNTIMED

MOST = 0.02
UNTESTED = ("test.prompts=0", "trainer.check_val_every_n_epoch=10", *UNTIMED)
ROLLOUTS = ("experiment=smoke/draft_opd", "data.batching.batch_size=4")  # 16 rollouts of an epoch are 4 steps
SOAKS = {"rollouts": ROLLOUTS, "sft": ("experiment=smoke/sft",)}
STAGES = ("experiment=smoke", "logger=none", "budget.epochs=1")


@dataclass(frozen=True)
class Sample:
    seconds: float
    megabytes: float
    tensors: int
    files: int
    threads: int


def sample(start: float) -> Sample:
    gc.collect()  # what only waits to be collected is no growth
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        time.monotonic() - start,
        pages * resource.getpagesize() / 1e6,
        sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects()),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Of each measure over the second half: that of the line through the samples, as a share of their mean."""
    half = samples[len(samples) // 2 :]
    at = np.arange(len(half)) / (len(half) - 1)
    values = {name: np.array([getattr(s, name) for s in half]) for name in asdict(half[0]) if name != "seconds"}
    return {name: float(np.polyfit(at, value, 1)[0] / value.mean()) for name, value in values.items()}


def command(folder: Path, *words: str) -> None:
    sys.argv = ["fit", f"hydra.run.dir={folder}", f"cache_dir={folder.parent}/cache", *words]
    fit.main()


def steps(
    folder: Path, words: Sequence[str], count: int, patch: Callable[[Any, str, Any], None], number: int = 24
) -> list[Sample]:
    """So many samples of one run, evenly over `count` optimizer steps."""
    log_step, start, done = DraftModule._log_step, time.monotonic(), 0
    samples: list[Sample] = []

    def meet(*args: Any) -> None:
        nonlocal done
        log_step(*args)
        done += 1
        if done * number // count > (done - 1) * number // count:
            samples.append(sample(start))

    patch(DraftModule, "_log_step", meet)
    try:
        command(folder, *words, *UNTESTED, "budget.epochs=null", f"budget.steps={count}")
    finally:
        patch(DraftModule, "_log_step", log_step)
    return samples


def stages(folder: Path, runs: int) -> list[Sample]:
    """A sample after each of so many runs of two stages."""
    start, samples = time.monotonic(), list[Sample]()
    for number in range(runs):
        command(folder / str(number), *STAGES)
        samples.append(sample(start))
    return samples


def show(name: str, samples: Sequence[Sample]) -> bool:
    """Prints a table; whether nothing grows."""
    print(f"\n{name:10}{'seconds':>9}{'MB':>9}{'tensors':>9}{'files':>7}{'threads':>9}")
    for s in samples[:: max(1, len(samples) // 12)]:
        print(f"{'':10}{s.seconds:9.1f}{s.megabytes:9.1f}{s.tensors:9}{s.files:7}{s.threads:9}")
    grown = growth(samples)
    print("second half: " + ", ".join(f"{what} {share:+.2%}" for what, share in grown.items()), flush=True)
    return max(grown.values()) <= MOST


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    folder = Path(mkdtemp(prefix="soak-")).resolve()
    flat = [show(name, steps(folder / name, words, count, setattr)) for name, words in SOAKS.items()]
    flat.append(show("stages", stages(folder / "stages", max(4, count // 25))))
    sys.exit(not all(flat))


if __name__ == "__main__":
    main()

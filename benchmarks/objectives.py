"""Every shipped objective on a drafter whose best acceptance length is known: `make bench-objectives`.

The target is a table p[context, slot] whose distributions do not depend on earlier drafts of the block, the drafter a
table of free logits, so that acceptance lengths are exact sums of products:

    rejection sampling, drafts ~ q:          1 + sum_k prod_{j <= k} sum_v min(p_j, q_j), at best K + 1 (q = p)
    token matching, drafts = argmax q:       1 + sum_k prod_{j <= k} p_j(argmax q_j), at best with argmax p

A second drafter is blind: it has one table for all contexts, as a slot of DFlash has one distribution whatever was
drafted before it. No q is p there, and objectives differ in what they make of that.
"""

from dataclasses import dataclass
from functools import cache

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from draftopd.command import CONFIG_DIR
from draftopd.objectives.base import Objective, shares
from draftopd.objectives.rows import Rows

NAMES = sorted(path.stem for path in (CONFIG_DIR / "objective").glob("*.yaml"))
SOURCES = ("texts", "rollouts")
ABLATIONS = ("forward_both", "first_rejected_only", "accepted_only", "rejected_only")


def shipped(name: str) -> Objective:
    """The objective of conf/objective/<name>.yaml."""
    return instantiate(_composed(f"objective={name}").objective)


@cache
def _composed(word: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("fit", overrides=[word])


def ablation(name: str) -> Objective:
    """That of conf/experiment/ablations/<name>.yaml."""
    return instantiate(_composed(f"experiment=ablations/{name}").objective)


@dataclass(frozen=True)
class Table:
    """A target and a drafter over V tokens."""

    log_p: Tensor
    """[C, K, V] the target, for each context and slot"""
    logits: Tensor
    """[C, K, V] the drafter's, or [1, K, V] where it cannot tell contexts apart"""

    @property
    def alpha(self) -> Tensor:
        """[C, K] acceptance rate of sampled drafts."""
        return torch.minimum(self.log_p, self.logits.log_softmax(-1)).exp().sum(-1)

    @property
    def hit(self) -> Tensor:
        """[C, K] the target's probability of the greedy draft."""
        drafts = self.logits.argmax(-1).expand(len(self.log_p), -1)
        return self.log_p.gather(2, drafts[..., None])[..., 0].exp()

    def draw(self, source: str, blocks: int, generator: torch.Generator) -> tuple[Tensor, Rows]:
        """Contexts [M] and rows of `blocks` blocks after every context, drafted greedily or copied from texts.

        They stand at all positions of one text, in the order of their contexts.
        """
        contexts, slots, vocabulary = self.log_p.shape
        flat = self.log_p.exp().reshape(-1, vocabulary)
        text = torch.multinomial(flat, blocks, replacement=True, generator=generator).T.reshape(-1, slots)
        draft = text if source == "texts" else self.logits.argmax(-1).expand(contexts, -1).repeat(blocks, 1)
        accepted = (draft == text).long().cumprod(1).sum(1, keepdim=True).expand_as(text)
        slot = torch.arange(1, slots + 1).expand_as(text)
        context = torch.arange(contexts).repeat(blocks)[:, None].expand_as(text)
        block = torch.arange(len(text))[:, None].expand_as(text)
        values = (draft, text, slot, accepted, block, torch.zeros_like(block), len(text) - block)
        return context.flatten(), Rows(*(v.flatten() for v in values))


def acceptance_length(rate: Tensor) -> float:
    """1 + sum_k prod_{j <= k} rate_j, mean over contexts; rate [C, K]."""
    return float(1 + rate.cumprod(1).sum(1).mean())


def start(contexts: int = 4, slots: int = 5, vocabulary: int = 12, seed: int = 0) -> Table:
    generator = torch.Generator().manual_seed(seed)
    log_p = (2 * torch.randn(contexts, slots, vocabulary, generator=generator)).log_softmax(-1)
    return Table(log_p, torch.randn(contexts, slots, vocabulary, generator=generator))


def blind(contexts: int = 16, slots: int = 5, vocabulary: int = 12, seed: int = 0) -> Table:
    """Confident targets, as greedy text has, and a drafter that does not know which of them it drafts for."""
    generator = torch.Generator().manual_seed(seed)
    log_p = (4 * torch.randn(contexts, slots, vocabulary, generator=generator)).log_softmax(-1)
    return Table(log_p, torch.randn(1, slots, vocabulary, generator=generator))


def best_greedy(log_p: Tensor) -> float:
    """The longest acceptance length of one block of drafts for all contexts [C, K, V], by trying all V^K."""
    reached, total = log_p.new_ones(len(log_p), 1), log_p.new_ones(len(log_p), 1)
    for p in log_p.exp().unbind(1):
        reached = (reached[..., None] * p[:, None]).flatten(1)
        total = total.repeat_interleave(p.shape[1], 1) + reached
    return float(total.mean(0).max())


def train(objective: Objective, table: Table, source: str, steps: int, blocks: int = 32, lr: float = 0.05) -> Table:
    """The table after so many steps of Adam with a rate that falls to 0, every step on fresh rows."""
    generator = torch.Generator().manual_seed(1)
    logits = table.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        now = Table(table.log_p, logits.detach())
        context, rows = now.draw(source, blocks, generator)
        at = (context, rows.slot - 1)
        numerators = objective.numerators(logits.expand_as(table.log_p)[at], table.log_p[at], rows)
        denominators = objective.denominators(rows)
        lambdas = shares(objective.coefficients)
        loss = sum(lambdas[n] * value.sum() / denominators[n].sum().clamp(min=1e-8) for n, value in numerators.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Table(table.log_p, logits.detach())


def results(steps: int) -> dict[str, list[float]]:
    """Acceptance lengths by objective: (sampled, greedy) trained on texts, then on rollouts."""
    table = start()
    found = {"start": [acceptance_length(table.alpha), acceptance_length(table.hit)] * 2}
    for name in NAMES:
        ends = [train(shipped(name), table, source, steps) for source in SOURCES]
        found[name] = [acceptance_length(rate) for end in ends for rate in (end.alpha, end.hit)]
    best = Table(table.log_p, table.log_p)
    return {**found, "optimum": [acceptance_length(best.alpha), acceptance_length(best.hit)] * 2}


def results_blind(steps: int) -> dict[str, list[float]]:
    """Acceptance lengths of greedy drafts by objective, trained on texts, then on rollouts."""
    table = blind()
    found = {"start": [acceptance_length(table.hit)] * 2}
    for name, objective in {**{n: shipped(n) for n in NAMES}, **{n: ablation(n) for n in ABLATIONS}}.items():
        found[name] = [acceptance_length(train(objective, table, source, steps).hit) for source in SOURCES]
    return {**found, "optimum": [best_greedy(table.log_p)] * 2}


def main(steps: int = 300) -> None:
    print(f"Exact acceptance length after {steps} steps from the same start (4 contexts, 5 drafts, 12 tokens)\n")
    print("| objective | texts: sampled | texts: greedy | rollouts: sampled | rollouts: greedy |")
    print("|---|---|---|---|---|")
    for name, values in results(steps).items():
        print(f"| `{name}` | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    print(f"\nA drafter that cannot tell 16 contexts apart, {steps} steps, greedy drafts\n")
    print("| objective | texts | rollouts |\n|---|---|---|")
    for name, values in results_blind(steps).items():
        print(f"| `{name}` | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()

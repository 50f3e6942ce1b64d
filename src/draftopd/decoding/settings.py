"""The settings of decoding, plain and speculative."""

from dataclasses import dataclass
from typing import Literal

from draftopd.values.checked import checked
from draftopd.values.types import Count, NonNegative, Positive, Probability, Seed


@checked
@dataclass(frozen=True)
class Decoding:
    """How text is written, in plain and in speculative decoding.

    Args:
        max_new_tokens: longest response.
        batch_size: prompts decoded, or texts read, together; changes speed and memory, not texts.
        temperature: 0 = greedy.
        top_k, top_p, min_p: filters of the target's distribution, applied in this order after the temperature.
        rule: `token_matching`: greedy drafts, accepted while the target's own sample agrees (arXiv 2605.29343);
            `rejection`: drafts sampled from the drafter, accepted with probability min(1, p/q), else a sample of the
            residual distribution (arXiv 2211.17192, 2302.01318). Both are the same at temperature 0.
        seed: of the sampling.
        memory_gib: bound on the memory of a batch, in GiB: caches, stored states, and what reading prompts or a step
            takes for a while (`memory.row_bytes`); if need be, fewer prompts are decoded together. Finished results
            do not count.
        compile: steps have fixed shapes and go through torch.compile: true for CUDA graphs, a name for that backend.
            For GPUs, where a small model's step is mostly launches; the first step of a shape takes long.
    """

    max_new_tokens: Count = 128
    batch_size: Count = 16
    temperature: NonNegative = 0.0
    top_k: Count | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    rule: Literal["token_matching", "rejection"] = "token_matching"
    seed: Seed = 0
    memory_gib: Positive = 4.0
    compile: bool | str = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def words(self) -> str:
        """How tokens are chosen, as a title says it."""
        filters = {"top-k": self.top_k, "top-p": self.top_p, "min-p": self.min_p}
        set_ones = "".join(f", {name} {value}" for name, value in filters.items() if value is not None)
        rule = self.rule.replace("_", " ")
        return "greedy" if self.greedy else f"temperature {self.temperature}{set_ones}, {rule}"

    @property
    def samples_drafts(self) -> bool:
        return not self.greedy and self.rule == "rejection"

    @property
    def recipe(self) -> dict[str, float | int | None]:
        """The settings that the target's own texts depend on, besides their length; none for greedy text."""
        filters = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {} if self.greedy else {"temperature": self.temperature, "seed": self.seed, **filters}

"""The settings of decoding, plain and speculative."""

from dataclasses import dataclass

from draftopd.errors import DraftError


@dataclass(frozen=True)
class Decoding:
    """How text is written, in plain and in speculative decoding.

    Args:
        max_new_tokens: longest response.
        batch_size: prompts decoded together; changes speed and memory, not texts.
        temperature: 0 = greedy.
        top_k, top_p, min_p: filters of the target's distribution, applied in this order after the temperature.
        rule: `token_matching`: greedy drafts, accepted while the target's own sample agrees (arXiv 2605.29343);
            `rejection`: drafts sampled from the drafter, accepted with probability min(1, p/q), else a sample of the
            residual distribution (arXiv 2211.17192, 2302.01318). Both are the same at temperature 0.
        seed: of the sampling.
        memory_gib: bound on the memory of a batch's caches and stored states, in GiB; if need be, fewer prompts are
            decoded together. Finished results and the temporary memory of a forward do not count.
    """

    max_new_tokens: int = 128
    batch_size: int = 16
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    rule: str = "token_matching"
    seed: int = 0
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise DraftError("decoding.max_new_tokens and decoding.batch_size must be at least 1")
        if self.temperature < 0:
            raise DraftError(f"decoding.temperature={self.temperature}: 0 is greedy, larger is more random")
        if self.top_k is not None and self.top_k < 1:
            raise DraftError(f"decoding.top_k={self.top_k} keeps no token: null keeps all")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise DraftError(f"decoding.{name}={value} must lie in (0, 1]: null does not filter")
        if self.rule not in ("token_matching", "rejection"):
            raise DraftError(f"decoding.rule={self.rule} is not known: token_matching or rejection")

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

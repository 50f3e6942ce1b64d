"""What is compared: one drafter's results, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.evaluation.curves import Curve
from draftopd.evaluation.results import Result, distinct, place
from draftopd.evaluation.scores import Answer, Scores, compare, score
from draftopd.evaluation.stats import Estimate

Key = tuple[str, str, str]
"""of a prompt: set, id and digest"""


@dataclass(frozen=True)
class Run:
    """A drafter with its numbers on the test prompts: a run or stage of `fit`, or a drafter of `evaluate`."""

    id: str
    """MLflow's; else the file of the results; its checkpoint where a run was only started from it"""
    name: str
    result: Result
    target_fingerprint: str
    decoding: Decoding
    origin: Mapping[str, str]
    """command, git_commit and machine"""
    init_from: str = ""
    """id or checkpoint that its training started from"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """of its config, which tell runs of one name apart"""

    @property
    def scores(self) -> Scores:
        """Means over the sets of prompts."""
        return self.result.scores["mean"]

    @property
    def acceptance_length(self) -> Estimate:
        return self.scores["acceptance_length"].estimate()

    @property
    def accept_at(self) -> list[float]:
        """[K] share of blocks whose first k drafts held, among blocks that drafted so many; mean over sets."""
        return [value.value for key, value in self.scores.items() if key.startswith("accept_at/")]

    @cached_property
    def by_prompt(self) -> dict[Key, Answer]:
        return {(answer.set, answer.id, answer.digest): answer for answer in self.result.answers}


def difference(run: Run, reference: Run) -> Estimate | str:
    """τ less the reference's, paired over the prompts that both were tested on; or what stands against that."""
    if run.target_fingerprint != reference.target_fingerprint:
        return "other target"
    if _written(run.decoding) != _written(reference.decoding):
        return "other decoding"
    common = [key for key in reference.by_prompt if key in run.by_prompt]
    if not common:
        return "other prompts"
    sides = []
    for one in (run, reference):
        whole = list(one.by_prompt) == common
        sides.append(one.result.scores if whole else score([one.by_prompt[key] for key in common]))
    return compare(*sides)["mean"]["acceptance_length"].estimate()


def _written(decoding: Decoding) -> tuple:
    """On what the texts depend."""
    return decoding.max_new_tokens, *decoding.recipe.items()


def start_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The one of them that its training started from."""
    given = run.init_from
    return next((r for r in runs if given and given in (r.id, r.result.checkpoint) and r is not run), None)


def flops_before(run: Run, runs: Sequence[Run]) -> float:
    """Training FLOPs of what it started from, as far as its results or the runs know them."""
    start, training = start_of(run, runs), run.result.training
    if training is not None and training.before is not None:
        return training.before
    if start is None or start.result.training is None:
        return 0.0
    return start.result.training.flops + flops_before(start, runs)


def curve(run: Run, runs: Sequence[Run]) -> Curve:
    """Its validations; where the run that it started from is among the runs, from that one's end on."""
    start = start_of(run, runs)
    own = Curve(run.name, run.result.curve.points)
    return own if start is None else own.after(curve(start, runs))


def reference_run(runs: Sequence[Run], name: str | None = None) -> Run:
    """The run of this name or id; None = the first.

    Raises:
        DraftError: there is none, or several.
    """
    found = [run for run in runs if name in (run.name, run.id)] if name else runs[:1]
    if len(found) != 1:
        raise DraftError(f"no single run is called '{name}': choose one of {', '.join(run.name for run in runs)}")
    return found[0]


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """The same with names that occur once: to a name that several have, what tells them apart is added."""
    names = distinct([run.name for run in runs], [_told(run, runs) for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _told(run: Run, runs: Sequence[Run]) -> str:
    """Of runs of one name, up to two settings in which they differ; the place where it takes more."""
    alike = [other for other in runs if other.name == run.name]
    keys = sorted({key for other in alike for key in other.settings})
    differ = [key for key in keys if len({other.settings.get(key) for other in alike}) > 1]
    values = {tuple(other.settings.get(key) for key in differ) for other in alike}
    if len(differ) > 2 or len(values) < len(alike):
        return place(run.id)
    return ", ".join(f"{key}={run.settings.get(key, '')}"[-40:] for key in differ)

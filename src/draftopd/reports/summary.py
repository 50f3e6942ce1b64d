"""The end of a run: its table, where everything lies, and what to type next; for the terminal, a file and MLflow."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import get_console

from draftopd.checkpoints.checks import LAYOUTS
from draftopd.data.storage import replacing
from draftopd.evaluation.results import Result, Results
from draftopd.reports.stages import Cells, best, differences, tables
from draftopd.tracking.pages import PAGES
from draftopd.tracking.store import public

FILE = "summary.md"
OWN_PLACE = ("hydra.run.dir=", "resume=", "seed=")
"""words of a command that the same with another seed does not repeat"""
NOT_AGAIN = ("init_from=", "init_optimizer=", "from_scratch=", "resume=")
"""words of a command that one which goes on from its result does not repeat"""


@dataclass(frozen=True)
class Store:
    """MLflow's, as its pages and the next commands find it.

    Args:
        uri: of this run; None = it has none.
        usual: that commands take by themselves.
        pages: address at which `python -m draftopd.ui` serves them.
        experiment: id of the runs' experiment where it is known: with it, MLflow does not show its sidebar for GenAI.
    """

    uri: str | None
    usual: str
    pages: str
    experiment: str = ""

    def page(self, run_id: str) -> str:
        """A run's page, and what serves it."""
        uri = self.uri or ""
        page = f"experiments/{self.experiment}/runs/{run_id}?{PAGES}" if self.experiment else f"runs/{run_id}"
        if uri.startswith("http"):
            return f"{public(uri).rstrip('/')}/#/{page}"
        store = "" if uri == self.usual else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        return f"{self.pages}/#/{page} (after: {store}python -m draftopd.ui)"


@dataclass(frozen=True)
class Commands:
    """What goes on from the stages of a run.

    Args:
        words: of each stage, those that compose it alone.
        drafters: of each stage, the name of its drafter's class.
        again: what runs all of it with another number, and what then puts the runs side by side.
    """

    store: Store
    words: Mapping[str, Sequence[str]]
    drafters: Mapping[str, str] = field(default_factory=dict)
    again: Sequence[str] = ()

    def after(self, result: Result) -> list[str]:
        usual = result.run_id is not None and self.store.uri == self.store.usual
        drafter = shlex.quote(str(result.run_id if usual else result.checkpoint))
        own = [word for word in self.words.get(result.name, ()) if not word.lstrip("+").startswith(NOT_AGAIN)]
        kind = self.drafters.get(result.name)
        layout = next((layout.name for layout in LAYOUTS if layout.kind.__name__ == kind), "speculators")
        return [
            f"python -m draftopd.evaluate checkpoint={drafter}",
            f"python -m draftopd.export run={drafter} layout={layout}",
            f"python -m draftopd.fit {shlex.join(own)} init_from={drafter}",
        ]


def summary(results: Results, commands: Commands, parent: tuple[str, str] | None = None) -> list[Cells | str]:
    """Tables and paragraphs, in the order of reading.

    Args:
        parent: name and id of the MLflow run above the stages.
    """
    trained = [result for result in results.results if result.training]
    runs = [*([parent] if parent else []), *((r.name, r.run_id) for r in trained if r.run_id)]
    parts: list[Cells | str] = list(tables(results))
    if lines := list(differences(results)):
        parts.append("\n".join(f"- {line}" for line in lines))
    chosen = best(results)
    lines = [f"checkpoint of {chosen.name}: {chosen.checkpoint}"]
    if runs:
        lines.insert(0, "MLflow runs: " + ", ".join(f"{name} {run_id}" for name, run_id in runs))
        lines.append(f"page: {commands.store.page(str(runs[0][1]))}")
    parts.append("\n".join(f"- {line}" for line in lines))
    why = "" if len(trained) == 1 else f" with {chosen.name}" + (", the longest τ" if chosen.answers else "")
    parts.append("\n".join([f"Next{why}: test, export, train on", "", *(f"    {c}" for c in commands.after(chosen))]))
    if commands.again:
        parts.append("\n".join(["Or change a number, and compare", "", *(f"    {c}" for c in commands.again)]))
    return parts


def again(words: Sequence[str], seed: int, compared: str) -> list[str]:
    """
    Args:
        words: of this run.
        compared: what names its runs and the next ones for `draftopd.compare`.
    """
    same = [word for word in words if not word.startswith(OWN_PLACE)]
    return [
        f"python -m draftopd.fit {shlex.join([*same, f'seed={seed + 1}'])}",
        f"python -m draftopd.compare {shlex.quote(compared)}",
    ]


def markdown(parts: Sequence[Cells | str]) -> str:
    return "\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts) + "\n"


def show(parts: Sequence[Cells | str], folder: Path) -> Path:
    """Prints the summary and writes it into a folder; the file."""
    console = get_console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, markup=False, highlight=False)
        else:
            console.print(part.terminal())
        console.print()
    path = folder / FILE
    with replacing(path) as unfinished:
        unfinished.write_text(markdown(parts), encoding="utf-8")
    console.print(f"this summary: {path}", soft_wrap=True, highlight=False)
    return path


def stopped(done: Sequence[Results], command: str) -> Iterator[str]:
    """What an interrupted run has finished, and the command that goes on.

    Args:
        command: that started it.
    """
    for result in (r for results in done for r in results.results if r.training):
        tau = f": τ {result.scores['mean']['acceptance_length'].estimate()}" if result.answers else ""
        yield f"finished: {result.name}{tau}, {result.checkpoint}"
    words = [word for word in shlex.split(command) if not word.startswith("resume=")]
    yield f"to go on: {shlex.join([*words, 'resume=auto'])}"

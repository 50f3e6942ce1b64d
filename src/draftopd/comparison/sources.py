"""Where runs come from: MLflow's runs and experiments, folders of runs, results files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from itertools import chain
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf

from draftopd.comparison.runs import Run, named_apart
from draftopd.errors import DraftError
from draftopd.evaluation.results import FILE, SCHEMA, Results, load
from draftopd.tracking.pages import STAGE
from draftopd.tracking.store import open_store, public

RUN_ID = 32  # letters
OUTPUTS = Path("outputs")


def find(words: Sequence[str], tracking_uri: str | None = None) -> list[Run]:
    """Finished runs, each once, in the order in which they are named.

    Args:
        words: each a results.json, a folder of a run, a stage or several runs (also as named under outputs/), the id of
            an MLflow run, or the name of an MLflow experiment.
        tracking_uri: MLflow's store; None = without MLflow.

    Raises:
        DraftError: something is none of these, the store cannot be read, or nothing has results.
    """
    found: dict[str, Run] = {}
    for word in words:
        for run in _named(word, tracking_uri):
            found.setdefault(run.result.run_id or f"{run.id} {run.name}", run)
    if not found:
        raise DraftError(f"no test results of schema {SCHEMA} in {', '.join(words)}: nothing to compare")
    trained = {run.result.checkpoint for run in found.values() if run.result.training}
    starts = trained & {run.id for run in found.values()}  # the runs that made them are there
    return named_apart([run for run in found.values() if run.id not in starts])


def _named(word: str, tracking_uri: str | None) -> Iterable[Run]:
    path = next((p for p in (Path(word).expanduser(), OUTPUTS / word) if p.exists()), None)
    if path is not None:
        return in_files(path)
    if tracking_uri is None:
        raise DraftError(f"there is no file or folder {word}, and without a logger no run of MLflow")
    return _Store(tracking_uri).runs(word)


def in_files(path: Path) -> Iterator[Run]:
    """Of a results file, or of the topmost ones in a folder: that of a run with stages holds all of them.

    Raises:
        DraftError: a file that is named cannot be read.
    """
    if path.is_file():
        yield from _runs(load(path), str(path), _hydra(path.parent, "overrides.yaml"), _start(path.parent))
    elif (path / FILE).is_file():
        yield from in_files(path / FILE)
    else:
        folders = (folder for folder in path.iterdir() if folder.is_dir())
        yield from chain.from_iterable(in_files(folder) for folder in sorted(folders, key=_number))


def _number(folder: Path) -> tuple[int, str]:
    """Jobs of a sweep in their order: 2 before 10."""
    return (int(folder.name) if folder.name.isdecimal() else -1, folder.name)


def _hydra(folder: Path, name: str) -> dict[str, str]:
    """Words that a run was given, as Hydra saved them; none where Hydra did not."""
    path = folder / ".hydra" / name
    words = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    assert isinstance(words, list)
    return dict(str(word).lstrip("+~").partition("=")[::2] for word in words)


def _start(folder: Path) -> str:
    """What the run in a folder started from; its config has it for single runs."""
    path = folder / ".hydra" / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    assert isinstance(config, dict)
    given = str(config.get("init_from") or "")
    return str(Path(given).expanduser().resolve()) if given and Path(given).expanduser().exists() else given


def _runs(results: Results, place: str, settings: Mapping[str, str], start: str = "") -> Iterator[Run]:
    """One for each drafter that was tested; also for what a run was only started from."""
    fitted = any(result.training for result in results.results)
    checkpoints = {result.name: result.checkpoint or "" for result in results.results}
    for result in results.results:
        if result.answers:
            began = checkpoints.get(result.start or "", start)
            common = (results.target_fingerprint, results.decoding, results.header)
            own = (result.checkpoint if fitted and not result.training else result.run_id) or place
            yield Run(own, result.name, result, *common, init_from=began, settings=settings)


class _Store:
    """MLflow's."""

    def __init__(self, uri: str) -> None:
        self.uri, self.client = uri, open_store(uri)

    def runs(self, word: str) -> list[Run]:
        """Of a run, with its stages where it has some; or of an experiment, in the order of their start."""
        try:
            if len(word) == RUN_ID and "/" not in word:
                return list(self._tested(self.client.get_run(word), all_stages=True))
            found = sorted(self._finished(word), key=lambda run: run.info.start_time)
            return [run for one in found for run in self._tested(one)]
        except MlflowException as error:
            raise DraftError(f"cannot read runs from {public(self.uri)}: {str(error).splitlines()[0]}") from error

    def _finished(self, experiment: str) -> Iterator[MlflowRun]:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(e.name for e in self.client.search_experiments()))
            raise DraftError(
                f"'{experiment}' is no file or folder, no MLflow run's id, and no MLflow experiment of "
                f"{public(self.uri)}, which has {known}"
            )
        token = None
        while token != "":
            page = self.client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", page_token=token)
            yield from page
            token = page.token or ""

    def _tested(self, run: MlflowRun, all_stages: bool = False) -> Iterator[Run]:
        """Its drafters; none for runs without a test, and whatever else has no results that this version reads."""
        results = self._results(run.info.run_id)
        start = run.data.tags.get("init_from", "")
        for found in _runs(results, run.info.run_id, run.data.params, start) if results else ():
            if found.result.run_id == run.info.run_id:
                yield replace(found, name=run.data.tags.get(STAGE, run.info.run_name))
            elif found.result.training is None or all_stages:
                yield found

    def _results(self, run_id: str) -> Results | None:
        if not any(file.path == FILE for file in self.client.list_artifacts(run_id)):
            return None
        with redirect_stderr(StringIO()):  # a progress bar for every small file
            path = Path(self.client.download_artifacts(run_id, FILE))
        try:
            return load(path)
        except DraftError:
            return None

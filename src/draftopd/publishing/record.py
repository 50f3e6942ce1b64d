"""What is known of a drafter from the results of its run, or of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from draftopd.errors import DraftError
from draftopd.evaluation.results import FILE, Result, Results, Training, load


@dataclass(frozen=True)
class Record:
    """A drafter's test and training.

    Args:
        results: the file that `result` is in.
        training: of its run, where that is known.
    """

    results: Results
    result: Result
    training: Training | None


def find_record(run: str, source: Path, given: str | None, target_fingerprint: str) -> Record | None:
    """None where the run has left no results that this version reads.

    Args:
        run: as the user named the drafter.
        source: its checkpoint file, or a published folder.
        given: a results file of an evaluation, whose test is taken instead of that of the run.

    Raises:
        DraftError: the given file cannot be read, or is about another target or other drafters.
    """
    own = _own(source)
    if given is None:
        return None if own is None else Record(own, own.own, own.own.training)
    found = load(Path(given).expanduser())
    if found.target_fingerprint != target_fingerprint:
        raise DraftError(f"results={given} was measured with another target, {found.target_fingerprint}")
    mine = [result for result in found.results if _is(result, run, source)]
    if not mine:
        tested = ", ".join(str(result.checkpoint) for result in found.results)
        raise DraftError(f"results={given} has no test of {run}: it has {tested}; evaluate checkpoint={run}")
    return Record(found, mine[0], own.own.training if own else mine[0].training)


def _own(source: Path) -> Results | None:
    """Beside the checkpoint, where its run wrote them when it was through."""
    file = source.absolute().parents[1] / FILE
    if source.is_dir() or not file.exists():
        return None
    try:
        return load(file)
    except DraftError:
        return None


def _is(result: Result, run: str, source: Path) -> bool:
    known = result.checkpoint
    return run in (known, result.run_id) or (
        known is not None and Path(known).expanduser().resolve() == source.resolve()
    )

"""What a run shows in the terminal: progress bars for long work, and little else."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it by a number of items."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_console(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda finished: bar.advance(task, finished)


def quiet() -> None:
    """Silences log lines and warnings of other packages that would bury the progress bars; our own warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for words in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*log_every_n_steps.*",
        ".*in eval mode at the start.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # values are summed over processes before they are logged
        ".*ended before the epoch ended.*",  # such an epoch starts again from its beginning
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is modified in place
    ):
        warnings.filterwarnings("ignore", words)

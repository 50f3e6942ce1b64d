"""What a run shows in the terminal: bars for long work, and nothing that would drown them."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for long work; yields the function that moves it on."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_console(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda finished: bar.advance(task, finished)


def quiet() -> None:
    """Silences what would drown the progress bars and is of no use to a reader; warnings of our own stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for words in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*log_every_n_steps.*",
        ".*in eval mode at the start.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # what is logged is of all processes already
        ".*ended before the epoch ended.*",  # such an epoch is drawn again from its start
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is changed in place
    ):
        warnings.filterwarnings("ignore", words)

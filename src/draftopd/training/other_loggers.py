"""Lightning's loggers for TensorBoard and Weights & Biases, held so that they cannot stop a run."""

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from draftopd.errors import DraftError

log = logging.getLogger(__name__)


class OtherLogger(Logger):
    """A logger of Lightning's; its first error is told, and from then on it is left alone.

    Args:
        title: of its section in the config.
        make: makes it; by Lightning's rule it opens files and connections when it is first used.
    """

    def __init__(self, title: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self.title = title
        self._make, self._failed = make, False
        self._logger: Logger | None = None

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda logger: logger.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_args: Any, **_kwargs: Any) -> None:
        self._try(lambda logger: logger.log_hyperparams(params))

    def close(self, status: str) -> None:
        """When the run has ended, after its test: Lightning would end it before."""
        self._try(lambda logger: logger.finalize(status))
        if isinstance(self._logger, WandbLogger):  # else it would take the next stage for the same run
            self._try(lambda logger: logger.experiment.finish())

    def _try(self, use: Callable[[Any], object]) -> None:
        if self._failed:
            return
        try:
            if self._logger is None:
                self._logger = self._make()
            use(self._logger)
        except Exception as error:
            self._failed = True
            log.warning(f"{self.title} fails ({error}): the run goes on without it")


def require_installed(names: Sequence[str]) -> None:
    """Raises DraftError where the package of a logger, which has the logger's name, is missing."""
    for name in names:
        if find_spec(name) is None:
            raise DraftError(f"logger={name} needs the package {name}: pip install 'draftopd[{name}]'")

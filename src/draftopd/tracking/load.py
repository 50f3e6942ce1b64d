"""The machine's load while a run goes on: MLflow's own monitors, whose values are sent as all others are."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, Thread

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

PREFIX = "system/"
"""of metrics that MLflow's pages show under System metrics"""

log = logging.getLogger(__name__)


class Load:
    """A thread that samples processors, memory, disk, network and, where nvidia-ml-py is installed, GPUs.

    Args:
        first: step of the first sample.
    """

    def __init__(self, send: Callable[[Mapping[str, float], int], None], seconds: float, first: int = 0) -> None:
        self._send, self._seconds, self._step = send, seconds, first
        self._ended = Event()
        self._thread = Thread(target=self._work, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(1.0)  # a driver that hangs holds up nobody

    def _work(self) -> None:
        try:
            monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpus()]
            while not self._ended.is_set():
                self._sample(monitors)
                self._ended.wait(self._seconds)
        except Exception as error:  # of a driver, for instance
            log.warning(f"the machine's load is not logged any more: {error}")

    def _sample(self, monitors: list[BaseMetricsMonitor]) -> None:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {PREFIX + name: value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        if not self._ended.is_set():
            self._send(values, self._step)
            self._step += 1


def _gpus() -> list[BaseMetricsMonitor]:
    with suppress(Exception):  # no GPU of NVIDIA, or no nvidia-ml-py
        return [GPUMonitor()]
    return []

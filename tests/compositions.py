"""In one test process Hydra reads each shipped file once, and composes the same words once.

A command composes its configuration three times: for the check, and in Hydra to find out whether it is a sweep, and to
run. Tests of commands spent most of their time there. What is handed out is a copy, and files in other folders than `conf/` are always read.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig, open_dict

from draftopd.command import CONFIG_DIR

FIXED = {"hydra.conf", "", str(CONFIG_DIR)}
"""folders whose files do not change: Hydra's own, that of schemas, and ours"""


@contextmanager
def shared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", _once_a_file(ConfigRepository.load_config))
        patch.setattr(ConfigLoaderImpl, "load_configuration", _once(ConfigLoaderImpl.load_configuration))
        yield


def _once_a_file(load: Any) -> Any:
    known: dict[tuple[str, ...], bytes] = {}

    def loaded(repository: ConfigRepository, config_path: str) -> Any:
        places = [source.path for source in repository.get_sources()]
        if not FIXED.issuperset(places):
            return load(repository, config_path)
        key = (config_path, *places)
        if key not in known:
            known[key] = pickle.dumps(load(repository, config_path))
        return pickle.loads(known[key])

    return loaded


def _once(compose: Any) -> Any:
    known: dict[tuple[Any, ...], bytes] = {}

    def composed(loader: ConfigLoaderImpl, config_name: str, overrides: list[str], *rest: Any, **more: Any) -> Any:
        places = [source.path for source in loader.repository.get_sources()]
        own = any(word.startswith(("hydra.job", "hydra.searchpath")) for word in overrides)
        if own or not FIXED.issuperset(places):
            return compose(loader, config_name, overrides, *rest, **more)
        mode = (rest or [more["run_mode"]])[0]
        key = (config_name, mode, *overrides)
        if key not in known:
            known[key] = pickle.dumps(compose(loader, config_name, overrides, *rest, **more))
        config: DictConfig = pickle.loads(known[key])
        with open_dict(config.hydra):  # what is of this call
            config.hydra.runtime.cwd, config.hydra.job.name = os.getcwd(), JobRuntime.instance().get("name")
        return config

    return composed

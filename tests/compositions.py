"""In one test process Hydra reads each shipped file once, and merges the same files in the same order once.

A command composes its configuration three times: for the check, and in Hydra to find out whether it is a sweep, and to
run. Tests of commands spent most of their time there. The words of each command are still parsed and applied by Hydra
itself. What is handed out is a copy, and files in other folders than `conf/` are always read.
"""

import pickle
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from omegaconf import OmegaConf

from draftopd.command import CONFIG_DIR

FIXED = {"hydra.conf", "", str(CONFIG_DIR)}
"""folders whose files do not change: Hydra's own, that of schemas, and ours"""


@contextmanager
def shared() -> Iterator[None]:
    read, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    known: dict[Hashable, bytes] = {}

    def once(repository: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        places = tuple(source.path for source in repository.get_sources())
        if not FIXED.issuperset(places):
            return make()
        if (key, places) not in known:
            known[key, places] = pickle.dumps(make())
        return pickle.loads(known[key, places])

    def read_once(repository: ConfigRepository, config_path: str) -> Any:
        return once(repository, config_path, lambda: read(repository, config_path))

    def merged_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        files = tuple((default.config_path, default.package, default.primary) for default in defaults)
        config = once(repo, files, lambda: merge(loader, defaults, repo))
        OmegaConf.clear_cache(config)  # of `${now:}`
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", read_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged_once)
        yield

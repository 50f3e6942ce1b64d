"""What the commands share: where the configuration lies, and one clear line for what a user can fix."""

import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from draftopd.checkpoints.run_folder import AUTO, claim, last_config, lock_file, newest, unused
from draftopd.config.check import check
from draftopd.config.choices import explain, one_line, own_folder
from draftopd.config.places import CONFIG_DIR, HOME
from draftopd.errors import DraftError

OmegaConf.register_new_resolver(
    "mlflow_yaml", lambda key: OmegaConf.select(OmegaConf.load(HOME / "mlflow.yaml"), key), use_cache=True
)
OmegaConf.register_new_resolver("unused", unused, use_cache=True)  # cached: one folder a run, however often it is read


def check_words(command: str) -> None:
    """Composes and checks a command's configuration before Hydra makes its folder; a mistake ends in one line."""
    with one_line_errors():
        _check_overrides(command)


def take_list(name: str) -> None:
    """Makes a list of `name=a,b` on the command line, unless that asks for a sweep (-m)."""
    if not _arguments().multirun:
        given = re.compile(rf"{name}=([^\[\'\"].*,.*)")
        sys.argv[1:] = [f"{name}=[{found[1]}]" if (found := given.fullmatch(word)) else word for word in sys.argv[1:]]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can fix becomes `error: ...` on stderr and exit code 2, Ctrl-C exit code 130.

    Hydra's own switch for whole tracebacks, HYDRA_FULL_ERROR=1, is kept.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    try:
        yield
    except DraftError as error:
        _fail(str(error))
    except (InstantiationException, InterpolationResolutionError) as error:
        _fail(next((str(cause) for cause in _causes(error) if isinstance(cause, DraftError)), one_line(error)))
    except (HydraException, OmegaConfBaseException, MisconfigurationException, MlflowException, OSError) as error:
        _fail(one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    if cause is not None:
        yield cause
        yield from _causes(cause)


class RunFolder(Callback):
    """Takes the folder of a run before Hydra writes into it: `hydra.callbacks`. Ends the process where it cannot."""

    def __init__(self) -> None:
        self.lock: FileLock | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _as_hydras(config):
            self._claim(lambda: _folder(config), config, last_config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Only makes the folder above those of the runs."""
        with _as_hydras(config), one_line_errors():
            _ = config.hydra.sweep.dir

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """For each run of a sweep; Hydra has written its own files there by now."""
        if self.lock is None or self.lock.lock_file != str(lock_file(config.hydra.runtime.output_dir)):
            self._claim(lambda: config.hydra.runtime.output_dir, config, lambda _: None)

    def _claim(
        self, named: Callable[[], str], config: DictConfig, earlier: Callable[[Path], DictConfig | None]
    ) -> None:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return  # the first process takes it for all
        try:
            with one_line_errors():
                folder = Path(named())
                self.lock = claim(folder, _own(config), earlier(folder))
        except Exception:  # Hydra would warn and go on
            traceback.print_exc()
            sys.exit(1)


class SweepTable(Callback):
    """Compares the runs of a sweep when all have ended: `hydra.callbacks`."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from draftopd.comparison.report import show_folder  # single runs do not need it, and start sooner

        with _as_hydras(config):
            folder = Path(config.hydra.sweep.dir)
        try:
            show_folder(folder)
        except DraftError as error:  # the runs themselves have ended well
            print(f"the runs in {folder} are not compared: {error}", file=sys.stderr)


@contextmanager
def _as_hydras(config: DictConfig) -> Iterator[None]:
    """As Hydra does later: names of folders may have interpolations."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)
    try:
        yield
    finally:
        hydra.cfg = before


def _own(config: DictConfig) -> DictConfig:
    """Without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _folder(config: DictConfig) -> str:
    """Of a run; with `resume=auto` and no folder given, the newest one of the same run, if there is any."""
    folder = Path(config.hydra.run.dir)
    if config.get("resume") != AUTO:
        return str(folder)
    given = any(word.startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra)
    found = None if given else newest(folder.parents[1], _own(config))
    if found is not None:
        with suppress(OSError):
            folder.rmdir()  # the new one
        with read_write(config.hydra.run):
            config.hydra.run.dir = str(found)
    elif not given or not any(folder.rglob("*.ckpt")):
        print(f"resume=auto: there is no run of this name and config to go on with; a new one starts in {folder}")
    return config.hydra.run.dir


@contextmanager
def composed(command: str) -> Iterator[tuple[DictConfig, list[str]]]:
    """A command's configuration and its overrides, where nothing is to run; raises DraftError for a sweep."""
    asked = _arguments()
    if asked.multirun:
        raise DraftError("--dry-run is for single runs: leave out -m, and of every setting all values but one")
    words, _ = _words(asked)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield compose(asked.config_name or command, overrides=words), words


def _check_overrides(command: str) -> None:
    asked = _arguments()
    shows = (asked.help, asked.hydra_help, asked.cfg, asked.info, asked.shell_completion)
    if any(shows) or asked.experimental_rerun:
        return  # it runs nothing, or a job that has run
    if asked.config_path:
        raise DraftError("--config-path would leave out the files of draftopd: add a folder of yours with --config-dir")
    words, folders = _words(asked)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            for given in _choices(words) if asked.multirun else [words]:
                check(command, compose(asked.config_name or command, overrides=given), given)
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError, YAMLError) as error:
        raise DraftError(explain(error, folders)) from error


def _quoted(text: str) -> str:
    """As Hydra's words write a text."""
    return "'" + text.replace("'", "\\'") + "'"


def _words(asked: Namespace) -> tuple[list[str], list[Path]]:
    """A command's overrides, and the folders of configuration files."""
    words, folders = list(asked.overrides), [CONFIG_DIR]
    if asked.config_dir:
        folders.append(own_folder(asked.config_dir))
        # the same files in the same order as by the flag, and for all that composes here
        words.append(f"hydra.searchpath=[{_quoted(f'file://{folders[-1]}')}]")
    return words, folders


def _arguments() -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise DraftError(f"{message} (flags stand before all settings or after them)")

    parser.error = refuse  # type: ignore[method-assign]  # its own answer has many lines
    return parser.parse_args(sys.argv[1:])


def _choices(words: list[str]) -> list[list[str]]:
    """Overrides of single runs in which every choice of a sweep occurs; none where only a sweeper knows the choices."""
    options: list[list[str]] = []
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which globs look into
    for word, parsed in zip(words, parser.parse_overrides(words), strict=True):
        if parsed.is_choice_sweep() or parsed.is_range_sweep():
            key = word[: word.index("=") + 1]
            options.append([key + value for value in parsed.sweep_string_iterator()])
        else:
            options.append([] if parsed.is_sweep_override() else [word])
    if not all(options):
        return []
    base = [values[0] for values in options]
    others = [(at, value) for at, values in enumerate(options) for value in values[1:]]
    return [base, *([*base[:at], value, *base[at + 1 :]] for at, value in others)]


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

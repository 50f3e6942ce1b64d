"""What the commands share: where the configuration lies, and one clear line for what a user can fix."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from draftopd.config.check import check
from draftopd.config.choices import explain, one_line
from draftopd.config.rehearsal import require_writable
from draftopd.errors import DraftError

_HERE = Path(__file__).resolve().parent
# in a wheel conf/ and mlflow.yaml lie inside the package, in a checkout at its top
HOME = _HERE if (_HERE / "conf").is_dir() else _HERE.parents[1]
CONFIG_DIR = HOME / "conf"

OmegaConf.register_new_resolver(
    "mlflow_yaml", lambda key: OmegaConf.select(OmegaConf.load(HOME / "mlflow.yaml"), key), use_cache=True
)


def check_words(command: str) -> None:
    """Composes and checks a command's configuration before Hydra makes its folder; a mistake ends in one line."""
    with one_line_errors():
        _check_overrides(command)


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
    except InstantiationException as error:
        cause = error.__cause__
        _fail(str(cause) if isinstance(cause, DraftError) else one_line(error))
    except (HydraException, OmegaConfBaseException, MisconfigurationException, MlflowException, OSError) as error:
        _fail(one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _check_overrides(command: str) -> None:
    asked = _arguments()
    shows = (asked.help, asked.hydra_help, asked.cfg, asked.info, asked.shell_completion)
    if any(shows) or asked.experimental_rerun:
        return  # it runs nothing, or a job that has run
    words = list(asked.overrides)
    if asked.config_dir:
        words.append(f"hydra.searchpath=['file://{Path(asked.config_dir).absolute()}']")
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            for given in _choices(words) if asked.multirun else [words]:
                _check(command, asked.config_name or command, given, "sweep" if asked.multirun else "run")
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise DraftError(explain(error, CONFIG_DIR)) from error


def _arguments() -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise DraftError(f"{message} (flags stand before all settings or after them)")

    parser.error = refuse  # type: ignore[method-assign]  # its own answer has many lines
    return parser.parse_args(sys.argv[1:])


def _check(command: str, config_name: str, words: list[str], kind: str) -> None:
    config = compose(config_name, overrides=words, return_hydra_config=True)
    folder = None
    with suppress(OmegaConfBaseException):  # it may name what only a running job knows
        folder = config.hydra[kind].dir
    with open_dict(config):
        del config.hydra
    check(command, config, words)
    if folder is not None:
        require_writable(Path(folder), f"hydra.{kind}.dir")


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

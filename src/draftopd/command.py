"""What the commands share: where the configuration lies, and one clear line for what a user can fix."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from draftopd.errors import DraftError

_HERE = Path(__file__).resolve().parent
# in a wheel conf/ and mlflow.yaml lie inside the package, in a checkout at its top
HOME = _HERE if (_HERE / "conf").is_dir() else _HERE.parents[1]
CONFIG_DIR = HOME / "conf"

OmegaConf.register_new_resolver(
    "mlflow_yaml", lambda key: OmegaConf.select(OmegaConf.load(HOME / "mlflow.yaml"), key), use_cache=True
)


def check_words(config_name: str) -> None:
    """Composes a command's config before Hydra does, because Hydra's own report of a mistake takes many lines."""
    with one_line_errors():
        _check_overrides(config_name)


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
        _fail(str(cause) if isinstance(cause, DraftError) else _one_line(error))
    except (HydraException, OmegaConfBaseException, MisconfigurationException, MlflowException, OSError) as error:
        _fail(_one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _check_overrides(config_name: str) -> None:
    flags = {word for word in sys.argv[1:] if word.startswith("-")}
    sweep = flags & {"-m", "--multirun"}
    if flags - sweep:
        return  # --help, --cfg job, ...: Hydra shows something and runs nothing
    words = [word for word in sys.argv[1:] if word not in flags]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            configs = [compose(config_name, overrides=given) for given in (_choices(words) if sweep else [words])]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise DraftError(_one_line(error)) from error
    missing = sorted({key for config in configs for key in OmegaConf.missing_keys(config)})
    if missing:
        raise DraftError(f"{missing[0]} must be given: add {missing[0]}=... to the command")


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


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:6])


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

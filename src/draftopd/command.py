"""What the commands share: where the configuration lies, and one clear line for what a user can mend."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
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


def run_command(command: Callable[[], None], config_name: str) -> None:
    """Runs a Hydra command; composes its config before, because Hydra's own report of a mistake takes many lines."""
    with one_line_errors():
        _check_overrides(config_name)
    command()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend becomes `error: ...` on stderr and exit code 2, Ctrl-C exit code 130.

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
    words = sys.argv[1:]
    if any(word.startswith("-") for word in words):
        return  # Hydra's own flags, --multirun among them
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(config_name, overrides=words)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise DraftError(_one_line(error)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise DraftError(f"{missing[0]} must be given: add {missing[0]}=... to the command")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:6])


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

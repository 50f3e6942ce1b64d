"""Where the files of the configuration lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# in a wheel conf/, notebooks/ and mlflow.yaml lie inside the package, in a checkout at its top
HOME = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]
CONFIG_DIR = HOME / "conf"

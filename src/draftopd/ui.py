"""MLflow's pages for the store of mlflow.yaml: `python -m draftopd.ui`."""

import os
import subprocess
import sys

from omegaconf import OmegaConf

from draftopd.command import HOME, one_line_errors
from draftopd.tracking.store import open_store


def main() -> int:
    facts = OmegaConf.load(HOME / "mlflow.yaml")
    store = os.environ.get("MLFLOW_TRACKING_URI", facts.tracking_uri)
    with one_line_errors():
        open_store(store)  # a new one is made as runs make it
    words = ["--backend-store-uri", store, "--host", facts.ui.host, "--port", str(facts.ui.port)]
    try:
        return subprocess.call([sys.executable, "-m", "mlflow", "ui", *words])
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

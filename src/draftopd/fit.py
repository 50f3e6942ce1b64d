"""The training command: `python -m draftopd.fit experiment=...`."""

import hydra
from omegaconf import DictConfig

from draftopd.command import CONFIG_DIR, one_line_errors, run_command
from draftopd.training.run import run_stages


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="fit")
def _fit(config: DictConfig) -> None:
    with one_line_errors():
        run_stages(config)


def main() -> None:
    run_command(_fit, "fit")


if __name__ == "__main__":
    main()

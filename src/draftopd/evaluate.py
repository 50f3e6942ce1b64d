"""The evaluation command: `python -m draftopd.evaluate checkpoint=... [against=...] [prompts=eval/gsm8k]`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from draftopd.command import CONFIG_DIR, one_line_errors, run_command
from draftopd.console import quiet
from draftopd.evaluation import report
from draftopd.evaluation.run import evaluate


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="evaluate")
def _evaluate(config: DictConfig) -> None:
    with one_line_errors():
        quiet()
        config.output_dir = HydraConfig.get().runtime.output_dir
        report.show(evaluate(config), config, Path(config.output_dir))


def main() -> None:
    run_command(_evaluate, "evaluate")


if __name__ == "__main__":
    main()

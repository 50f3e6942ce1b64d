"""What a drafter was trained to read, noted a second time in config.json, in words of no engine.

A layer offset between two conventions leaves a config.json in which every key that engines read is valid
(vllm#40727): without a witness nothing but lost acceptance tells it. Folders of others have none.
"""

from typing import Any

from draftopd.drafters.base import Drafter
from draftopd.exchange.findings import Findings

KEY = "trained_to_read"


def note(drafter: Drafter) -> dict[str, Any]:
    return {KEY: drafter.reads}


def check(config: dict[str, Any], drafter: Drafter, findings: Findings) -> None:
    """
    Args:
        drafter: as the other keys of config.json describe it.
    """
    noted = config.get(KEY)
    if noted is not None and noted != drafter.reads:
        findings.error(
            f"config.json lets the drafter read {drafter.reads}, it was trained to read {noted}",
            "it gets other features than it was trained on: acceptance falls and nothing fails (vllm#40727)",
            "write the first as they were, or export it again",
        )

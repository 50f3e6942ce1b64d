"""What a drafter was trained to read, noted in its weights file as well.

A layer offset between two conventions leaves a config.json in which every key is valid (vllm#40727): without a second
witness nothing but lost acceptance tells it. Engines ignore the note, and folders of others have none.
"""

import json

from draftopd.drafters.base import Drafter
from draftopd.exchange.findings import Findings

KEY = "draftopd.reads"  # in the metadata of model.safetensors


def note(drafter: Drafter) -> dict[str, str]:
    return {KEY: json.dumps(drafter.reads)}


def check(metadata: dict[str, str], drafter: Drafter, findings: Findings) -> None:
    """
    Args:
        drafter: as config.json describes it.
    """
    told, noted = note(drafter)[KEY], metadata.get(KEY)
    if noted is not None and noted != told:
        findings.error(
            f"config.json lets the drafter read {told}, its weights were written for {noted}",
            "it gets other features than it was trained on: acceptance falls and nothing fails (vllm#40727)",
            "write config.json as it was, or export it again",
        )

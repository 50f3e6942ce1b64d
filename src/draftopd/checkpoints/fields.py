"""Reading single keys of a config.json that anyone may have written."""

from typing import Any

from draftopd.checkpoints.findings import Findings

OTHER = "take another drafter"
UNREAD = "engines ignore it, an export from here copies it"
ROPES = ("rope_parameters", "rope_scaling")
NamedTarget = tuple[str | None, tuple[str, ...]]
"""its name and architectures"""


def names(value: Any) -> list[str]:
    """The names in a list, or a single name; none for anything else."""
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str)]


def architectures(key: str, value: Any, effect: str, findings: Findings) -> tuple[str, ...]:
    """The target's architectures, where the layout names them."""
    if value is not None and not (isinstance(value, list) and len(names(value)) == len(value)):
        findings.error(f"{key} is {value!r}", effect, "write the list that the target's config.json has")
    return tuple(names(value))


def named_target(config: dict[str, Any], findings: Findings) -> NamedTarget:
    """Where a layout has both at the top level."""
    key = "target_architectures"
    return config.get("target_name_or_path"), architectures(key, config.get(key), UNREAD, findings)


def rope_theta(raw: dict[str, Any], findings: Findings, default: float | None = None) -> float:
    """The base of the rotary embedding from either schema or both; 0 after an error.

    Args:
        default: what all engines take where none is given, if they agree.
    """
    new, scaling = (raw.get(key) or {} for key in ROPES)
    if not (isinstance(new, dict) and isinstance(scaling, dict)):
        key = ROPES[isinstance(new, dict)]
        findings.error(
            f"{key} is {raw[key]!r}", "vLLM, SGLang and transformers stop on reading config.json", "write an object"
        )
        return 0.0
    if any(isinstance(value, dict) for value in new.values()):
        findings.error("rope_parameters differ by kind of layer", "only one rope for all layers is supported", OTHER)
        return 0.0
    kinds = {str(table.get("rope_type", table.get("type", "default"))) for table in (new, scaling)} - {"default"}
    if kinds:
        findings.error(f"rope type {', '.join(sorted(kinds))}", "only plain rope is supported here", OTHER)
    for place in (raw, new):
        if place.get("partial_rotary_factor", 1) != 1:
            factor = place["partial_rotary_factor"]
            findings.error(f"partial_rotary_factor {factor}", "speculators ignored it, it is not supported here", OTHER)
    return _theta(raw.get("rope_theta"), new.get("rope_theta"), default, findings)


def _theta(top: Any, nested: Any, default: float | None, findings: Findings) -> float:
    given = [value for value in (top, nested) if isinstance(value, int | float) and value > 0]
    absent = "no rope_theta, neither at the top level nor in rope_parameters"
    if not given and default is not None:
        findings.warning(
            absent,
            f"vLLM, SGLang and transformers take {default:g}",
            "write the value that it was trained with into both",
        )
        return default
    if not given:
        findings.error(
            absent,
            "vLLM takes 1000000, z-lab's code 10000: acceptance falls and nothing fails",
            "write the value that the drafter was trained with into both",
        )
    elif len(set(given)) > 1:
        findings.error(
            f"rope_theta is {given[0]} at the top level and {given[1]} in rope_parameters",
            "transformers 4 reads the first, transformers 5 and vLLM the second: acceptance falls and nothing fails",
            "write the value that the drafter was trained with into both",
        )
    elif top is None:
        findings.warning(
            "rope_theta is only in rope_parameters",
            "transformers 4, which z-lab's code pins, takes 10000 instead",
            "write it at the top level too",
        )
    return float(given[0]) if given else 0.0


def agreed(key: str, places: dict[str, Any], effect: str, findings: Findings) -> int | None:
    """The number under a key that may be in several places of config.json."""
    given = {place: value for place, value in places.items() if value is not None}
    wrong = [value for value in given.values() if isinstance(value, bool) or not isinstance(value, int)]
    if not given or wrong:
        what = f"{key} is {wrong[0]!r}" if wrong else f"no {key}"
        findings.error(what, effect, f"write a whole number to {' and to '.join(places)}")
        return None
    if len(set(given.values())) > 1:
        text = ", ".join(f"{value} in {place}" for place, value in given.items())
        findings.error(f"{key} is {text}", effect, "write the number that the drafter was trained with into each")
    return next(iter(given.values()))


def numbers(key: str, value: Any, findings: Findings) -> list[int]:
    """A list of layer ids; empty after an error."""
    if isinstance(value, list) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return value
    findings.error(
        f"{key} is {value!r}",
        "vLLM and SGLang fall back to layers that the drafter was not trained on, or refuse",
        "write the list of layers whose features the drafter was trained on",
    )
    return []


def depth(config: dict[str, Any], findings: Findings) -> int | None:
    """The target's number of layers; None where it is left out, or after an error."""
    value = config.get("num_target_layers")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    fix = "write the target's number of layers, or drop the key"
    findings.error(f"num_target_layers is {value!r}", "SGLang refuses it", fix)
    return None


def drafts(key: str, tokens: int | None, block_size: int | None, findings: Findings, *, anchor: bool = True) -> None:
    """A number of drafts that is given beside the block size.

    Args:
        anchor: the block size counts the anchor.
    """
    if tokens is None or block_size is None or tokens == block_size - anchor:
        return
    holds = "the anchor and block_size - 1 drafts" if anchor else "block_size drafts"
    findings.error(
        f"{key} is {tokens} beside block_size {block_size}",
        f"vLLM drafts that many tokens; a block holds {holds}",
        f"write {block_size - anchor}",
    )


def outputs(key: str, value: Any, whose: str, findings: Findings) -> list[int]:
    """0-based layer outputs from ids that count the hidden states before a layer; empty after an error."""
    before = numbers(key, value, findings)
    if 0 in before:
        findings.error(
            f"{key} {before} holds 0, the embedding's output",
            f"speculators and vLLM count hidden states before a layer, so 0 looks like {whose} ids, one too low",
            f"if these are 0-based layer outputs, write {[i + 1 for i in before]}",
        )
        return []
    return [i - 1 for i in before]

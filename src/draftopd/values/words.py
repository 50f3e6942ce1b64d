"""Values and types as an error message says them, and the nearest of several names."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    dict: "a section of names and values",
    list: "a list",
}
LONGEST = 60  # characters of a value that are shown


def words(annotation: Any) -> str:
    """A type of `types.py`, or one made of plain types, as in "a whole number of at least 1, or null"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(parts[0], parts[1:])
    if origin is Literal:
        return either(shown(part) for part in parts)
    if origin in (Union, types.UnionType):
        *several, last = sorted((words(part) for part in parts), key=lambda part: part == "null")
        return f"{', '.join(several)}, or {last}" if len(several) > 1 or last == "null" else f"{several[0]} or {last}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return PLAIN[dict]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = {words(part) for part in parts if part is not Ellipsis}
        return f"a list, each {inner.pop()}" if len(inner) == 1 else PLAIN[list]
    return PLAIN.get(annotation, PLAIN[str])


def _bounded(inner: Any, facts: Iterable[Any]) -> str:
    flat = [fact for field in facts for fact in (field, *getattr(field, "metadata", ()))]
    told = next((fact.description for fact in flat if getattr(fact, "description", None)), None)
    if told:
        return str(told)
    bounds = [f"{word} {limit}" for fact in flat for word, limit in _bounds(fact)]
    join = " of " if bounds and bounds[0].startswith("at") else " "
    return words(inner) + (join + " and ".join(bounds) if bounds else "")


def _bounds(fact: Any) -> Iterator[tuple[str, Any]]:
    for name, word in BOUNDS.items():
        limit = getattr(fact, name, None)
        if limit is not None:
            yield word, limit


def shown(value: Any) -> str:
    """A value as the command line takes it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        text = value if value.strip() else repr(value)
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key}: {shown(inner)}' for key, inner in list(value.items())[:LONGEST])}}}"
    elif isinstance(value, Sequence):
        text = f"[{', '.join(shown(inner) for inner in value[:LONGEST])}]"
    else:
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def either(names: Iterable[str]) -> str:
    *several, last = names
    return f"{', '.join(several)} or {last}" if several else last


def nearest(name: Any, names: Iterable[str]) -> str:
    """": did you mean x?" where a name is near, else nothing."""
    near = get_close_matches(str(name), [str(known) for known in names], n=1)
    return f": did you mean {near[0]}?" if near else ""

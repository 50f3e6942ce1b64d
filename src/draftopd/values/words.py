"""Values and types as an error message says them, and the nearest of several names."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
    None: "null",
    type(None): "null",
    Any: "finite",
    dict: "a section of names and values",
    list: "a list",
}
LONGEST = 60  # characters of a value that are shown


def words(annotation: Any) -> str:
    """A type made of plain ones, as in "a whole number of at least 1, or null"."""
    *several, last = dict.fromkeys(_alternatives(annotation))
    return f"{', '.join(several)}{',' if last == 'null' else ''} or {last}" if several else last


def choices(annotation: Any) -> Iterator[str]:
    """The fixed values among those that a type allows."""
    if get_origin(annotation) is Literal:
        yield from (shown(choice) for choice in get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        yield from (choice for part in get_args(annotation) for choice in choices(part))


def _alternatives(annotation: Any) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return [_bounded(parts[0], parts[1:])]
    if origin is Literal:
        return list(choices(annotation))
    if origin in (Union, types.UnionType):
        parts = tuple(part for part in parts if part is not int or float not in parts)
        found = [name for part in parts for name in _alternatives(part)]
        return sorted(found, key=lambda name: name == NAMES[type(None)])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [NAMES[dict]]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = {words(part) for part in parts if part is not Ellipsis}
        return [f"a list, each {inner.pop()}" if len(inner) == 1 else NAMES[list]]
    return [NAMES[annotation]]


def _bounded(inner: Any, facts: Iterable[Any]) -> str:
    flat = [fact for field in facts for fact in (field, *getattr(field, "metadata", ()))]
    told = next((fact.description for fact in flat if getattr(fact, "description", None)), None)
    bounds = [f"{word} {fact_limit}" for fact in flat for word, fact_limit in _limits(fact)]
    if told or not bounds:
        return str(told or words(inner))
    return f"{words(inner)}{' of' if bounds[0].startswith('at') else ''} {' and '.join(bounds)}"


def _limits(fact: Any) -> Iterator[tuple[str, Any]]:
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
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def nearest(name: Any, names: Iterable[str]) -> str:
    """ ": did you mean x?" where a name is near, else nothing."""
    near = get_close_matches(str(name), list(names), n=1)
    return f": did you mean {near[0]}?" if near else ""

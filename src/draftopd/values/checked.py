"""Arguments checked against the types of a signature: where a config names a class, and where Python calls it.

pydantic does the checking, in its strict mode: 4.0 is no whole number, "5" no number, and 1 not true.
"""

import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce, wraps
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from draftopd.errors import DraftError
from draftopd.values.words import choices, nearest, shown, words

SCALARS = (int, float, bool, str, type(None), Path)
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """What one argument may be.

    Args:
        annotation: its type, as far as a config can write it; None = only an object made by a section of its own.
        required: it has no default.
    """

    annotation: Any
    required: bool = False

    def require(self, path: str, value: Any) -> None:
        """Raises DraftError where plain data, as a config has it, are no such value."""
        if self.annotation is None:
            raise DraftError(f"{path}={shown(value)} must be a section with a _target_")
        if not (_finite(value) and self._accepts(value)):
            near = nearest(value, choices(self.annotation))
            raise DraftError(f"{path}={shown(value)} must be {words(self.annotation)}{near}")

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation, config=STRICT)

    def _accepts(self, value: Any) -> bool:
        if self.annotation is Any:
            return True
        try:
            self._adapter.validate_json(json.dumps(value))  # JSON has no tuples: a list is good for one
        except (ValidationError, ValueError, RecursionError):
            return False
        return True


@dataclass(frozen=True)
class Signature:
    settings: Mapping[str, Setting]
    open: bool
    """takes further names"""

    def require_known(self, owner: str, name: str, others: Collection[str] = ()) -> None:
        """Raises DraftError where there is no such setting, among `others` neither."""
        known = [*self.settings, *others]
        if name not in known and not self.open:
            raise DraftError(
                f"{owner} has no setting {name}{nearest(name, known)} (it has {', '.join(known) or 'none'})"
            )

    def require_all(
        self,
        owner: str,
        values: Mapping[str, Any],
        path: str = "",
        *,
        complete: bool = True,
        others: Collection[str] = (),
    ) -> None:
        """Raises DraftError at the first value that is unknown, wrong or missing.

        Args:
            owner: what has these settings, for the message.
            path: of the section in a config; "" = its top.
            complete: settings without a default must be among the values, or among the names of `others`.
        """
        before = f"{path}." if path else ""
        for name, value in values.items():
            self.require_known(owner, name, others)
            if name in self.settings:
                self.settings[name].require(f"{before}{name}", value)
        for name, setting in self.settings.items():
            if complete and setting.required and name not in values and name not in others:
                raise DraftError(f"{before}{name} must be given")


@cache
def signature(made: Callable[..., Any]) -> Signature:
    """Of a class or function."""
    try:
        parameters = inspect.signature(made, eval_str=True).parameters.values()
    except NameError:  # types that exist only for type checkers
        parameters = inspect.signature(made).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    settings = {p.name: Setting(plain(p.annotation), p.default is p.empty) for p in named}
    return Signature(settings, open=any(p.kind is p.VAR_KEYWORD for p in parameters))


def plain(annotation: Any) -> Any:
    """The part of a type that plain data can be: scalars, choices, lists and mappings of them; None = no part."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, str | TypeVar):
        return Any
    if annotation in SCALARS or annotation in (list, dict) or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = plain(parts[0])
        return inner if inner in (Any, None) else Annotated[(inner, *parts[1:])]
    if origin in (Union, types.UnionType):
        found = [plain(part) for part in parts]
        chosen = [part for part in found if part is not None]
        return Any if Any in chosen else reduce(or_, chosen) if chosen else None
    if isinstance(origin, type) and issubclass(origin, Sequence | Mapping):
        inner = tuple(part if part is Ellipsis else plain(part) for part in parts)
        return origin if not inner else None if None in inner else origin[inner]  # type: ignore[index]
    return None


def checked(made: C) -> C:
    """Arguments of a class or function are checked whenever it is called. Objects, as opposed to plain data, pass.

    Raises:
        DraftError: when it is called with data that its signature does not allow.
    """
    inner: Callable[..., Any] = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    known = inspect.signature(inner)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        for name, value in known.bind_partial(*args, **kwargs).arguments.items():
            setting = signature(made).settings.get(name)
            if setting is not None and setting.annotation is not None and _is_data(value):
                setting.require(f"{made.__name__}: {name}", _data(value))
        return inner(*args, **kwargs)

    if not isinstance(made, type):
        return outer  # type: ignore[return-value]
    made.__init__ = outer  # type: ignore[misc]
    return made


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple | ListConfig):
        return all(_is_data(part) for part in _parts(value))
    return value is None or type(value) in (int, float, bool, str)


def _data(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value


def _parts(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, Mapping) else value


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return all(_finite(part) for part in _parts(value))
    return not isinstance(value, float) or math.isfinite(value)

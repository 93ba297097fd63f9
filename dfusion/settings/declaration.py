"""How schema.py declares a setting, and what follows from the declaration: checks and help.

A setting is a field of a dataclass, with its default and a comment right above it:

    # Noise weight of DDIM.
    eta: Annotated[float, Range(above=0, at_most=1)] = 1.0

A Literal lists the allowed words, a Range limits numbers; `int | Literal["auto"]` allows either.
"""

import dataclasses
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from dfusion.errors import UserError
from dfusion.settings.plain_text import check_text, names_of

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
T = TypeVar("T")
_FREE, _OR_OWN = object(), object()
# A setting that affects how a run proceeds, not its results: it may differ when a run continues.
Free = Annotated[T, _FREE]
# A listed word, or your own function or class, given as package.module:name.
OrOwn = Annotated[T, _OR_OWN]


class Several:
    """The words that a str setting may contain: one or more of them, separated by commas."""

    def __init__(self, *words: str) -> None:
        self.words = words


@dataclass(frozen=True)
class Range:
    """The numbers that a setting accepts. Without limits, any finite number."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def broken(self, value: float) -> str | None:
        """The limit that a number violates, in words; None if it violates none."""
        for words, limit, holds in self._limits():
            if not holds(value, limit):
                return f"{words} {limit}"
        return None if math.isfinite(value) else "a finite number"

    def __str__(self) -> str:
        if None not in (self.at_least, self.at_most):
            return f"from {self.at_least} to {self.at_most}"
        return " and ".join(f"{words} {limit}" for words, limit, _ in self._limits())

    def _limits(self) -> Iterator[tuple[str, float, Callable[[float, float], bool]]]:
        for name, holds in (
            *(("at_least", operator.ge), ("above", operator.gt)),
            *(("at_most", operator.le), ("below", operator.lt)),
        ):
            if (limit := getattr(self, name)) is not None:
                yield name.replace("_", " "), limit, holds


@dataclass(frozen=True)
class Setting:
    """A setting, as its field's annotation describes it.

    kind: its type. words: those allowed; if empty, any text is. A number may allow words as well.
    several: whether it may list more than one word. free: see Free. or_own: see OrOwn.
    """

    kind: type
    words: tuple[str, ...]
    range: Range
    several: bool
    free: bool
    or_own: bool

    @classmethod
    def of(cls, annotation: Any) -> "Setting":
        """The setting that a field's annotation describes."""
        parts = _parts(annotation)
        several = next((part for part in parts if isinstance(part, Several)), None)
        return cls(
            kind=next((part for part in parts if part in KINDS), str),
            words=several.words if several else tuple(p for p in parts if isinstance(p, str)),
            range=next((part for part in parts if isinstance(part, Range)), Range()),
            several=several is not None,
            free=_FREE in parts,
            or_own=_OR_OWN in parts,
        )

    @property
    def type_in_words(self) -> str:
        """ "a whole number or auto"."""
        return " or ".join([KINDS[self.kind], *(() if self.kind is str else self.words)])

    @property
    def values(self) -> str:
        """The allowed values, in words: a list, a range or a type."""
        if self.kind is str:
            words = (*self.words, "module:name") if self.or_own else self.words
            listed = ", ".join(words) or KINDS[str]
            return f"one or more of {listed}" if self.several else listed
        return ", or ".join([str(self.range) or KINDS[self.kind], *self.words])

    def check_type(self, what: str, value: object) -> None:
        """Refuse a value of the wrong type. what: the flag or file. Raises UserError.

        A whole number is accepted where a float is expected.
        """
        wanted = (int, float) if self.kind is float else self.kind
        same = isinstance(value, wanted) and isinstance(value, bool) == (self.kind is bool)
        if not same and value not in self.words:
            raise UserError(f"{what} {value!r}: must be {self.type_in_words}")

    def check(self, what: str, value: Any) -> None:
        """Refuse a value that is not allowed. what: the flag or file. Raises UserError."""
        self.check_type(what, value)
        if isinstance(value, str):
            check_text(what, value)
            self._check_words(what, value)
        elif broken := self.range.broken(value):
            raise UserError(f"{what} {value}: must be {broken}")

    def _check_words(self, what: str, text: str) -> None:
        if not self.words or (self.or_own and ":" in text):
            return
        listed = self.values if self.or_own else ", ".join(self.words)
        given = names_of(text) if self.several else [text]
        if not given:
            raise UserError(f"{what}: name at least one of {listed}")
        for word in given:
            if word not in self.words:
                raise UserError(f"{what} '{word}': choose from {listed}")


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The types, words, ranges and marks that an annotation consists of."""
    inside = get_args(annotation)
    if get_origin(annotation) is Literal or not inside:
        return inside or (annotation,)
    return tuple(part for each in inside for part in _parts(each))


def groups_of(cls: type) -> dict[str, type]:
    """The fields of a dataclass that are dataclasses themselves: groups of settings."""
    found = {field.name: field.type for field in dataclasses.fields(cls)}
    return {k: v for k, v in found.items() if isinstance(v, type) and dataclasses.is_dataclass(v)}


def settings_in(cls: type) -> dict[str, Setting]:
    """Every setting of a dataclass by flag name; field eta of group sample is "sample.eta"."""
    groups = groups_of(cls)
    found = {f.name: Setting.of(f.type) for f in dataclasses.fields(cls) if f.name not in groups}
    for name, group in groups.items():
        found |= {f"{name}.{key}": value for key, value in settings_in(group).items()}
    return found


def comments_in(cls: type) -> dict[str, str]:
    """The comment above each setting of a dataclass, by flag name."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if comment := re.match(r"    # (.*)", line):
            above.append(comment[1])
            continue
        if above and (field := re.match(r"    (\w+):", line)):
            found[field[1]] = " ".join(above)
        above = []
    for name, group in groups_of(cls).items():
        found |= {f"{name}.{key}": text for key, text in comments_in(group).items()}
    return found

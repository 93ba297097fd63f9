"""What follows from the declaration of a setting: checks, and what help says of it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from dfusion.errors import UserError
from dfusion.settings.declaration import Free, Range, Several, comments_in, settings_in
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import FREE, SETTINGS, Settings


@dataclass
class Group:
    # A fraction
    # in two lines.
    part: Annotated[float, Range(above=0, at_most=1)] = 1.0
    # Either.
    batch: Free[Annotated[int, Range(at_least=1, at_most=9)] | Literal["auto"]] = 1


@dataclass
class Plain:
    # One word.
    word: Literal["a", "b"] = "a"
    # Some words.
    words: Free[Annotated[str, Several("a", "b", "c")]] = "a,b"
    # Any text.
    text: str = ""
    # Any number.
    number: float = 0.0
    # Yes or no.
    yes: Free[bool] = True
    group: Group = field(default_factory=Group)


FOUND = settings_in(Plain)


def test_what_is_declared_is_found() -> None:
    assert {name: (s.kind, s.values, s.free) for name, s in FOUND.items()} == {
        "word": (str, "a, b", False),
        "words": (str, "one or more of a, b, c", True),
        "text": (str, "text", False),
        "number": (float, "a number", False),
        "yes": (bool, "True or False", True),
        "group.part": (float, "above 0 and at most 1", False),
        "group.batch": (int, "from 1 to 9, or auto", True),
    }
    comments = comments_in(Plain)
    assert comments.keys() == FOUND.keys()
    assert comments["group.part"] == "A fraction in two lines." and comments["yes"] == "Yes or no."


GOOD = [
    *(("word", "b"), ("words", "c, a"), ("text", "any"), ("number", -3), ("number", 1e9)),
    *(("yes", False), ("group.part", 1), ("group.batch", 9), ("group.batch", "auto")),
]
BAD = [
    ("word", "c", "--word 'c': choose from a, b"),
    ("word", 1, "--word 1: must be text"),
    ("words", "a,d", "--words 'd': choose from a, b, c"),
    ("words", " ,", "--words: name at least one of a, b, c"),
    ("text", "a\nb", r"--text: 'a\nb' has the character U+000A; write plain text in one line"),
    ("number", float("inf"), "--number inf: must be a finite number"),
    ("number", True, "--number True: must be a number"),
    ("yes", 1, "--yes 1: must be True or False"),
    ("group.part", 0.0, "--group.part 0.0: must be above 0"),
    ("group.part", 1.1, "--group.part 1.1: must be at most 1"),
    ("group.part", float("nan"), "--group.part nan: must be above 0"),
    ("group.batch", 10, "--group.batch 10: must be at most 9"),
    ("group.batch", "all", "--group.batch 'all': must be a whole number or auto"),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_what_a_setting_may_be(name: str, value: object) -> None:
    FOUND[name].check(f"--{name}", value)


@pytest.mark.parametrize(("name", "value", "line"), BAD)
def test_what_it_may_not_be(name: str, value: object, line: str) -> None:
    with pytest.raises(UserError) as caught:
        FOUND[name].check(f"--{name}", value)
    assert str(caught.value) == line


def test_every_setting_is_declared() -> None:
    assert SETTINGS.keys() == flat(Settings().to_dict()).keys() == comments_in(Settings).keys()
    assert "device" in FREE and "train.batch_size" in FREE
    assert not FREE & {"seed", "sample.batch_size", "train.method", "mixed_precision"}

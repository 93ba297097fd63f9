"""Human scores from comparing two images at a time, for runs with --config.eval.reward human.

Samples: every image of a prompt is compared with up to four others, and strengths.py turns the
answers into scores. Targets: each is compared with its base and its reference. Pairs, order and
sides depend only on the round and the rater; answers are written to disk at once.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from dfusion.errors import UserError
from dfusion.report.rounds import present
from dfusion.storage.experiment import SCORED, Round
from dfusion.view import ratings
from dfusion.view.folders import Data, NotThereError
from dfusion.view.human import check_open, digest, texts_of, write
from dfusion.view.strengths import Outcome, between, joined, strengths

T = TypeVar("T")
NEIGHBOURS = (1, 2)  # a prompt's images form a circle; distances on it
Shown = tuple[str, int]  # kind and index of an image
# (rater, the two): the better, None for a tie
Answers = dict[tuple[str, frozenset[Shown]], Shown | None]


@dataclass(frozen=True)
class Meeting:
    """Two images of one prompt, from left to right."""

    prompt: str
    images: tuple[Shown, Shown]


def meetings(data: Data, name: str, which: str, kind: str, rater: str) -> list[Meeting]:
    """All comparisons of a rater. Raises NotThereError until all images exist."""
    round_ = _compared(data, name, which)
    texts = texts_of(round_, kind)
    if not present(round_.folder / kind) >= set(range(len(texts))):
        raise NotThereError(f"{name}, {which}: its images are still being made")
    mix = random.Random(f"two {name} {which} {kind} {rater}")
    found = []
    for prompt in _shuffled(dict.fromkeys(texts), mix):
        members = _shuffled([i for i, text in enumerate(texts) if text == prompt], mix)
        pairs = _targets(round_, members) if kind == "target_images" else _circle(members)
        for pair in _shuffled(pairs, mix):
            left, right = _shuffled(pair, mix)
            found.append(Meeting(prompt, (left, right)))
    return found


def _shuffled(values: Iterable[T], mix: random.Random) -> list[T]:
    mixed = list(values)
    mix.shuffle(mixed)
    return mixed


def _circle(members: list[int]) -> list[tuple[Shown, Shown]]:
    n = len(members)
    pairs = {
        tuple(sorted((members[k], members[(k + d) % n]))) for d in NEIGHBOURS for k in range(n)
    }
    return [(("images", i), ("images", j)) for i, j in sorted(pairs) if i != j]


def _targets(round_: Round, members: list[int]) -> list[tuple[Shown, Shown]]:
    pairs = round_.pairs() or ()
    return [
        (("target_images", p), ("images", other))
        for p in members
        for other in (pairs[p].base, pairs[p].reference)
    ]


def task(data: Data, name: str, which: str, kind: str, rater: str) -> dict[str, Any]:
    """The rater's meetings with the answers so far, and every rater's progress."""
    answers = _answers(data, name, which, kind)
    items = [
        {
            "prompt": meeting.prompt,
            "images": [{"kind": k, "i": i} for k, i in meeting.images],
            "mine": _mine(answers, rater, meeting),
        }
        for meeting in meetings(data, name, which, kind, rater)
    ]
    given: dict[str, int] = {}
    for who, _ in answers:
        given[who] = given.get(who, 0) + 1
    return {"items": items, "raters": given}


def _mine(answers: Answers, rater: str, meeting: Meeting) -> int | None:
    """The rater's answer: 0 left, 1 right, -1 no difference; None: not answered yet."""
    key = (rater, frozenset(meeting.images))
    if key not in answers:
        return None
    better = answers[key]
    return -1 if better is None else meeting.images.index(better)


def compare(
    data: Data, name: str, which: str, kind: str, rater: str, number: int, choice: int
) -> None:
    """Record the answer to meeting `number`: 0 left, 1 right, -1 no difference."""
    asked = meetings(data, name, which, kind, rater)
    if not 0 <= number < len(asked):
        raise UserError(f"{name}, {which}: no comparison {number}")
    if choice not in (-1, 0, 1):
        raise UserError(f"choice {choice}: give 0 for left, 1 for right, -1 for no difference")
    round_, images = data.round(name, which), asked[number].images
    check_open(f"{name}, {which}", round_, kind)
    row = {
        "name": name,
        "round": which,
        "kind": kind,
        "rater": rater,
        "images": [[k, i, digest(data, round_, k, i)] for k, i in images],
        "better": None if choice < 0 else list(images[choice]),
    }
    ratings.append(_file(data), row)


def hand_in(data: Data, name: str, which: str, kind: str) -> int:
    """Write the scores that follow from all raters' answers; returns how many.

    Raises UserError while answers are missing, and where human.write does.
    """
    round_ = _compared(data, name, which)
    answers = _answers(data, name, which, kind)
    find = _target_scores if kind == "target_images" else _sample_scores
    scores = dict(find(round_, f"{name}, {which}", answers))
    return write(data, name, which, kind, scores, "two")


def _sample_scores(round_: Round, where: str, answers: Answers) -> Iterator[tuple[int, float]]:
    texts = round_.texts_to_score("images")
    for prompt in dict.fromkeys(texts):
        members = [i for i, text in enumerate(texts) if text == prompt]
        place = {("images", i): n for n, i in enumerate(members)}
        outcomes = []
        for (_, pair), better in answers.items():
            a, b = sorted(pair)
            if a in place and b in place:
                share = 0.5 if better is None else float(better == a)
                outcomes.append(Outcome(place[a], place[b], share))
        if not joined(len(members), outcomes):
            raise UserError(f"{where}: '{prompt}' needs more comparisons; answer all of them")
        yield from zip(members, strengths(len(members), outcomes), strict=True)


def _target_scores(round_: Round, where: str, answers: Answers) -> Iterator[tuple[int, float]]:
    scores = round_.scores("images")
    for p, pair in enumerate(round_.pairs() or ()):
        if not {pair.base, pair.reference} <= scores.keys():
            raise UserError(f"{where}: its samples have no scores (any more); score them first")
        target, shares = ("target_images", p), []
        for other in (pair.base, pair.reference):
            met = frozenset((target, ("images", other)))
            given = [better for (_, images), better in answers.items() if images == met]
            if not given:
                raise UserError(f"{where}: target {p} needs more comparisons; answer all of them")
            shares.append(sum(0.5 if b is None else float(b == target) for b in given) / len(given))
        yield p, between(scores[pair.base], scores[pair.reference], *shares)


def _answers(data: Data, name: str, which: str, kind: str) -> Answers:
    """The last answer by (rater, the two images), if it was about the present images."""
    round_ = data.round(name, which)
    asked = {"name": name, "round": which, "kind": kind}
    found: Answers = {}
    for row in ratings.read(data, _file(data), _is_answer):
        if asked.items() <= row.items() and all(_same(data, round_, *of) for of in row["images"]):
            pair = frozenset((k, i) for k, i, _ in row["images"])
            found[row["rater"], pair] = row["better"] and tuple(row["better"])
    return found


def _is_answer(row: dict[str, Any]) -> bool:
    """Whether it compares two different images and prefers one of them or neither."""
    if not ratings.has(row, rater=str, images=list, better=(list, NoneType)):
        return False
    images = row["images"]
    if not all(type(of) is list and [type(v) for v in of] == [str, int, str] for of in images):
        return False
    shown = [of[:2] for of in images]
    known = all(kind in SCORED and index >= 0 for kind, index in shown)
    two = len(shown) == 2 and shown[0] != shown[1]
    return known and two and row["better"] in (None, *shown)


def _same(data: Data, round_: Round, kind: str, index: int, seen: str) -> bool:
    return round_.image(kind, index).is_file() and digest(data, round_, kind, index) == seen


def _compared(data: Data, name: str, which: str) -> Round:
    """The round. Not a comparison: pairwise scores rank the images of one prompt, no more."""
    if which.startswith("compare/"):
        raise NotThereError(f"{name}, {which}: rate its images one by one")
    return data.round(name, which)


def _file(data: Data) -> Path:
    return ratings.file(data, "two.jsonl")

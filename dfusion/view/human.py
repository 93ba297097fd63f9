"""Human scores instead of CLIP's: for runs with --config.eval.reward human.

People rate every image of a waiting round from 1 to 5. Once handed in, the means over raters become
the round's scores, and the run continues. Until then nothing is written into the experiment.
"""

import hashlib
import random
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.report.rounds import present
from dfusion.rewards.registry import HUMAN
from dfusion.rounds.scoring import scorer_lock
from dfusion.storage.experiment import SCORED, Round
from dfusion.view import ratings
from dfusion.view.folders import Data

SCALE = (1, 2, 3, 4, 5)
WAYS = ["one", "two"]  # images at a time: rated alone, or compared (duels.py)


def waiting(data: Data) -> list[dict[str, Any]]:
    """What runs wait for: rounds and comparisons with images that have no scores yet."""
    found = []
    for name in data.names():
        try:
            if data.settings(name).eval.reward == HUMAN:
                found += _waiting(data, name)
        except UserError as error:
            found.append({"name": name, "problem": str(error)})
    return found


def _waiting(data: Data, name: str) -> list[dict[str, Any]]:
    experiment = data.experiment(name)
    jobs = [(f"compare/epoch{k}", r, "images") for k, r in experiment.comparisons().items()]
    jobs += [(f"epoch{k}", r, kind) for k, r in experiment.rounds().items() for kind in SCORED]
    found = []
    for which, round_, kind in jobs:
        total, there = len(round_.texts_to_score(kind)), len(present(round_.folder / kind))
        if there and len(round_.scores(kind)) < total:
            raters = _raters(data, round_, kind, _given(data, name, which, kind))
            row = {"name": name, "round": which, "kind": kind, "raters": raters}
            ways = _ways(data, name, which, kind)
            found.append({**row, "there": there, "total": total, "ways": ways})
    return found


def _ways(data: Data, name: str, which: str, kind: str) -> list[str]:
    """How the images of a kind may be scored; duels.py says which may not be compared."""
    if which.startswith("compare/"):
        return ["one"]
    return [_scored_by(data, name, which)] if kind == "target_images" else WAYS


def _scored_by(data: Data, name: str, which: str) -> str:
    """How people scored a round's samples; "one" if it is not recorded."""
    rows = ratings.read(data, _handed(data), _is_hand_in)
    of_round = [row["way"] for row in rows if row["name"] == name and row["round"] == which]
    return of_round[-1] if of_round else "one"


def _is_hand_in(row: dict[str, Any]) -> bool:
    return ratings.has(row, name=str, round=str, way=str) and row["way"] in WAYS


def task(data: Data, name: str, which: str, kind: str, rater: str) -> dict[str, Any]:
    """The existing images, in the rater's order, with the rater's scores so far.

    Prompts are shuffled, and images within each prompt: images of one prompt are easier to judge
    one after another.
    """
    round_ = data.round(name, which)
    texts = texts_of(round_, kind)
    given = _given(data, name, which, kind)
    here = [i for i in sorted(present(round_.folder / kind)) if i < len(texts)]
    mix = random.Random(f"{name} {which} {kind} {rater}")
    places = {text: mix.random() for text in dict.fromkeys(texts)}
    here.sort(key=lambda i: (places[texts[i]], mix.random()))
    return {
        "items": [
            {
                "i": i,
                "prompt": texts[i],
                "mine": given.get((rater, i, digest(data, round_, kind, i))),
            }
            for i in here
        ],
        "total": len(texts),
        "raters": _raters(data, round_, kind, given),
        "scored": len(round_.scores(kind)) == len(texts),
    }


def rate(
    data: Data, name: str, which: str, kind: str, index: int, rater: str, score: object
) -> None:
    """Record a rating; a later one of the same image replaces it. Raises UserError."""
    if score not in SCALE or isinstance(score, bool):
        raise UserError(f"score {score}: give a whole number from 1 to 5")
    round_ = data.round(name, which)
    if not 0 <= index < len(texts_of(round_, kind)):
        raise UserError(f"{name}, {which}: no image {index} of {kind}")
    check_open(f"{name}, {which}", round_, kind)
    row = {
        "name": name,
        "round": which,
        "kind": kind,
        "index": index,
        "image": digest(data, round_, kind, index),
        "rater": rater,
        "score": score,
    }
    ratings.append(_file(data), row)


def check_open(where: str, round_: Round, kind: str, reward: str | None = None) -> None:
    """Raise UserError if scores were handed in already, as later ones would not reach the run, or
    if they are of another reward."""
    if len(round_.scores(kind, reward)) == len(texts_of(round_, kind)):
        raise UserError(f"{where}: the scores were handed in already")


def hand_in(data: Data, name: str, which: str, kind: str) -> int:
    """Write the means over raters as the scores that the run waits for; returns how many.

    Raises UserError while an image is missing or not rated, and where `write` does.
    """
    round_ = data.round(name, which)
    texts, given = texts_of(round_, kind), _given(data, name, which, kind)
    scores = {}
    for i in range(len(texts)):
        of_image = digest(data, round_, kind, i) if round_.image(kind, i).exists() else None
        values = [s for (_, j, image), s in given.items() if j == i and image == of_image]
        if not values:
            raise UserError(f"{name}, {which}: image {i} has no rating yet; rate all of them")
        scores[i] = sum(values) / len(values)
    return write(data, name, which, kind, scores, "one")


def write(data: Data, name: str, which: str, kind: str, scores: dict[int, float], way: str) -> int:
    """Give a run the scores of all images that it waits for; returns how many.

    way: how they were given, one of WAYS. Raises UserError if the run does not wait for people, if
    the scores were handed in already, if a scorer holds the experiment, and for targets scored in
    another way than their samples, as the scores would not be comparable.
    """
    experiment, round_ = data.experiment(name), data.round(name, which)
    if data.settings(name).eval.reward != HUMAN:
        raise UserError(f"{name}: its scores do not come from people; nothing was written")
    lock = scorer_lock(experiment.folder)
    if not lock.acquire():
        raise UserError(f"{name}: scored by {lock.owner()}; stop that scorer")
    try:
        check_open(f"{name}, {which}", round_, kind, HUMAN)
        if kind == "target_images" and _scored_by(data, name, which) != way:
            raise UserError(f"{name}, {which}: score its targets in the same way as its samples")
        if kind == "images":  # targets' scores were relative to the old ones
            round_.scores_file("target_images").unlink(missing_ok=True)
            ratings.append(_handed(data), {"name": name, "round": which, "way": way})
        round_.write_scores(kind, HUMAN, scores)
    finally:
        lock.release()
    return len(scores)


def digest(data: Data, round_: Round, kind: str, index: int) -> str:
    """A hash of the image's file: ratings do not carry over to an image that replaces it."""
    path = round_.image(kind, index)
    if not path.is_file():
        raise UserError(f"{path}: not there (yet)")
    return data.read(path, lambda p: hashlib.sha256(p.read_bytes()).hexdigest()[:32])


def _given(data: Data, name: str, which: str, kind: str) -> dict[tuple[str, int, str], int]:
    """The last score by (rater, index, image)."""
    rows = ratings.read(data, _file(data), _is_rating)
    asked = {"name": name, "round": which, "kind": kind}
    return {
        (row["rater"], row["index"], row["image"]): row["score"]
        for row in rows
        if asked.items() <= row.items()
    }


def _is_rating(row: dict[str, Any]) -> bool:
    whole = ratings.has(row, rater=str, image=str, index=int, score=int)
    return whole and row["score"] in SCALE


def _raters(
    data: Data, round_: Round, kind: str, given: dict[tuple[str, int, str], int]
) -> dict[str, int]:
    """How many images each rater has rated."""
    here = present(round_.folder / kind)
    rated = {
        (rater, index)
        for rater, index, image in given
        if index in here and image == digest(data, round_, kind, index)
    }
    return {
        who: sum(r == who for r, _ in rated) for who in dict.fromkeys(r for r, _ in sorted(rated))
    }


def texts_of(round_: Round, kind: str) -> list[str]:
    """Prompts of the images of a kind. Raises UserError for a kind that has no scores."""
    if kind not in SCORED:
        raise UserError(f"'{kind}': choose from {', '.join(SCORED)}")
    return round_.texts_to_score(kind)


def _handed(data: Data) -> Path:
    return ratings.file(data, "handed.jsonl")


def _file(data: Data) -> Path:
    return ratings.file(data, "human.jsonl")

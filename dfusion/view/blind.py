"""Blind comparison (Fig. 6): which of several models' images fits the prompt best?

A source is a round or comparison of an experiment, "demo|compare/epoch2". A study is a set of
sources. A trial shows one image of each source, all of the same prompt. Its key, its place and the
order of its images depend only on the study, the rater and the trial, so nothing is lost when the
app stops. The URLs of images do not reveal the source.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from dfusion.errors import UserError
from dfusion.report.rounds import present
from dfusion.storage.experiment import Round
from dfusion.view import ratings
from dfusion.view.folders import Data, NotThereError
from dfusion.view.human import digest

MOST_SOURCES = 6
Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True)
class Trial:
    """images: per source, in the study's order, its sample's index."""

    key: str
    prompt: str
    images: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """sources: sorted, so that equal sets are the same study."""

    data: Data
    sources: tuple[str, ...]

    @classmethod
    def of(cls, data: Data, sources: Iterable[str]) -> "Study":
        """Raises UserError for fewer than two sources or too many."""
        chosen = tuple(sorted(set(sources)))
        if not 2 <= len(chosen) <= MOST_SOURCES:
            raise UserError(f"choose 2 to {MOST_SOURCES} checkpoints or rounds to compare")
        for source in chosen:
            data.round(*_split(source))
        return cls(data, chosen)

    @property
    def name(self) -> str:
        return _digest(*self.sources)

    @property
    def file(self) -> Path:
        return ratings.file(self.data, "blind.jsonl")

    def trials(self) -> dict[str, Trial]:
        """By key: the n-th image of a prompt from each source, as long as all have one.

        The key depends on the images' contents: an answer does not carry over to replaced images.
        """
        rounds = [self.data.round(*_split(source)) for source in self.sources]
        by_source = [_images(round_) for round_ in rounds]
        shared = [text for text in by_source[0] if all(text in images for images in by_source)]
        found = {}
        for text in shared:
            met: Counter[tuple[str, ...]] = Counter()  # images may be identical
            for images in zip(*(s[text] for s in by_source), strict=False):
                shown = zip(rounds, images, strict=True)
                files = tuple(digest(self.data, round_, "images", i) for round_, i in shown)
                key = _digest(self.name, text, *files, str(met[files]))
                met[files] += 1
                found[key] = Trial(key, text, images)
        return found

    def order(self, rater: str, key: str) -> list[int]:
        """Sources (their numbers) from left to right, as this rater sees the trial."""
        order = list(range(len(self.sources)))
        random.Random(_digest(self.name, rater, key, "order")).shuffle(order)
        return order

    def answers(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The last answer of every rater to every trial, by (rater, key)."""
        rows = ratings.read(self.data, self.file, _is_answer)
        mine = [row for row in rows if row["study"] == self.name]
        return {(row["rater"], row["trial"]): row for row in mine}

    def next(self, rater: str, again: str | None = None) -> dict[str, Any]:
        """The rater's next trial without an answer, or `again`; "trial" is None at the end."""
        trials = self.trials()
        answered = {key for who, key in self.answers() if who == rater and key in trials}
        todo = sorted(trials.keys() - answered, key=lambda key: _digest(self.name, rater, key))
        key = again if again in trials else (todo[0] if todo else None)
        return {
            "study": self.name,
            "done": len(answered),
            "total": len(trials),
            "trial": key and {"key": key, "prompt": trials[key].prompt},
            "images": len(self.sources),
        }

    def image(self, rater: str, key: str, place: int) -> Path:
        """The image that the rater sees at a place. Raises NotThereError."""
        trial = self.trials().get(key)
        if trial is None or not 0 <= place < len(self.sources):
            raise NotThereError("no such trial")
        which = self.order(rater, key)[place]
        name, round_ = _split(self.sources[which])
        return self.data.image(name, round_, "images", trial.images[which])

    def answer(self, rater: str, key: str, place: int | None) -> None:
        """Record the choice of a place; None: no difference. Raises UserError."""
        trial = self.trials().get(key)
        if trial is None:
            raise NotThereError("no such trial; its images are gone")
        if place is not None and not 0 <= place < len(self.sources):
            raise UserError(f"choice {place}: choose one of {len(self.sources)} images, or none")
        order = self.order(rater, key)
        ratings.append(
            self.file,
            {
                "study": self.name,
                "sources": list(self.sources),
                "rater": rater,
                "trial": key,
                "prompt": trial.prompt,
                "images": list(trial.images),
                "shown": [self.sources[i] for i in order],
                "choice": None if place is None else self.sources[order[place]],
            },
        )

    def results(self) -> dict[str, Any]:
        """Shares of first choices with intervals, overall and for every two sources.

        Answers about images that were deleted or replaced do not count.
        """
        trials = self.trials()
        answers = [row for (_, key), row in self.answers().items() if key in trials]
        chosen = [row["choice"] for row in answers]
        decided = sum(choice is not None for choice in chosen)
        return {
            "answers": len(answers),
            "raters": sorted({row["rater"] for row in answers}),
            "ties": len(answers) - decided,
            "sources": [
                {"source": s, "chosen": chosen.count(s), **share(chosen.count(s), decided)}
                for s in self.sources
            ],
            "duels": [
                duel(answers, a, b)
                for n, a in enumerate(self.sources)
                for b in self.sources[n + 1 :]
            ],
        }


def _is_answer(row: dict[str, Any]) -> bool:
    texts = dict.fromkeys(("study", "rater", "trial", "prompt"), str)
    return ratings.has(row, choice=(str, NoneType), **texts)


def duel(answers: Sequence[dict[str, Any]], a: str, b: str) -> dict[str, Any]:
    """How often a was chosen among answers that chose a or b; and, paired by prompt, on how many of
    the prompts where the two differ a was chosen more often.

    Answers to the same prompt are not independent; the second interval holds for new prompts.
    """
    wins: dict[str, int] = {}
    counts = {a: 0, b: 0}
    for row in answers:
        if row["choice"] in counts:
            counts[row["choice"]] += 1
            wins[row["prompt"]] = wins.get(row["prompt"], 0) + (1 if row["choice"] == a else -1)
    differ = [w for w in wins.values() if w]
    return {
        "a": a,
        "b": b,
        "answers": share(counts[a], counts[a] + counts[b]),
        "prompts": share(sum(w > 0 for w in differ), len(differ)),
    }


def share(count: int, total: int) -> dict[str, Any]:
    """A rate with its 95 % interval; None if total is 0."""
    low, high = wilson(count, total) if total else (None, None)
    return {
        "count": count,
        "total": total,
        "rate": count / total if total else None,
        "low": low,
        "high": high,
    }


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), for count of total, total > 0."""
    p, z2 = count / total, Z * Z
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _images(round_: Round) -> dict[str, list[int]]:
    """Indices of the existing images, by prompt."""
    here = present(round_.folder / "images")
    grouped: dict[str, list[int]] = {}
    for i, text in enumerate(round_.texts_to_score("images")):
        if i in here:
            grouped.setdefault(text, []).append(i)
    return grouped


def _split(source: str) -> tuple[str, str]:
    name, _, which = source.partition("|")
    return name, which


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

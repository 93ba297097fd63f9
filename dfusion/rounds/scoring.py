"""Scoring a round's images in batches; the scorer's lock and heartbeat."""

import json
import math
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dfusion.errors import UserError
from dfusion.progress import Progress
from dfusion.rewards.contract import Reward, as_numbers, sees_groups
from dfusion.rewards.registry import HUMAN
from dfusion.rewards.weighted_sum import WeightedSum
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import WATCH, Round
from dfusion.storage.files import read_png, stamp, write_bytes
from dfusion.storage.lock import Lock
from dfusion.storage.strict_json import load_json

BEAT_SECONDS = 5.0
ALIVE_SECONDS = 30.0


@dataclass(frozen=True)
class Call:
    """One call of a reward. kept: the numbers of the images whose scores are kept, each with its
    position in the call."""

    pictures: list[Path]
    texts: list[str]
    kept: dict[int, int]


def unscored(round_: Round, kind: str, name: str) -> list[int]:
    """The images of a kind that exist and have no score yet."""
    there = _there(round_, kind)
    return sorted(set(there) - round_.scores(kind, name).keys()) if there else []


def score_missing(
    round_: Round,
    kind: str,
    reward: Reward,
    name: str,
    batch_size: int,
    label: str = "",
    turn: tuple[int, int] = (0, 1),
    writing: AbstractContextManager[object] | None = None,
) -> int:
    """Score the images of a kind that exist and have no score yet; returns how many.

    A reward that sees whole groups is called once all images of a prompt exist. Scores are saved
    after every call. If an image of the call is deleted or replaced meanwhile, the call and the
    rest are left for the next time. turn: (rank, size) if several processes see the same images and
    take turns. writing: a lock to hold while scores are written. Raises UserError for an unreadable
    image or a reward that does not return one finite number per image.
    """
    if not (pending := unscored(round_, kind, name)):
        return 0
    (rank, size), done, grouped = turn, 0, sees_groups(reward)
    if grouped:
        calls = _ready(_groups(round_, kind), pending)
    else:
        calls = _batches(round_, kind, pending, batch_size, size)
    mine = [call for call in calls[rank::size] if call.kept]
    progress = Progress(label or f"scoring {kind}", sum(len(call.kept) for call in mine))
    for call in mine:
        seen = _stamps(call.pictures)
        scores, parts = _given(reward, call, name)
        if _stamps(call.pictures) != seen:  # an image was replaced meanwhile; discard its score
            break
        with writing or nullcontext():
            _write(round_, kind, name, scores, parts, anew=grouped)
        done += len(call.kept)
        if rank == 0:
            progress.advance(len(call.kept))
    return done


def _there(round_: Round, kind: str) -> list[int]:
    texts = round_.texts_to_score(kind)
    return [i for i in range(len(texts)) if _picture(round_, kind, i).exists()]


def _picture(round_: Round, kind: str, index: int) -> Path:
    return round_.image("images" if kind == WATCH else kind, index)


def _batches(
    round_: Round, kind: str, pending: list[int], batch_size: int, size: int
) -> list[Call]:
    """The pending images in calls of up to `batch_size`."""
    texts, there = round_.texts_to_score(kind), _there(round_, kind)
    # All processes must form the same batches, no matter what has been scored meanwhile.
    order = pending if size == 1 else there
    calls = []
    for start in range(0, len(order), batch_size):
        batch = [i for i in order[start : start + batch_size] if i in pending]
        pictures = [_picture(round_, kind, i) for i in batch]
        kept = {i: place for place, i in enumerate(batch)}
        calls.append(Call(pictures, [texts[i] for i in batch], kept))
    return calls


def _groups(round_: Round, kind: str) -> list[Call]:
    """A call for each prompt with all of its images; for targets, one for each pair.

    A target takes its base's place among the samples of its prompt, so that its score compares with
    theirs.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(round_.texts_to_score("images")):
        groups.setdefault(text, []).append(i)
    samples = {
        text: [round_.image("images", i) for i in numbers] for text, numbers in groups.items()
    }
    if kind != "target_images":
        return [
            Call(samples[text], [text] * len(numbers), {i: n for n, i in enumerate(numbers)})
            for text, numbers in groups.items()
        ]
    calls = []
    for p, pair in enumerate(round_.pairs() or ()):
        place = groups[pair.prompt].index(pair.base)
        pictures = [*samples[pair.prompt]]
        pictures[place] = round_.image(kind, p)
        calls.append(Call(pictures, [pair.prompt] * len(pictures), {p: place}))
    return calls


def _ready(calls: list[Call], pending: list[int]) -> list[Call]:
    """The calls; of those that lack an image or have nothing pending, no score is kept."""
    waiting = set(pending)
    return [
        call
        if call.kept.keys() & waiting and all(path.exists() for path in call.pictures)
        else replace(call, kept={})
        for call in calls
    ]


def _given(
    reward: Reward, call: Call, name: str
) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """The scores of a call's kept images, and those of each part of a weighted sum."""
    images = [Image.fromarray(read_png(path)) for path in call.pictures]
    if isinstance(reward, WeightedSum):
        parts = reward.parts(images, call.texts)
        values = reward.total(parts)
    else:
        parts, values = {}, as_numbers(reward(images, call.texts), len(images), name)
    for giver, numbers in (*parts.items(), (name, values)):
        for place in call.kept.values():
            if not math.isfinite(numbers[place]):
                raise UserError(f"{call.pictures[place]}: the reward {giver} gave {numbers[place]}")
    kept = {i: values[place] for i, place in call.kept.items()}
    return kept, {
        giver: {i: numbers[place] for i, place in call.kept.items()}
        for giver, numbers in parts.items()
    }


def _write(
    round_: Round,
    kind: str,
    name: str,
    scores: dict[int, float],
    parts: dict[str, dict[int, float]],
    anew: bool,
) -> None:
    """Add scores to those on disk. anew: replace those that are there already."""

    def merged(new: dict[int, float], old: dict[int, float]) -> dict[int, float]:
        # Another scorer may have written meanwhile: its scores are kept, unless they are relative
        # to a group that has been scored again.
        return {**old, **new} if anew else {**new, **old}

    known = round_.score_parts(kind)
    round_.write_scores(
        kind,
        name,
        merged(scores, round_.scores(kind, name)),
        {part: merged(given, known.get(part, {})) for part, given in parts.items()},
    )


def _stamps(paths: list[Path]) -> list[tuple[int, int, int]] | None:
    """The stamps of all files; None if one is gone."""
    with suppress(FileNotFoundError):
        return [stamp(path) for path in paths]
    return None


def scorer_lock(folder: Path) -> Lock:
    """Held by whoever scores the experiment in `folder`, so that nothing is scored twice."""
    return Lock(folder / ".scorer.lock")


@contextmanager
def heartbeat(data: Path, experiments: list[str], only: str | None = None) -> Iterator[None]:
    """Tell samplers that a scorer is alive, through a small file that a thread refreshes.

    experiments: those it serves; empty for all. only: the one reward it gives; None for any.
    """
    path = data / ".scorers" / f"{socket.gethostname()}-{os.getpid()}.json"
    served = {"experiments": experiments, "reward": only}
    stop = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # scoring itself reports a full disk
                write_bytes(path, json.dumps(served).encode())
            if stop.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def scorer_alive(data: Path, experiment: str, reward: str) -> bool:
    """Whether a scorer that serves this experiment and reward has a recent heartbeat."""
    for path in (data / ".scorers").glob("*.json"):
        try:
            fresh = time.time() - path.stat().st_mtime < ALIVE_SECONDS
            served = load_json(path)
            names, only = served["experiments"], served["reward"]
        except (OSError, ValueError, KeyError, TypeError):  # just ended, or not a heartbeat
            continue
        if fresh and (not names or experiment in names) and only in (None, reward):
            return True
    return False


def scorer_command(settings: Settings) -> str:
    """The shell command that scores this experiment, without flags at their defaults."""
    if settings.eval.reward == HUMAN:
        return f"dfusion view {shlex.quote(settings.save_path)}"
    given, default = settings.to_dict(), Settings().to_dict()
    flags = {"exp_name": settings.exp_name}
    for key in ("save_path", "device", "dev_id"):
        if given[key] != default[key]:
            flags[key] = given[key]
    vlm = ("vlm_address", "vlm_model", "vlm_question")
    for key in ("reward", "model", "pretrained", *vlm, "batch_size"):
        if given["eval"][key] != default["eval"][key]:
            flags[f"eval.{key}"] = given["eval"][key]
    words = [f"--config.{key} {shlex.quote(str(value))}" for key, value in flags.items()]
    return " ".join(["python3 run_eval.py", *words])

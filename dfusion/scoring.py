"""The scorer: watches data folders, scores new images in batches, writes what samplers wait for."""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfusion.errors import UserError
from dfusion.files import load_json, read_json, read_png, stamp, sweep, write_bytes
from dfusion.lock import Lock
from dfusion.progress import Progress
from dfusion.rewards import HUMAN, Reward
from dfusion.store import SCORED, Experiment, Round

BEAT_SECONDS = 5.0
ALIVE_SECONDS = 30.0


def score_missing(
    round_: Round, kind: str, reward: Reward, name: str, batch_size: int, label: str = ""
) -> int:
    """Score the images of a kind that are there and have no score; returns how many.

    Scores are saved after every batch; where one of its images was deleted or made anew meanwhile,
    it and the rest are left for the next look. Raises UserError for an unreadable image or a reward
    that does not return one finite number per image.
    """
    texts = round_.texts_to_score(kind)
    there = [i for i in range(len(texts)) if round_.image(kind, i).exists()]
    if not there:
        return 0
    scores = round_.scores(kind, name)
    pending = [i for i in there if i not in scores]
    progress = Progress(label or f"scoring {kind}", len(pending))
    for start in range(0, len(pending), batch_size):
        batch = pending[start : start + batch_size]
        paths = [round_.image(kind, i) for i in batch]
        seen = _stamps(paths)
        images = [Image.fromarray(read_png(path)) for path in paths]
        values = _numbers(reward(images, [texts[i] for i in batch]), len(batch), name)
        for i, value in zip(batch, values, strict=True):
            if not math.isfinite(value):
                raise UserError(f"{round_.image(kind, i)}: the reward {name} gave {value}")
        if _stamps(paths) != seen:  # deleted or made anew: these scores are of none
            return start
        # Another scorer may have written meanwhile: its scores stand.
        scores = {**dict(zip(batch, values, strict=True)), **round_.scores(kind, name)}
        round_.write_scores(kind, name, scores)
        progress.advance(len(batch))
    return len(pending)


def _stamps(paths: list[Path]) -> list[tuple[int, int, int]] | None:
    """Of all these files; None where one is gone."""
    with suppress(FileNotFoundError):
        return [stamp(path) for path in paths]
    return None


def _numbers(values: object, count: int, name: str) -> list[float]:
    """What a reward returned (tensor, array or list) as plain numbers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu()
    try:
        numbers = np.asarray(values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"--config.eval.reward {name}: gave no numbers ({error})") from error
    if len(numbers) != count:
        raise UserError(f"--config.eval.reward {name}: gave {len(numbers)} scores for {count}")
    return numbers.tolist()


def watch(
    data: Path,
    experiments: list[str],
    reward: Reward,
    name: str,
    batch_size: int,
    poll_seconds: float,
    once: bool,
) -> int:
    """Score whatever appears under data/<exp>/, for the named experiments or, if none, for all.

    An experiment that cannot be scored, or that another scorer has taken on, is named, left alone
    and tried again later. once: return when nothing is left, and raise UserError if something could
    not be scored; otherwise watch until interrupted. Returns images scored.
    """
    total = 0
    said: set[str] = set()
    locks: dict[Path, Lock] = {}
    try:
        while True:
            folders = _folders(data, experiments)
            scored, problems = _score_all(folders, locks, reward, name, batch_size)
            for problem in problems:
                if problem not in said:
                    print(f"left alone: {problem}", flush=True)
            said |= set(problems)
            total += scored
            if once and not scored:
                if problems:
                    raise UserError(problems[0])
                return total
            if not scored:
                time.sleep(poll_seconds)
    finally:
        for lock in locks.values():
            lock.release()


def _score_all(
    folders: list[Path], locks: dict[Path, Lock], reward: Reward, name: str, batch_size: int
) -> tuple[int, list[str]]:
    """Score what is there in all experiments; how many images, and what went wrong."""
    total, problems = 0, []
    for folder in folders:
        if not folder.is_dir():
            problems.append(f"{folder}: not there (yet); check --config.exp_name")
            continue
        if _rated_by_people(folder):
            problems.append(f"{folder}: people give its scores, in python -m dfusion.view")
            continue
        if not _taken_on(folder, locks):
            problems.append(f"{folder}: scored by {scorer_lock(folder).owner()}")
            continue
        for round_, kind in _to_score(Experiment(folder)):
            label = f"{folder.name}/{round_.folder.relative_to(folder)} {kind}"
            try:
                total += score_missing(round_, kind, reward, name, batch_size, label)
            except UserError as error:
                problems.append(str(error))
    return total, problems


def _taken_on(folder: Path, locks: dict[Path, Lock]) -> bool:
    """Hold an experiment, rid of what a dead scorer was writing; False if another scorer has it."""
    if folder in locks:
        return True
    lock = scorer_lock(folder)
    if not lock.acquire():
        return False
    sweep(folder)
    locks[folder] = lock
    return True


def _rated_by_people(folder: Path) -> bool:
    """Whether the experiment waits for scores that no model may give."""
    config = Experiment(folder).config_file
    try:
        settings = read_json(config)["settings"] if config.exists() else {}
        return settings.get("eval", {}).get("reward") == HUMAN
    except (UserError, KeyError, AttributeError):
        return False  # nothing there says so


def scorer_lock(folder: Path) -> Lock:
    """Held by whoever scores the experiment in `folder`, so that nothing is scored twice."""
    return Lock(folder / ".scorer.lock")


def _to_score(experiment: Experiment) -> list[tuple[Round, str]]:
    rounds = [(r, kind) for r in experiment.rounds().values() for kind in SCORED]
    return rounds + [(r, "images") for r in experiment.comparisons().values()]


def _folders(data: Path, experiments: list[str]) -> list[Path]:
    if experiments:
        return [data / name for name in experiments]
    if not data.is_dir():
        return []
    return sorted(p.parent for p in data.glob("*/config.json"))


@contextmanager
def heartbeat(data: Path, experiments: list[str]) -> Iterator[None]:
    """Tell samplers that a scorer is alive, by a small file refreshed from a thread.

    experiments: those it serves; empty for all.
    """
    path = data / ".scorers" / f"{socket.gethostname()}-{os.getpid()}.json"
    stop = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # a full disk ends the scoring, and says so, elsewhere
                write_bytes(path, json.dumps({"experiments": experiments}).encode())
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


def scorer_alive(data: Path, experiment: str) -> bool:
    """Whether some scorer that serves this experiment gave a sign of life lately."""
    for path in (data / ".scorers").glob("*.json"):
        try:
            fresh = time.time() - path.stat().st_mtime < ALIVE_SECONDS
            serves = load_json(path)["experiments"]
        except (OSError, ValueError, KeyError, TypeError):  # it ended just now, or is no heartbeat
            continue
        if fresh and (not serves or experiment in serves):
            return True
    return False

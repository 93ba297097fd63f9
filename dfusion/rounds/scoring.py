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
from pathlib import Path

from PIL import Image

from dfusion.errors import UserError
from dfusion.progress import Progress
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import HUMAN, as_numbers
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_png, stamp, write_bytes
from dfusion.storage.lock import Lock
from dfusion.storage.strict_json import load_json

BEAT_SECONDS = 5.0
ALIVE_SECONDS = 30.0


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

    Scores are saved after every batch. If an image of the batch is deleted or replaced meanwhile,
    the batch and the rest are left for the next call. turn: (rank, size) if several processes see
    the same images and take turns. writing: a lock to hold while scores are written. Raises
    UserError for an unreadable image or a reward that does not return one finite number per image.
    """
    texts = round_.texts_to_score(kind)
    there = [i for i in range(len(texts)) if round_.image(kind, i).exists()]
    if not there:
        return 0
    pending = set(there) - round_.scores(kind, name).keys()
    (rank, size), done = turn, 0
    # All processes must form the same batches, no matter what has been scored meanwhile.
    order = sorted(pending) if size == 1 else there
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = [[i for i in batch if i in pending] for batch in cut[rank::size]]
    progress = Progress(label or f"scoring {kind}", sum(map(len, mine)))
    for batch in filter(None, mine):
        paths = [round_.image(kind, i) for i in batch]
        seen = _stamps(paths)
        images = [Image.fromarray(read_png(path)) for path in paths]
        values = as_numbers(reward(images, [texts[i] for i in batch]), len(batch), name)
        for i, value in zip(batch, values, strict=True):
            if not math.isfinite(value):
                raise UserError(f"{round_.image(kind, i)}: the reward {name} gave {value}")
        if _stamps(paths) != seen:  # an image was replaced meanwhile; discard its score
            break
        with writing or nullcontext():
            # Another scorer may have written meanwhile: its scores are kept.
            scores = {**dict(zip(batch, values, strict=True)), **round_.scores(kind, name)}
            round_.write_scores(kind, name, scores)
        done += len(batch)
        if rank == 0:
            progress.advance(len(batch))
    return done


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
    for key in ("reward", "model", "pretrained", "batch_size"):
        if given["eval"][key] != default["eval"][key]:
            flags[f"eval.{key}"] = given["eval"][key]
    words = [f"--config.{key} {shlex.quote(str(value))}" for key, value in flags.items()]
    return " ".join(["python3 run_eval.py", *words])

"""Check a whole experiment: nothing damaged, edited, missing or foreign.

    dfusion verify data/<exp>

PNG and safetensors files carry checksums of their contents. The JSON files are compared with each
other, and whatever a rule decided (pairs, adoption, shared states) is decided again.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfusion.errors import UserError
from dfusion.method import pairing
from dfusion.models import lora
from dfusion.settings.plain_values import settings_of
from dfusion.settings.schema import RENEW, Settings
from dfusion.settings.steps import first_fused
from dfusion.storage import last_error
from dfusion.storage.experiment import DROPPED, PAIRED, SCORED, STATES, WATCH, Experiment, Round
from dfusion.storage.files import REBUILT, read_json, read_png, read_tensors, read_weights
from dfusion.training import metrics
from dfusion.training.checkpoints import Checkpoints, read_state

FOLDERS = {
    **dict.fromkeys(("images", *PAIRED), ".png"),
    **dict.fromkeys(STATES, ".safetensors"),
}
AGAIN = "run the same command again"
FILES = {"manifest.json", "pairs.json", "adoption.json", DROPPED}


def verify(folder: Path) -> list[str]:
    """The problems of the experiment in `folder`, one line each; empty if there are none."""
    experiment = Experiment(folder)
    if not experiment.config_file.exists():
        return [f"{experiment.config_file}: missing; is this an experiment's folder?"]
    try:
        config = str(experiment.config_file)
        settings = settings_of(read_json(experiment.config_file, RENEW).get("settings"), config)
    except UserError as error:
        return [str(error)]
    problems = []
    checkpoints = Checkpoints(folder / "checkpoints")
    trained = checkpoints.latest()
    for k, round_ in experiment.rounds().items():
        found = _guarded(round_.folder, partial(_round, round_, settings))
        problems += _behind(found, k, trained)
        problems += _dropped(round_, trained is not None and k <= trained)
    for k, round_ in experiment.comparisons().items():
        found = _guarded(round_.folder, partial(_images, round_))
        problems += _behind(found, k, trained)
    states = sorted(checkpoints.folder.glob("epoch*"))
    for state in [*states, *checkpoints.folder.glob(checkpoints.within.name)]:
        problems += _guarded(state, partial(_checkpoint, state))
    problems += _guarded(folder, partial(_metrics, folder / "metrics.jsonl"))
    return problems + _links(folder)


def _behind(problems: list[str], number: int, trained: int | None) -> list[str]:
    """The problems of round `number`, with a remedy that works after it was trained on.

    trained: the last round with a checkpoint, after which the same command would continue.
    """
    if trained is None or number > trained:
        return problems
    also = f"checkpoints/epoch{number} and later"
    return [
        p.replace(REBUILT, f"{REBUILT}, and {also} too").replace(
            AGAIN, f"delete {also}, and {AGAIN}"
        )
        for p in problems
    ]


def _dropped(round_: Round, trained_on: bool) -> Iterator[str]:
    """Problems with dropped states: gone for good after training, else to be made again."""
    if round_.states_kept:
        return
    if not trained_on:
        yield f"{round_.folder}: its states were dropped, and no checkpoint is there; {AGAIN}"
    for kind in STATES:
        if (folder := round_.folder / kind).exists():
            yield f"{folder}: left of states that were dropped; delete it"


def _metrics(path: Path) -> Iterator[str]:
    metrics.read(path)  # raises for damage
    yield from ()


def _links(folder: Path) -> list[str]:
    """Links inside the experiment, whose contents would not travel with it."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_symlink())
    return [f"{p}: a link to {p.readlink()}; put the file itself there" for p in found]


def _guarded(where: Path, check: Callable[[], Iterator[str]]) -> list[str]:
    """The problems a check finds, with the one that stopped it, if any."""
    found = []
    try:
        for problem in check():
            found.append(problem)
    except UserError as error:
        found.append(str(error))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        found.append(f"{where}: a file there was not written by this software ({error!r})")
    return found


def _round(round_: Round, settings: Settings) -> Iterator[str]:
    yield from _images(round_)
    yield from _foreign(round_)
    count = len(round_.sample_prompts())
    started = any(round_.image("images", i).exists() for i in range(count))
    for i in range(count) if started and round_.states_kept else ():
        yield from _tensors(round_.trajectory(i), "latents")
    pairs = round_.pairs()
    if pairs is None:
        return
    scores = round_.scores("images")
    missing = [i for i in range(count) if i not in scores]
    if missing:
        yield f"{round_.scores_file('images')}: no score of image {missing[0]}; run the scorer"
        return
    texts = round_.texts_to_score("images")
    rule = pairing.RULES.get(round_.made_with("pairs.json")["rule"])
    if rule and pairing.pair(texts, [scores[i] for i in range(count)], rule) != pairs:
        yield f"{round_.folder}/pairs.json: not the pairs of these scores; scores or pairs changed"
        return
    yield from _targets(round_)
    yield from _adoption(round_, settings)


def _images(round_: Round) -> Iterator[str]:
    """PNG files and scores of all planned images."""
    if round_.manifest() is None:
        yield f"{round_.folder}/manifest.json: missing; {AGAIN}"
        return
    for kind in (*SCORED, WATCH):
        count = len(round_.texts_to_score(kind))
        scores = round_.scores(kind)
        for i in sorted(scores):
            image = round_.image("images" if kind == WATCH else kind, i)
            if not 0 <= i < count or not np.isfinite(scores[i]):
                yield f"{round_.scores_file(kind)}: score {scores[i]} of image {i}; {REBUILT}"
            elif not image.exists():
                yield f"{image}: missing, though it has a score"
    size = round_.made_with("manifest.json")["size"]
    for kind in sorted(k for k, suffix in FOLDERS.items() if suffix == ".png"):
        for path in sorted((round_.folder / kind).glob("[0-9]*.png")):
            sized = None if kind == "masks" else size
            yield from _problem(path, partial(_picture, size=sized))


def _picture(path: Path, size: list[int] | None) -> None:
    """Read a picture; size: its height and width, None for any. Raises UserError."""
    height, width = read_png(path).shape[:2]
    if size not in (None, [height, width]):
        raise UserError(f"{path}: {height} x {width} pixels, not {size[0]} x {size[1]}; {REBUILT}")


def _foreign(round_: Round) -> Iterator[str]:
    """Files that no command writes, or whose number is beyond what is planned."""
    limits = {kind: len(round_.pairs() or ()) for kind in FOLDERS}
    limits["images"] = limits["trajectories"] = len(round_.sample_prompts())
    for path in sorted(p for p in round_.folder.rglob("*") if p.is_file()):
        kind, name = path.parent.name, path.name
        own = path.parent == round_.folder and name in FILES
        own |= kind == "eval" and path.stem in (*SCORED, WATCH)
        if kind in FOLDERS and path.stem.isdigit() and path.suffix == FOLDERS[kind]:
            own = int(path.stem) < limits[kind]
        if not own and not name.endswith(".tmp"):
            yield f"{path}: not of this experiment; remove it"


def _targets(round_: Round) -> Iterator[str]:
    """Targets and their pictures are whole."""
    # By the round's own settings: config.json may already be of a later round.
    steps = len(round_.made_with("manifest.json")["timesteps"])
    paired = round_.made_with("pairs.json")
    first = first_fused(paired["fusion steps"], steps)
    shared = first if paired["target kind"] == "renoise" else first + 1
    dropped = not round_.states_kept and round_.adoption() is not None
    for p, pair in enumerate(round_.pairs() or ()):
        if round_.target(p).exists():
            yield from _target(round_, p, pair, shared)
        if round_.target(p).exists() or dropped:
            yield from _target_pictures(round_, p, pair)


def _target(round_: Round, p: int, pair: pairing.Pair, shared: int) -> Iterator[str]:
    """A target is whole, and shares its first states with its base."""
    path, base = round_.target(p), round_.trajectory(pair.base)
    problems = list(_tensors(path, "latents"))
    yield from problems
    if round_.inversion(p).exists():
        yield from _tensors(round_.inversion(p), "latents")
    if not problems and not list(_problem(base, read_tensors)):
        a, b = read_tensors(path)["latents"], read_tensors(base)["latents"]
        if not a[:shared].equal(b[:shared]):
            yield f"{path}: does not begin as its base {pair.base} does; {REBUILT}"


def _target_pictures(round_: Round, p: int, pair: pairing.Pair) -> Iterator[str]:
    for picture in (round_.image(kind, p) for kind in PAIRED):
        if not picture.exists():
            yield f"{picture}: missing; {AGAIN}"
    for kind, index in (("base_images", pair.base), ("reference_images", pair.reference)):
        copy, source = round_.image(kind, p), round_.image("images", index)
        if copy.exists() and source.exists() and copy.read_bytes() != source.read_bytes():
            yield f"{copy}: not image {index}; {REBUILT}"


def _adoption(round_: Round, settings: Settings) -> Iterator[str]:
    """Adoption follows from the scores (Eq. 7)."""
    rows, targets = round_.adoption(), round_.scores("target_images")
    if rows is None:
        return
    now = settings.pair
    by: dict[str, Any] = {"rule": now.adoption, "threshold": now.adoption_threshold}
    by |= round_.made_with("adoption.json")
    scores = round_.scores("images")
    for p, (pair, row) in enumerate(zip(round_.pairs() or (), rows, strict=True)):
        three = targets.get(p), scores[pair.base], scores[pair.reference]
        noted = row["target"], row["base"], row["reference"]
        kept = by["rule"] == "all" or pairing.adopted(*noted, by["threshold"])
        if three != noted or kept != row["adopted"]:
            yield f"{round_.folder}/adoption.json: pair {p} is not as the scores say; {REBUILT}"


def _tensors(path: Path, name: str) -> Iterator[str]:
    """A file that must exist, be undamaged and hold finite values."""
    if not path.exists():
        yield f"{path}: missing; {AGAIN}"
        return
    yield from _problem(path, lambda p: _finite(p, read_tensors(p), name))


def _finite(path: Path, tensors: dict[str, Any], name: str) -> None:
    if name not in tensors or not bool(torch.isfinite(tensors[name]).all()):
        raise UserError(f"{path}: '{name}' is missing, NaN or infinite; {REBUILT}")


def _problem(path: Path, read: Callable[[Path], object]) -> Iterator[str]:
    try:
        read(path)
    except UserError as error:
        yield str(error)


def _checkpoint(folder: Path) -> Iterator[str]:
    if not (folder / "state.json").exists():
        yield f"{folder}: not finished; run the same command again"
        return
    yield from _problem(folder, read_state)
    for path in [folder / "optimiser.safetensors", *sorted(folder.glob("rank*.safetensors"))]:
        yield from _problem(path, lambda p: read_tensors(p, lora.REMOVE))
    weights = [*folder.glob(lora.FILE), *folder.glob("unet/*.safetensors")]
    for path in weights:
        yield from _problem(path, _weights)
    if not weights:
        yield f"{folder}: no weights; {lora.REMOVE}"


def _weights(path: Path) -> None:
    tensors = read_weights(path, lora.REMOVE, must=True)
    broken = [name for name, values in tensors.items() if not values.isfinite().all()]
    if broken:
        raise UserError(f"{path}: '{broken[0]}' is NaN or infinite; {lora.REMOVE}")


def main(given: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if given is None else given
    if len(arguments) != 1:
        print("usage: dfusion verify data/<exp>", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    problems = verify(folder)
    if error := last_error.last(folder):
        print(f"note: {error}")
    print("\n".join([*problems, f"{len(problems) or 'no'} problems in {folder}"]))
    return bool(problems)

"""Runs that begin alike share their beginning: the first comparison, round 0's samples and targets.

None of them depends on how a run trains, so a run that is not begun yet may copy them from one that
is: samples where base model, prompts and seed are the same, targets where fusion is too.
"""

import shutil
from pathlib import Path

from dfusion.files import read_json
from dfusion.runs import resolved
from dfusion.settings import Settings, flat
from dfusion.store import PAIRED

# Settings of what comes after sampling, or of how a run is done.
OWN = (
    *("train.", "fusion.", "pair.", "mask.merge"),
    *("save_path", "exp_name", "allow_config_change", "tracker"),
)
# Of those, what targets depend on.
FUSION = ("fusion.", "mask.", "pair.rule")
# Of round 0: what is made before pairs are, and from pairs up to adoption.
SAMPLED = ("images", "trajectories", "manifest.json", "eval/images.json")
TARGETS = ("pairs.json", *PAIRED, "targets", "eval/target_images.json")


def beginning(settings: dict) -> dict[str, object]:
    """The settings that samples before any training depend on."""
    return {
        name: value
        for name, value in flat(settings).items()
        if not name.startswith(OWN) or name == "train.compare_images"
    }


def fused_alike(one: dict, other: dict) -> bool:
    """Whether two runs that begin alike fuse alike, and both fuse."""
    a, b = ({k: v for k, v in flat(s).items() if k.startswith(FUSION)} for s in (one, other))
    return a == b and "naive" not in (one["train"]["pairs"], other["train"]["pairs"])


def borrow(settings: Settings) -> str | None:
    """Copy the beginning of a finished run into a new one; returns that run's name.

    Takes a run that fused alike where there is one. Returns None, and does nothing, where this run
    has begun or no other begins alike.
    """
    data = Path(settings.save_path)
    folder = data / settings.exp_name
    if folder.exists():
        return None
    wanted = resolved(settings).to_dict()
    alike: list[tuple[bool, Path]] = []
    for config in sorted(data.glob("*/config.json")):
        found = read_json(config)["settings"]
        done = (config.parent / "checkpoints" / "epoch0" / "state.json").exists()
        if done and beginning(found) == beginning(wanted):
            alike.append((fused_alike(wanted, found), config.parent))
    if not alike:
        return None
    fused, other = max(alike, key=lambda run: run[0])
    aside = data / f".{settings.exp_name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    for part in (*SAMPLED, *(TARGETS if fused else ())):
        _copy(other / "epoch0" / part, aside / "epoch0" / part)
    _copy(other / "compare" / "epoch0", aside / "compare" / "epoch0")
    aside.rename(folder)
    return other.name


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)

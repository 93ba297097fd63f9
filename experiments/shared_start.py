"""Runs that begin alike share their beginning: the first comparison and round 0's samples.

Both depend on the base model, prompts and seed only, not on how a run trains, so a run that is not
begun yet may copy them from one that is.
"""

import shutil
from pathlib import Path

from dfusion.files import read_json
from dfusion.settings import Settings, flat

# Settings of what comes after sampling, or of how a run is done.
OWN = (
    *("train.", "fusion.", "pair.", "mask.merge"),
    *("exp_name", "resume_from", "allow_config_change", "tracker"),
)
# Of round 0: what is made before pairs are; pairs and targets are the run's own.
SAMPLED = ("images", "trajectories", "manifest.json", "eval/images.json")


def beginning(settings: dict) -> dict[str, object]:
    """The settings that samples before any training depend on."""
    return {
        name: value
        for name, value in flat(settings).items()
        if not name.startswith(OWN) or name == "train.compare_images"
    }


def borrow(settings: Settings) -> str | None:
    """Copy the beginning of a finished run into a new one; returns that run's name.

    Returns None, and does nothing, where this run has begun or no other begins alike.
    """
    data = Path(settings.save_path)
    folder = data / settings.exp_name
    if folder.exists():
        return None
    wanted = beginning(settings.to_dict()) | {"mixed_precision": None}
    for config in sorted(data.glob("*/config.json")):
        other = config.parent
        same = beginning(read_json(config)["settings"]) | {"mixed_precision": None} == wanted
        if same and (other / "checkpoints" / "epoch0" / "state.json").exists():
            aside = data / f".{settings.exp_name}.tmp"
            shutil.rmtree(aside, ignore_errors=True)
            for part in SAMPLED:
                _copy(other / "epoch0" / part, aside / "epoch0" / part)
            _copy(other / "compare" / "epoch0", aside / "compare" / "epoch0")
            aside.rename(folder)
            return other.name
    return None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)

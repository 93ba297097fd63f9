"""Runs that begin alike share their beginning, by --config.samples_from: which run to take it from.

The library refuses what is not the same; here a run is looked for whose settings promise that.
"""

from pathlib import Path
from typing import Any

from dfusion.rounds.session import resolved
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import FREE, Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json

# Settings of what comes after sampling.
OWN = ("train.", "fusion.", "pair.", "mask.merge", "mask_thr")
# Of those, what targets depend on.
FUSION = ("fusion.", "mask.", "mask_thr", "pair.rule")


def beginning(settings: dict[str, Any]) -> dict[str, object]:
    """The settings that samples before any training depend on; those not given are the defaults."""
    flags = {**flat(Settings().to_dict()), **flat(settings)}
    return {
        name: value
        for name, value in flags.items()
        if name == "train.compare_images" or not (name in FREE or name.startswith(OWN))
    }


def fused_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs that begin alike fuse alike, and both fuse."""
    a, b = (
        {k: v for k, v in flat(s).items() if k.startswith(FUSION) and k not in FREE}
        for s in (one, other)
    )
    return a == b and "naive" not in (one["train"]["pairs"], other["train"]["pairs"])


def source_of(settings: Settings) -> str:
    """The folder of a finished run beside this one that begins alike; empty where there is none.

    One that fused alike too comes first.
    """
    data, wanted = Path(settings.save_path), resolved(settings).to_dict()
    alike: list[tuple[bool, Path]] = []
    for config in sorted(data.glob("*/config.json")):
        folder, found = config.parent, read_json(config)["settings"]
        done = (folder / "checkpoints" / "epoch0" / "state.json").exists()
        kept = folder.name != settings.exp_name and Experiment(folder).round(0).states_kept
        if done and kept and beginning(found) == beginning(wanted):
            alike.append((fused_alike(wanted, found), folder))
    return str(max(alike, key=lambda run: run[0])[1]) if alike else ""

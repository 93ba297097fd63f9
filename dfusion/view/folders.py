"""What a request may name: experiments, rounds and images of the data folder, and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dfusion.errors import UserError
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, stamp

T = TypeVar("T")
KINDS = ("images", "base_images", "reference_images", "target_images", "masks")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)?")
_ROUND = re.compile(r"(compare/)?epoch(\d{1,9})")


class NotThereError(UserError):
    """What was asked for is not on disk (yet)."""


class Data:
    """A data folder. Experiments are in it, or one folder deeper ("alignment/dpo")."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._known: dict[Path, tuple[tuple[int, int, int], Any]] = {}
        self._made: dict[str, tuple[object, Any]] = {}

    def names(self) -> list[str]:
        """Experiments, by name."""
        found = [*self.root.glob("*/config.json"), *self.root.glob("*/*/config.json")]
        names = [path.parent.relative_to(self.root).as_posix() for path in found]
        return sorted(name for name in names if _NAME.fullmatch(name))

    def experiment(self, name: str) -> Experiment:
        """Raises NotThereError for anything but the name of an experiment."""
        if not _NAME.fullmatch(name):
            raise NotThereError(f"'{name}': not the name of an experiment")
        experiment = Experiment(self.root / name)
        if not self.inside(experiment.config_file).is_file():
            raise NotThereError(f"'{name}': no such experiment in {self.root}")
        return experiment

    def settings(self, name: str) -> Settings:
        """The settings of an experiment. Raises UserError if config.json is not readable."""
        path = self.experiment(name).config_file
        try:
            return Settings.of(self.read(path, read_json)["settings"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not the settings of a run ({error})") from error

    def round(self, name: str, which: str) -> Round:
        """which: "epoch3", or "compare/epoch3". Raises NotThereError."""
        match = _ROUND.fullmatch(which)
        if not match:
            raise NotThereError(
                f"'{which}': not a round; rounds are called epoch3 or compare/epoch3"
            )
        experiment, number = self.experiment(name), int(match[2])
        round_ = experiment.comparison(number) if match[1] else experiment.round(number)
        if not self.inside(round_.folder).is_dir():
            raise NotThereError(f"{name}: no round {which}")
        return round_

    def image(self, name: str, which: str, kind: str, index: int) -> Path:
        """A PNG of a round. Raises NotThereError if it does not exist (yet)."""
        if kind not in KINDS:
            raise NotThereError(f"'{kind}': choose from {', '.join(KINDS)}")
        path = self.inside(self.round(name, which).image(kind, index))
        if not path.is_file():
            raise NotThereError(f"{name}: no image {index} of {kind} in {which}")
        return path

    def inside(self, path: Path) -> Path:
        """The path itself. Raises NotThereError if links lead out of the data folder."""
        if not path.resolve().is_relative_to(self.root):
            raise NotThereError(f"{path.name}: a link that leads out of {self.root}")
        return path

    def read(self, path: Path, read: Callable[[Path], T]) -> T:
        """read(path), remembered until the file changes. Files here are replaced, never edited."""
        self.inside(path)
        now = stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != now:
            known = self._known[path] = (now, read(path))
        return known[1]

    def kept(self, name: str, stamps: object, make: Callable[[], T]) -> T:
        """make(), remembered under a name until the stamps of what it is made from change."""
        made = self._made.get(name)
        if made is None or made[0] != stamps:
            made = self._made[name] = (stamps, make())
        return made[1]


def why_not(round_: Round) -> str:
    """Why states or item maps do not exist: the end of a sentence."""
    if round_.states_kept:
        return " (yet)"
    return ": not kept after training on the round (--config.keep_trajectories)"


def shown_path(path: Path) -> str:
    """The path as one would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

"""Checkpoints: the policy in diffusers' format, and everything else that a resumed run needs.

checkpoints/epoch<k>/    after training on round k
  pytorch_lora_weights.safetensors, or unet/ if the whole UNet was trained
  optimiser.safetensors, state.json, README.md (a model card)
checkpoints/within/      after some optimiser steps of a round; gone when the round is done
  the same, and for each process rank<r>.safetensors: the results of theta_old

state.json is written last: a folder without it is not a checkpoint. The only randomness in training
is in orders, which depend on (seed, round, pass), so there is no generator state to store.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfusion.errors import UserError
from dfusion.models.lora import REMOVE
from dfusion.models.trainable import Tuning
from dfusion.storage.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from dfusion.training import optimiser as optimisers
from dfusion.training.gradients import Updater

_NUMBERED = re.compile(r"epoch(\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """data/<exp>/checkpoints/."""

    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / f"epoch{number}"

    @property
    def within(self) -> Path:
        return self.folder / "within"

    def latest(self) -> int | None:
        """The last round whose training is finished."""
        done = [_NUMBERED.fullmatch(p.parent.name) for p in self.folder.glob("epoch*/state.json")]
        return max((int(match[1]) for match in done if match), default=None)

    def save(
        self,
        number: int,
        tuning: Tuning,
        optimiser: torch.optim.Optimizer,
        state: dict[str, Any],
        card: str,
        keep: int,
    ) -> Path:
        """Write a checkpoint, and tidy up."""
        folder = self.path(number)
        _write(folder, tuning, optimiser, {"round": number, **state}, card)
        self.tidy(number, keep)
        return folder

    def tidy(self, number: int, keep: int) -> None:
        """After round `number`, delete `within` and all but the last `keep` checkpoints.

        Raises UserError if the checkpoint within a round is damaged.
        """
        state = self.within / "state.json"
        if not state.exists() or read_state(self.within)["round"] <= number:
            self.forget_within()
        for old in range(number - keep + 1):
            shutil.rmtree(self.path(old), ignore_errors=True)

    def load(
        self, folder: Path, tuning: Tuning, optimiser: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Restore policy and optimiser; returns the saved state. Raises UserError for a misfit."""
        state = read_state(folder)
        tuning.load(folder)
        path = folder / "optimiser.safetensors"
        try:
            optimisers.restore(optimiser, tuning.names, read_tensors(path, REMOVE))
        except ValueError as error:
            raise UserError(
                f"{path}: of another optimiser or model ({error}); train with the settings it was "
                "made with"
            ) from error
        return state

    def forget_within(self) -> None:
        (self.within / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self.within, ignore_errors=True)

    def save_known(self, rank: int, updater: Updater) -> None:
        """Write this process's part of a checkpoint within a round; comes before save_within."""
        write_tensors(self.within / f"rank{rank}.safetensors", updater.tensors(), {})

    def save_within(
        self, tuning: Tuning, optimiser: torch.optim.Optimizer, state: dict[str, Any], card: str
    ) -> None:
        """state: the entries that `state_within` compares, and the metrics so far."""
        _write(self.within, tuning, optimiser, state, card)

    def state_within(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The state of a checkpoint within a round, if there is one that can be used.

        about: entries of the state that must be the same: what it was trained on, and how.
        """
        state = read_state(self.within) if (self.within / "state.json").exists() else None
        fits = state is not None and all(state.get(key) == about[key] for key in about)
        return state if fits else None

    def load_known(self, rank: int, updater: Updater) -> None:
        """Restore what save_known wrote. Raises UserError for damage."""
        path = self.within / f"rank{rank}.safetensors"
        try:
            updater.restore(read_tensors(path, REMOVE))
        except ValueError as error:
            raise UserError(f"{path}: {error}; {REMOVE}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json. Raises UserError if it is damaged or belongs to another folder."""
    path, match = folder / "state.json", _NUMBERED.fullmatch(folder.name)
    state = read_json(path, REMOVE)
    wanted = {"round": int} if match else {"round": int, "processes": int, "rows": list}
    if not all(type(state.get(name)) is kind for name, kind in wanted.items()):
        raise UserError(f"{path}: lacks {' or '.join(wanted)}; {REMOVE}")
    if match and state["round"] != int(match[1]):
        raise UserError(f"{path}: is of round {state['round']}, not {match[1]}; {REMOVE}")
    return state


def _write(
    folder: Path,
    tuning: Tuning,
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
    card: str,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    tuning.save(folder)
    entries = optimisers.state(optimiser, tuning.names)
    write_tensors(folder / "optimiser.safetensors", entries, {})
    write_bytes(folder / "README.md", card.encode())
    write_json(folder / "state.json", state)

"""Checkpoints: the LoRA as diffusers loads it, and beside it all that a resumed run needs."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfusion import lora
from dfusion.errors import UserError
from dfusion.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from diffusers_patched import UNet2DConditionModel


@dataclass(frozen=True)
class Checkpoints:
    """data/<exp>/checkpoints/epoch<k>/: the policy after training on round k.

    state.json is written last: a folder without it is not a checkpoint.
    """

    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / f"epoch{number}"

    def latest(self) -> int | None:
        """The last round whose training is finished."""
        done = [int(p.parent.name.removeprefix("epoch")) for p in self.folder.glob("*/state.json")]
        return max(done, default=None)

    def save(
        self,
        number: int,
        unet: UNet2DConditionModel,
        optimiser: torch.optim.Optimizer,
        names: list[str],
        state: dict[str, Any],
        card: str,
        keep: int,
    ) -> Path:
        """Write a checkpoint and delete those before the last `keep`.

        names: of the optimiser's parameters, in order.
        """
        folder = self.path(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").unlink(missing_ok=True)
        lora.save(unet, folder)
        write_tensors(folder / "optimiser.safetensors", _moments(optimiser, names), {})
        write_bytes(folder / "README.md", card.encode())
        write_json(folder / "state.json", {"round": number, **state})
        for old in range(number - keep + 1):
            shutil.rmtree(self.path(old), ignore_errors=True)
        return folder

    def load(
        self,
        number: int,
        unet: UNet2DConditionModel,
        optimiser: torch.optim.Optimizer,
        names: list[str],
    ) -> dict[str, Any]:
        """Restore LoRA and optimiser; returns the saved state. Raises UserError for a misfit."""
        folder = self.path(number)
        state = read_json(folder / "state.json")
        lora.load(unet, folder)
        _restore(optimiser, names, read_tensors(folder / "optimiser.safetensors"), folder)
        return state


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _moments(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state, "<parameter>|<exp_avg, exp_avg_sq or step>"."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in zip(names, _parameters(optimiser), strict=True)
        for key, value in optimiser.state[parameter].items()
    }


def _restore(
    optimiser: torch.optim.Optimizer, names: list[str], saved: dict[str, Tensor], folder: Path
) -> None:
    if {key.split("|")[0] for key in saved} != set(names):
        raise UserError(f"{folder}/optimiser.safetensors: of another model; delete the checkpoint")
    for name, parameter in zip(names, _parameters(optimiser), strict=True):
        optimiser.state[parameter] = {
            key: saved[f"{name}|{key}"].to("cpu" if key == "step" else parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }

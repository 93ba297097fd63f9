"""AdamW, in 32 or 8 bits, and its state as plain tensors."""

import torch
from torch import Tensor, nn

from dfusion.errors import UserError
from dfusion.settings.schema import Train


def make(parameters: list[nn.Parameter], train: Train, device: torch.device) -> torch.optim.AdamW:
    """The optimiser that the settings ask for. Raises UserError if 8 bits are unavailable."""
    kind, extra = torch.optim.AdamW, {"fused": device.type in ("cuda", "cpu")}
    if train.adam_8bit:
        kind, extra = _eight_bit(device), {}
    return kind(
        parameters,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.adam_weight_decay,
        eps=train.adam_epsilon,
        **extra,
    )


def _eight_bit(device: torch.device) -> type[torch.optim.AdamW]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "--config.train.adam_8bit: needs bitsandbytes; pip install bitsandbytes"
        ) from None
    if device.type != "cuda":
        raise UserError(f"--config.train.adam_8bit: needs a CUDA GPU, not {device.type}")
    return AdamW8bit


def state(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """ "<parameter>|<entry>" -> tensor; names: of the optimiser's parameters, in order."""
    entries = optimiser.state_dict()["state"]
    return {
        f"{names[index]}|{key}": torch.as_tensor(value)
        for index, row in entries.items()
        for key, value in row.items()
    }


def restore(optimiser: torch.optim.Optimizer, names: list[str], saved: dict[str, Tensor]) -> None:
    """Put back what `state` gave. Raises ValueError if the parameters differ."""
    rows: dict[int, dict[str, Tensor]] = {}
    places = {name: index for index, name in enumerate(names)}
    for key, value in saved.items():
        name, _, entry = key.rpartition("|")
        if name not in places:
            raise ValueError(f"unknown parameter {name}")
        rows.setdefault(places[name], {})[entry] = value
    if rows and len(rows) != len(names):
        raise ValueError(f"{len(rows)} parameters, not {len(names)}")
    optimiser.load_state_dict({**optimiser.state_dict(), "state": rows})

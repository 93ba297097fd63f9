"""The training losses, one a file, and the contract for others (contract.py).

To add one, derive it from `Loss`, put it into a file of its own and into LOSSES, or pass it as
--config.train.method module:Name.
"""

from dfusion.method.losses.contract import ForwardLoss, Loss, Noised, Steps, Value
from dfusion.method.losses.ddpo import DDPO
from dfusion.method.losses.diffusion_dpo import DiffusionDPO
from dfusion.method.losses.diffusion_kto import DiffusionKTO
from dfusion.method.losses.dpo import DPO
from dfusion.method.losses.dpok import DPOK
from dfusion.method.losses.fdfo import FDFO
from dfusion.method.losses.grpo import GRPO

LOSSES: dict[str, type[Loss]] = {
    "dpo": DPO,
    "ddpo": DDPO,
    "dpok": DPOK,
    "grpo": GRPO,
    "diffusion_dpo": DiffusionDPO,
    "diffusion_kto": DiffusionKTO,
    "fdfo": FDFO,
}

__all__ = [
    "DDPO",
    "DPO",
    "DPOK",
    "FDFO",
    "GRPO",
    "LOSSES",
    "DiffusionDPO",
    "DiffusionKTO",
    "ForwardLoss",
    "Loss",
    "Noised",
    "Steps",
    "Value",
]

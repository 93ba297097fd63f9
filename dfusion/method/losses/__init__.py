"""The training losses, one a file, and the contract for others (contract.py).

To add one, derive it from `Loss`, put it into a file of its own and into LOSSES, or pass it as
--config.train.method module:Name.
"""

from dfusion.method.losses.contract import Loss, Steps, Value
from dfusion.method.losses.ddpo import DDPO
from dfusion.method.losses.dpo import DPO
from dfusion.method.losses.dpok import DPOK

LOSSES: dict[str, type[Loss]] = {"dpo": DPO, "ddpo": DDPO, "dpok": DPOK}

__all__ = ["DDPO", "DPO", "DPOK", "LOSSES", "Loss", "Steps", "Value"]

"""What is trained: LoRA on a frozen UNet, or all of the UNet."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from dfusion.errors import UserError
from dfusion.models import lora
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Train
from dfusion.storage.files import read_weights, write_weights
from diffusers_patched import UNet2DConditionModel


class Tuning(Protocol):
    """The trainable part of a UNet. names: its parameters' names, in order."""

    names: list[str]
    parameters: list[nn.Parameter]
    keeps_initial: bool  # whether `initial` may be called

    def save(self, folder: Path) -> None:
        """Write the weights in diffusers' format."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises UserError for a misfit."""

    def initial(self) -> AbstractContextManager[nn.Module]:
        """A context in which the model is as it was before any training."""


class LoraTuning:
    """LoRA; the initial model is the UNet with LoRA switched off."""

    keeps_initial = True

    def __init__(self, unet: UNet2DConditionModel, train: Train, seed: int) -> None:
        self.unet = unet
        targets = names_of(train.lora_targets)
        self.parameters = lora.add(unet, train.lora_rank, train.lora_alpha, targets, seed)
        self.names = [name for name, p in unet.named_parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        lora.save(self.unet, folder)

    def load(self, folder: Path) -> None:
        lora.load(self.unet, folder)

    @contextmanager
    def initial(self) -> Iterator[nn.Module]:
        self.unet.disable_adapters()
        try:
            yield self.unet
        finally:
            self.unet.enable_adapters()


class FullTuning:
    """All weights, in float32. keep_initial: a frozen copy stays in memory."""

    def __init__(self, unet: UNet2DConditionModel, keep_initial: bool) -> None:
        self.unet = unet
        self._copy = copy.deepcopy(unet) if keep_initial else None
        self.keeps_initial = keep_initial
        for parameter in unet.parameters():
            parameter.data = parameter.data.clone()  # a pipeline that shares them keeps its own
        unet.requires_grad_(True)
        self.names = [name for name, _ in unet.named_parameters()]
        self.parameters = list(unet.parameters())

    def save(self, folder: Path) -> None:
        self.unet.save_config(folder / "unet")
        path = folder / "unet" / SAFETENSORS_WEIGHTS_NAME
        write_weights(path, self.unet.state_dict(), {"format": "pt"})

    def load(self, folder: Path) -> None:
        saved: dict[str, Tensor] = {}
        for part in sorted((folder / "unet").glob("*.safetensors")):
            saved |= read_weights(part, lora.REMOVE)
        try:
            self.unet.load_state_dict(saved)
        except RuntimeError as error:
            raise UserError(
                f"{folder / 'unet'}: does not fit this model; start from the "
                "--config.pretrained.model it was trained from"
            ) from error

    @contextmanager
    def initial(self) -> Iterator[nn.Module]:
        assert self._copy is not None, "made with keep_initial=False"
        yield self._copy


def tune(unet: UNet2DConditionModel, train: Train, seed: int, keep_initial: bool) -> Tuning:
    """Make the UNet trainable as the settings ask."""
    if train.tune == "full":
        return FullTuning(unet, keep_initial)
    return LoraTuning(unet, train, seed)

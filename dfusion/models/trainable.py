"""What is trained: LoRA on a frozen network, or all of the network."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from dfusion.errors import UserError
from dfusion.models import lora
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Train
from dfusion.storage.files import read_weights, write_weights


class Tuning(Protocol):
    """The trainable part of a network. names: its parameters' names, in order."""

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
    """LoRA; the initial model is the network with LoRA switched off."""

    keeps_initial = True

    def __init__(self, network: ModelMixin, name: str, train: Train, seed: int) -> None:
        self.network, self._name = network, name
        targets = names_of(train.lora_targets)
        self.parameters = lora.add(network, train.lora_rank, train.lora_alpha, targets, seed)
        self.names = [name for name, p in network.named_parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        lora.save(self.network, self._name, folder)

    def load(self, folder: Path) -> None:
        lora.load(self.network, self._name, folder)

    @contextmanager
    def initial(self) -> Iterator[nn.Module]:
        self.network.disable_adapters()
        try:
            yield self.network
        finally:
            self.network.enable_adapters()


class FullTuning:
    """All weights, in float32. keep_initial: a frozen copy stays in memory."""

    def __init__(self, network: ModelMixin, name: str, keep_initial: bool) -> None:
        self.network, self._name = network, name
        self._copy = copy.deepcopy(network) if keep_initial else None
        self.keeps_initial = keep_initial
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # a pipeline that shares them keeps its own
        network.requires_grad_(True)
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())

    def save(self, folder: Path) -> None:
        self.network.save_config(folder / self._name)
        path = folder / self._name / SAFETENSORS_WEIGHTS_NAME
        write_weights(path, self.network.state_dict(), {"format": "pt"})

    def load(self, folder: Path) -> None:
        saved: dict[str, Tensor] = {}
        for part in sorted((folder / self._name).glob("*.safetensors")):
            saved |= read_weights(part, lora.REMOVE)
        try:
            self.network.load_state_dict(saved)
        except RuntimeError as error:
            raise UserError(
                f"{folder / 'unet'}: does not fit this model; start from the "
                "--config.pretrained.model it was trained from"
            ) from error

    @contextmanager
    def initial(self) -> Iterator[nn.Module]:
        assert self._copy is not None, "made with keep_initial=False"
        yield self._copy


def tune(model: DiffusionModel, train: Train, seed: int, keep_initial: bool) -> Tuning:
    """Make the model's network trainable as the settings ask."""
    if train.tune == "full":
        return FullTuning(model.network, model.network_name, keep_initial)
    return LoraTuning(model.network, model.network_name, train, seed)

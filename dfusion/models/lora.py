"""LoRA on a frozen network, by peft, in the format that diffusers pipelines load."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from dfusion.errors import UserError
from dfusion.storage.files import read_weights, write_weights

FILE = "pytorch_lora_weights.safetensors"
REMOVE = "remove this checkpoint's folder; the same command continues from the one before"


def add(
    network: ModelMixin, rank: int, alpha: int, targets: Sequence[str], seed: int
) -> list[nn.Parameter]:
    """Attach LoRA to every module whose name ends with a target; returns its float32 parameters.

    The network's own weights are frozen. B starts at zero: the network is unchanged until trained.
    Raises UserError for a target that matches no linear or convolution layer, and if there is a
    LoRA already.
    """
    if getattr(network, "peft_config", None):
        raise UserError("the model has a LoRA already; use its trainer, or a new pipeline")
    names = [name for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"--config.train.lora_targets '{target}': there is no such layer")
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=list(targets),
                init_lora_weights="gaussian",
            )
        )
    return parameters(network)


def parameters(network: ModelMixin) -> list[nn.Parameter]:
    """The trainable parameters, in float32 whatever the network's precision."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return trainable


def save(network: ModelMixin, prefix: str, folder: Path) -> None:
    """Write pytorch_lora_weights.safetensors, for a diffusers pipeline's load_lora_weights.

    prefix: what the pipeline calls the network.
    """
    layers = get_peft_model_state_dict(network)
    if prefix == "unet":  # diffusers' older names
        layers = convert_state_dict_to_diffusers(layers)
    about = network.peft_config["default"].to_dict()  # without it, diffusers sets alpha = rank
    plain = {f"{prefix}.{k}": sorted(v) if isinstance(v, set) else v for k, v in about.items()}
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(plain, sort_keys=True)}
    write_weights(folder / FILE, {f"{prefix}.{k}": v for k, v in layers.items()}, header)


def load(network: ModelMixin, prefix: str, folder: Path) -> None:
    """Load saved weights into the LoRA that `add` attached. Raises UserError for a misfit."""
    saved = read_weights(folder / FILE, REMOVE)
    state = {_peft_name(name.removeprefix(f"{prefix}.")): v for name, v in saved.items()}
    wanted = get_peft_model_state_dict(network)
    misfits = {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape}
    if misfits or wanted.keys() != state.keys():
        raise UserError(
            f"{folder / FILE}: does not fit this model's LoRA (rank or targets differ); use the "
            "--config.train.lora_rank and lora_targets it was trained with"
        )
    set_peft_model_state_dict(network, state)
    parameters(network)


def _peft_name(name: str) -> str:
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")

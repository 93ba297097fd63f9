"""The presets as flags: the file that --config reads."""

from ml_collections import ConfigDict

from dfusion.settings.plain_values import as_flags
from dfusion.settings.presets import PRESETS


def get_config(preset: str = "paper") -> ConfigDict:
    """Called by ml_collections for `--config …/config.py:<preset>`. ValueError for no preset."""
    if preset not in PRESETS:
        raise ValueError(f"no preset '{preset}'; choose from {', '.join(PRESETS)}")
    return ConfigDict(as_flags(PRESETS[preset]().to_dict()))

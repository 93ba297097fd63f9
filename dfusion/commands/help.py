"""--help: every setting with its value, what it does and which values it may have."""

import inspect
import shlex
import textwrap
from typing import Any

from dfusion.settings import presets
from dfusion.settings.declaration import Setting, comments_in
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import SETTINGS, Settings

WIDTH = 100
INDENT = " " * 6


def help_text(about: str, values: dict[str, Any]) -> str:
    """What --help prints. about: the command. values: the preset's, as Settings.to_dict()."""
    listed = textwrap.indent(inspect.cleandoc(presets.__doc__ or "").split("\n\n")[-1], "  ")
    parts = [about.strip(), f"Presets, by --config NAME\n{listed}"]
    parts.append("Settings, with their values in the preset")
    comments = comments_in(Settings)
    for name, value in flat(values).items():
        parts.append(_entry(name, value, comments[name], SETTINGS[name]))
    return "\n\n".join(parts)


def _entry(name: str, value: object, comment: str, setting: Setting) -> str:
    flag = f"  --config.{name}={shlex.quote(str(value))}"
    lines = [flag, *textwrap.wrap(comment, WIDTH - len(INDENT))]
    if setting.words or str(setting.range):
        lines += textwrap.wrap(f"Values: {setting.values}", WIDTH - len(INDENT))
    return f"\n{INDENT}".join(lines)

"""Write docs/settings.md: every setting with its default, its values and what it does."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfusion.settings.declaration import comments_in, groups_of
from dfusion.settings.plain_values import flat
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import SETTINGS, Settings

FILE = Path("docs/settings.md")
INTRO = """# Settings

Made by `make docs` from [dfusion/settings/schema.py](../dfusion/settings/schema.py), where each
setting is declared.

A flag is `--config.` followed by a setting's name: `--config.sample.num_steps 20`. The settings
that an experiment was begun with are in its `config.json`. Those marked † affect how a run
proceeds, not its results, and may differ when the experiment is continued."""


def page() -> str:
    """docs/settings.md."""
    parts = [INTRO, *_section("", Settings)]
    for name, group in groups_of(Settings).items():
        parts += _section(f"{name}.", group)
    return "\n\n".join([*parts, "## Presets", *_presets()]) + "\n"


def _section(prefix: str, group: type) -> Iterator[str]:
    """The settings of one group, as a heading, a sentence and a table."""
    yield f"## {prefix.removesuffix('.') or 'General'}"
    yield group.__doc__ or ""
    values, comments = flat(Settings().to_dict()), comments_in(Settings)
    rows = [("setting", "default", "values", "what it does"), ("---",) * 4]
    for name, setting in SETTINGS.items():
        if name.rpartition(".")[0] == prefix.removesuffix("."):
            mark = " †" if setting.free else ""
            rows.append((f"`{name}`{mark}", _code(values[name]), setting.values, comments[name]))
    yield _table(rows)


def _presets() -> Iterator[str]:
    """What each preset changes."""
    default = flat(Settings().to_dict())
    for name, preset in PRESETS.items():
        changed = {k: v for k, v in flat(preset().to_dict()).items() if v != default[k]}
        yield f"**`--config {name}`** " + ("changes" if changed else "has the defaults.")
        if changed:
            rows = [("setting", "value"), ("---",) * 2]
            yield _table([*rows, *((f"`{k}`", _code(v)) for k, v in changed.items())])


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _code(value: object) -> str:
    return f"`{shlex.quote(str(value))}`"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(page())

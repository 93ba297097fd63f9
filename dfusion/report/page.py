"""The page and the contact sheet of an experiment: data/<exp>/index.html and pairs.png.

Both are made from whatever is on disk, at any stage of a run; `dfusion report data/<exp>`
makes them again. The page is the browser app's pairs and comparisons with the app's answers inside.
It links to the PNGs by relative path, and opens without a server.
"""

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dfusion.report.contact_sheet import contact_sheet
from dfusion.report.rounds import comparisons, has_begun, round_view, settings_of
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import write_bytes

STATIC = Path(__file__).parents[1] / "view/static"  # the app's files; its code is not needed
_IMPORT = re.compile(r'^import (?:\* as (\w+)|(\{[^}]+\})) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function|const) (\w+)", re.MULTILINE)
_STYLE = re.compile(r'<link rel="stylesheet" href="/static/(\w+\.css)">')
_ICON = '<link rel="icon" href="/static/icon.svg">\n'
_SCRIPT = '<script type="module" src="/static/main.js"></script>\n'


def write(folder: Path) -> list[Path]:
    """Write index.html and pairs.png of the experiment in `folder`; returns their paths."""
    page, sheet = folder / "index.html", folder / "pairs.png"
    write_bytes(page, html(answers(folder)).encode())
    buffer = io.BytesIO()
    contact_sheet(folder).save(buffer, format="PNG")
    write_bytes(sheet, buffer.getvalue())
    return [page, sheet]


def answers(folder: Path) -> dict[str, Any]:
    """What the app would answer about this experiment, by address."""
    experiment, name = Experiment(folder), folder.resolve().name
    settings = settings_of(experiment)
    rounds = {k: r for k, r in experiment.rounds().items() if has_begun(r)}
    compared = {k: r for k, r in experiment.comparisons().items() if has_begun(r)}
    known: dict[str, Any] = {
        "catalogue": [{"name": name, "rounds": [*rounds], "comparisons": [*compared]}],
        "comparisons": comparisons([(name, f"compare/epoch{k}", r) for k, r in compared.items()]),
    }
    for k, round_ in rounds.items():
        query = urlencode({"exp": name, "round": f"epoch{k}"})
        # The states are read by the app alone.
        known[f"round?{query}"] = round_view(round_, settings) | {"kept": False}
    return known


def html(known: dict[str, Any]) -> str:
    """The app's page with its styles, its scripts and these answers inside."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    page = _STYLE.sub(
        lambda m: f"<style>\n{(STATIC / m[1]).read_text(encoding='utf-8')}</style>", page
    )
    data = f'<script type="application/json" id="answers">{inline_json(known)}</script>'
    script = f"<script>\n{bundle('page')}</script>\n"
    page = page.replace(_ICON, "").replace(_SCRIPT, "")
    return page.replace("</body>", f"{data}\n{script}</body>")


def bundle(entry: str) -> str:
    """The module and all that it imports as one classic script: file:// allows no modules."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        text = (STATIC / f"{name}.js").read_text(encoding="utf-8")
        for found in _IMPORT.finditer(text):
            add(found[3])
        text = _IMPORT.sub(lambda m: f"const {m[1] or m[2]} = ${m[3]};", text)
        exported = ", ".join(m[2] for m in _EXPORT.finditer(text))
        text = _EXPORT.sub(r"\1 \2", text)
        done[name] = f"const ${name} = (() => {{\n{text}\nreturn {{ {exported} }};\n}})();\n"

    add(entry)
    return '"use strict";\n' + "".join(done.values())


def inline_json(value: object) -> str:
    """JSON that is safe inside a script element: no <, > or & whatever the prompts say."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")

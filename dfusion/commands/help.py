"""--help: every setting with its value and its comment, as settings/schema.py has them."""

import ast
import inspect
import shlex
import textwrap
from typing import Any

from dfusion.settings import presets, schema

WIDTH = 100
INDENT = " " * 6


def help_text(about: str, values: dict[str, Any]) -> str:
    """What --help prints. about: the command. values: the preset's, as Settings.to_dict()."""
    code = inspect.getsource(schema)
    lines = code.splitlines()
    classes = {n.name: n for n in ast.parse(code).body if isinstance(n, ast.ClassDef)}
    groups: list[tuple[str, ast.ClassDef, dict[str, Any]]] = [("", classes["Settings"], values)]
    for field in _fields(classes["Settings"]):
        name = _name(field)
        if isinstance(values[name], dict):
            groups.append((f"{name}.", classes[ast.unparse(field.annotation)], values[name]))
    listed = textwrap.indent(inspect.cleandoc(presets.__doc__ or "").split("\n\n")[-1], "  ")
    parts = [about.strip(), f"Presets, by --config NAME\n{listed}"]
    parts.append("Settings, with their values in the preset")
    for prefix, node, inside in groups:
        parts += _group(prefix, _fields(node), inside, lines)
    return "\n\n".join(parts)


def _group(
    prefix: str, fields: list[ast.AnnAssign], values: dict[str, Any], lines: list[str]
) -> list[str]:
    """One text for each comment: the flags it speaks of, then itself."""
    blocks: list[tuple[list[str], str]] = []
    for field in fields:
        value = values[_name(field)]
        if isinstance(value, dict):
            continue
        if comment := _comment(lines, field.lineno):
            wrapped = textwrap.fill(comment, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
            blocks.append(([], wrapped))
        blocks[-1][0].append(f"  --config.{prefix}{_name(field)}={shlex.quote(str(value))}")
    return ["\n".join([*flags, comment]) for flags, comment in blocks]


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [field for field in node.body if isinstance(field, ast.AnnAssign)]


def _name(field: ast.AnnAssign) -> str:
    assert isinstance(field.target, ast.Name)
    return field.target.id


def _comment(lines: list[str], number: int) -> str:
    """The comment right above line `number` (from 1), as one text; empty where there is none."""
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        found.insert(0, line.strip().lstrip("# "))
    return " ".join(found)

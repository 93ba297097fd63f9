"""Who may import whom (the layout's rules)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Every other module of dfusion/ is pure: maths and words, no files, models or frameworks.
EFFECTS = {
    *("checkpoints", "contact_sheet", "estimate", "files", "fusion", "inputs", "inversion", "lora"),
    *("acceptance", "hub", "last_error", "lock"),
    *(
        "metrics",
        "model_folder",
        "models",
        "plain_json",
        "progress",
        "prompt_files",
        "report",
        "round_files",
        "rewards",
        "rounds",
        "runs",
        "sampling",
    ),
    *("scorer", "scoring", "sharing", "stepper", "store", "tracking", "training"),
    *("transitions", "tuning", "updates", "verify"),
}
PURE = sorted({p.stem for p in (ROOT / "dfusion").glob("*.py")} - EFFECTS)
EFFECTS_ONLY = {"diffusers", "transformers", "accelerate", "peft", "open_clip", "absl"}
SCRIPTS_ONLY = {"absl", "ml_collections"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_maths_and_each_other_only(name: str) -> None:
    path = ROOT / "dfusion" / f"{name}.py"
    assert not tops(path) & (EFFECTS_ONLY | SCRIPTS_ONLY | {"diffusers_patched", "pathlib", "os"})
    ours = {n.split(".")[1] for n in imports(path) if n.startswith("dfusion.")}
    assert ours <= set(PURE)


@pytest.mark.parametrize("path", sorted((ROOT / "diffusers_patched").glob("*.py")), ids=str)
def test_the_overlay_knows_nothing_of_dfusion(path: Path) -> None:
    assert not tops(path) & ({"dfusion", "config", "testbed"} | SCRIPTS_ONLY)


@pytest.mark.parametrize("path", sorted((ROOT / "dfusion").glob("*.py")), ids=str)
def test_the_library_has_no_flags_and_no_testbed(path: Path) -> None:
    assert not tops(path) & (SCRIPTS_ONLY | {"config", "testbed", "experiments"})


def test_nothing_is_unpickled() -> None:
    for path in [*(ROOT / "dfusion").glob("*.py"), *(ROOT / "diffusers_patched").glob("*.py")]:
        assert "pickle" not in tops(path)
        assert "torch.load" not in path.read_text()

"""What the folders may import: each only what stands below it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up; what stands in one line knows nothing of each other.
ORDER = [
    {"errors", "progress"},
    {"method"},
    {"storage"},
    {"settings"},
    {"models", "report"},
    {"rewards"},
    {"rounds"},
    {"training", "view"},
    {"commands", "api"},
]
HEIGHT = {name: height for height, names in enumerate(ORDER) for name in names}
LIBRARY = sorted((ROOT / "dfusion").rglob("*.py"))
OVERLAY = sorted((ROOT / "diffusers_patched").glob("*.py"))
FLAGS = {"absl", "ml_collections"}
# The method is maths: it knows no files, models or frameworks.
MATHS = {"torch", "numpy", "dfusion", "diffusers_patched"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dfusion":
            names |= {f"dfusion.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def room(path: Path) -> str:
    """The folder of dfusion/ that a file is in, or its own name."""
    return path.relative_to(ROOT / "dfusion").parts[0].removesuffix(".py")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_folder_has_its_place() -> None:
    assert {room(path) for path in LIBRARY} - {"__init__", "__main__"} == HEIGHT.keys()


@pytest.mark.parametrize("path", LIBRARY, ids=named)
def test_a_folder_imports_only_what_is_below_it(path: Path) -> None:
    own = room(path)
    if own not in HEIGHT:  # the public face: it may know everything
        return
    for name in imports(path):
        if name.startswith("dfusion."):
            other = name.split(".")[1]
            assert other == own or HEIGHT[other] < HEIGHT[own], name


@pytest.mark.parametrize("path", sorted((ROOT / "dfusion/method").glob("*.py")), ids=named)
def test_the_method_is_maths(path: Path) -> None:
    assert tops(path) <= MATHS | (sys.stdlib_module_names - {"os", "pathlib", "io", "shutil"})


@pytest.mark.parametrize("path", OVERLAY, ids=named)
def test_the_overlay_knows_nothing_of_dfusion(path: Path) -> None:
    assert not tops(path) & ({"dfusion", "config", "testbed"} | FLAGS)


@pytest.mark.parametrize("path", LIBRARY, ids=named)
def test_only_commands_know_flags_and_nothing_the_testbed(path: Path) -> None:
    assert not tops(path) & {"config", "testbed", "experiments", "tests"}
    assert room(path) == "commands" or not tops(path) & FLAGS


def test_nothing_is_unpickled() -> None:
    for path in [*LIBRARY, *OVERLAY]:
        assert "pickle" not in tops(path)
        assert "torch.load" not in path.read_text()

"""What `pip install .` installs."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "requirements-view.txt")


def test_a_wheel_holds_the_packages_their_data_and_the_command(tmp_path: Path) -> None:
    """And no top-level package called config, tests, testbed or experiments."""
    for name in NEEDED:
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("dfusion", "diffusers_patched", "config", "tests", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"dfusion", "diffusers_patched"}
    ours = {
        str(path.relative_to(ROOT))
        for folder in ("dfusion", "diffusers_patched")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= set(names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"dfusion = dfusion.commands.cli:main" in zipfile.ZipFile(wheel).read(entry)
    (about,) = (name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(about).decode()
    listed = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(line.split(">=")[0] in text for line in listed if line and line[0] != "#")

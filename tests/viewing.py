"""What tests of the web app share."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dfusion.storage.files import read_json, write_json
from tests.conftest import PROMPTS

pytest.importorskip("starlette", reason="the app's packages are missing")
testclient = pytest.importorskip("starlette.testclient", reason="httpx is missing")

from dfusion.view.app import make_app  # noqa: E402

BASE = "http://127.0.0.1:8765"


def client_of(data: Path, host: str = "127.0.0.1", control: bool = False) -> Any:
    """Asks an app over `data`, without a network."""
    return testclient.TestClient(make_app(data, host, control=control), base_url=BASE)


def copy_of(data: Path, tmp_path: Path) -> Path:
    """A data folder that may be changed."""
    return Path(shutil.copytree(data, tmp_path / "copy"))


def ask_people(folder: Path, also: Iterable[str] = ()) -> None:
    """Let a scored experiment wait for people to score round 0; `also`: what else of it goes."""
    config = read_json(folder / "config.json")["settings"]
    config["eval"]["reward"] = "human"
    write_json(folder / "config.json", {"settings": config})
    for name in ("eval/images.json", "eval/target_images.json", "adoption.json", *also):
        (folder / "epoch0" / name).unlink()


def thresholds(values: list[float | None], prompt: str = PROMPTS[1]) -> dict[str, Any]:
    """What the page sends to save thresholds."""
    return {"exp": "exp", "round": "epoch0", "prompt": prompt, "thresholds": values}

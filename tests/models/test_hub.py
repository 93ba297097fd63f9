"""The hub where it does not answer: asked once, told in one line, its cache used."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from dfusion.errors import UserError, reason
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.rewards.registry import load_reward
from dfusion.settings.schema import Eval, Pretrained


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """When something asked a hub that answers nobody; its cache is empty."""
    asked: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:  # the server was closed
                    return
                asked.append(time.monotonic())

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield asked


def model(name: str) -> DiffusionModel:
    return load_model(Pretrained(model=name), "cpu", torch.float32)


def clip(name: str) -> object:
    return load_reward(Eval(model=name, pretrained=""), torch.device("cpu"))


@pytest.mark.parametrize(
    ("load", "name", "flag", "local"),
    [
        (model, "nobody/nothing", "pretrained.model", "a local diffusers folder"),
        (clip, "hf-hub:nobody/nothing", "eval.model", "local-dir:path/to/folder"),
    ],
)
def test_it_is_asked_once_and_told_in_one_line(
    calls: list[float],
    capfd: pytest.CaptureFixture,
    load: Callable[[str], object],
    name: str,
    flag: str,
    local: str,
) -> None:
    with pytest.raises(UserError, match=f"--config.{flag} '{name}'") as caught:
        load(name)
    said = str(caught.value)
    assert "cannot be reached" in said and local in said and "HF_HUB_OFFLINE=1" in said
    assert "…" not in said
    assert len(calls) == 1
    assert not constants.HF_HUB_OFFLINE
    printed = capfd.readouterr()
    assert "thrown while requesting" not in printed.err + printed.out


def test_its_cache_is_used(calls: list[float], pipeline_folder: Path) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--somebody--something"
    commit = "0123456789" * 4
    shutil.copytree(pipeline_folder, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    found = model("somebody/something")
    assert found.fingerprint() == model(str(pipeline_folder)).fingerprint()
    assert len(calls) == 1


def test_other_errors_say_what_they_are(calls: list[float]) -> None:
    with pytest.raises(UserError, match="'ViT-Z-99' with '' could not be loaded"):
        clip("ViT-Z-99")


def test_a_cause_is_not_cut_within_a_word() -> None:
    words = reason(ValueError("lorem ipsum dolor " * 40 + "\nmore")).split()
    assert {*words} == {"lorem", "ipsum", "dolor", "…"}
    assert reason(ValueError()) == "ValueError"

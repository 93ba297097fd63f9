"""Switches that change the numbers of a whole process: the same in every entry point."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from dfusion.models import loading
from dfusion.models.numerics import set_numerics
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.session import open_session
from dfusion.settings.schema import Settings
from dfusion.training import tracking
from dfusion.training.estimate import estimate
from experiments.runs.generalisation import model_of
from tests.conftest import grey_round

ROOT = Path(__file__).parents[2]
SWITCHES = r"allow_tf32|fp32_precision|matmul_precision|deterministic|benchmark|reduced_precision"


class LoadedError(Exception):
    """Raised in place of loading a model."""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    set_numerics(Settings(allow_tf32=before))


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("entry", [open_session, estimate, model_of], ids=lambda f: f.__name__)
def test_what_loads_a_model_has_set_them(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    entry: Callable[[Settings], object],
    allowed: bool,
) -> None:
    seen: list[tuple[bool, bool]] = []

    def load(*args: object) -> None:
        seen.append(switches())
        raise LoadedError

    monkeypatch.setattr(loading, "_from_folder", load)
    set_numerics(Settings(allow_tf32=not allowed))
    settings.allow_tf32 = allowed
    with pytest.raises(LoadedError):
        entry(settings)
    assert seen == [(allowed, allowed)]


def test_every_experiment_is_scored_under_its_own(tmp_path: Path) -> None:
    """As the process that sampled it would have scored it."""
    for name, allowed in (("a", True), ("b", False), ("c", True)):
        grey_round(tmp_path / name, images=1, allow_tf32=allowed)
    seen: list[bool] = []

    def reward(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return np.zeros(len(images))

    Scorer(tmp_path, [], lambda settings: reward, None, 4).watch(0.01, once=True)
    assert seen == [True, False, True]


def test_accelerate_does_not_choose_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It turns TF32 on where its own config asks for dynamo."""
    made = tracking.Accelerator

    def turned_on(**given: object) -> object:
        set_numerics(Settings(allow_tf32=True))
        return made(**given)

    monkeypatch.setattr(tracking, "Accelerator", turned_on)
    AcceleratorState._reset_state()
    settings.allow_tf32 = False
    tracking.accelerator(settings, cpu=True)
    assert switches() == (False, False)


def test_nothing_else_sets_one() -> None:
    """Else two entry points part again."""
    assigned = re.compile(
        rf"(backends\.|torch\.set_|torch\.use_)[\w.]*({SWITCHES})\w*\s*(=[^=]|\()"
    )
    folders = ("config", "dfusion", "diffusers_patched", "experiments", "benchmarks", "testbed")
    files = [*ROOT.glob("*.py"), *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
    found = [str(p.relative_to(ROOT)) for p in files if assigned.search(p.read_text())]
    assert found == ["dfusion/models/numerics.py"]

"""Models and devices that cannot be had: one line that names the flag."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfusion.errors import UserError
from dfusion.models.devices import pick_device
from dfusion.models.loading import load_model
from dfusion.settings.schema import Pretrained

FLUX = '{"_class_name": "FluxPipeline"}'


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "absent"), "there is no"),
        (lambda folder: str(folder), "no model_index.json"),
        (lambda folder: write(folder / "model.ckpt", "x"), "not a .safetensors file"),
        (lambda folder: write(folder / "model.safetensors", "x"), "is damaged"),
        (
            lambda folder: str(Path(write(folder / "model_index.json", FLUX)).parent),
            "is a FluxPipeline",
        ),
    ],
)
def test_models_that_do_not_load_say_what_to_do(
    tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(Pretrained(model=make(tmp_path)), "cpu", None)
    text = str(caught.value)
    assert text.startswith("--config.pretrained.model")
    assert "\n" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named() -> None:
    with pytest.raises(UserError, match="--config.device cuda"):
        pick_device("cuda", 0)
    assert pick_device("auto", 0).type in ("cpu", "mps")

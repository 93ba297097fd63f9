"""Files made to do harm: nothing is executed, no name leads outside, sizes are bounded."""

import json
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfusion.errors import UserError, one_line
from dfusion.method.pairing import Pair
from dfusion.method.prompts import Item, Prompt
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.folder import check_folder, pipeline_class
from dfusion.models.loading import load_model
from dfusion.models.registry import family_named
from dfusion.report import page
from dfusion.report.contact_sheet import contact_sheet
from dfusion.rounds.scoring import scorer_alive
from dfusion.settings.plain_text import check_text
from dfusion.settings.schema import Pretrained, Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import (
    load_json,
    read_json,
    read_png,
    read_tensors,
    sweep,
    write_bytes,
    write_json,
    write_png,
)
from dfusion.training.model_card import model_card
from tests.conftest import REWARD

HOSTILE = (
    '<script>alert(1)</script> & "cat" </script><!--',
    "a cat\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "a\ncat\r\nerror: none",
    "a \x00 cat",
    "a \u202etac cat",
    "a \ud800 cat",
    "cat " * 20_000,
    "🐈 猫 ‘chat’ \u0301cat",
    "../../etc/passwd %s {0} $HOME `id`",
)


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_never_opened(pipeline_folder: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(pipeline_folder, folder)
    for path in (folder / name).glob("*.safetensors"):
        path.unlink()
        for other in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            (folder / name / other).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="is a pickle, which could run code"):
        load_model(Pretrained(model=str(folder)), "cpu", None)  # type: ignore[arg-type]
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "lora.ckpt", "lora.pt"])
def test_a_pickled_lora_is_never_opened(pipeline_folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    for lora in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match="--config.pretrained.lora"):
            load_model(
                Pretrained(model=str(pipeline_folder), lora=str(lora)),
                "cpu",
                None,  # type: ignore[arg-type]
            )
    assert not (tmp_path / "mark").exists()


def test_a_model_folder_cannot_name_code(pipeline_folder: Path, tmp_path: Path) -> None:
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    for change in (
        {"unet": ["os", "system"]},
        {"vae": ["my_vae.py", "AutoencoderKL"]},
        {"scheduler": ["subprocess", "Popen"]},
        {"_class_name": ["pipeline.py", "StableDiffusionPipeline"]},
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(UserError, match=r"model_index.json has|pipeline.py"):
            family = family_named(pipeline_class(tmp_path), "auto", "--config.pretrained.model")
            check_folder(tmp_path, family)


INDICES = (-1, 10**9, 1.0, 1.5, True, None, "1", "../../x", "1\x00", [0], {"a": 1}, 2**70)


def pairs_file(round_: Round, row: object) -> None:
    write_json(round_.folder / "pairs.json", {"made_with": {}, "pairs": [row]})


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_indices_cannot_name_other_files(tmp_path: Path, index: object) -> None:
    round_ = Round(tmp_path / "epoch0")
    pairs_file(round_, {"prompt": "a", "reference": 0, "base": index})
    with pytest.raises(UserError, match=r"pairs.json: 'pairs' cannot be"):
        round_.pairs()
    prompts = [{"text": "a", "items": []}]
    plan = {"round": 0, "made_with": {}, "prompts": prompts, "samples": [0, index]}
    write_json(round_.folder / "manifest.json", plan)
    with pytest.raises(UserError, match=r"manifest.json: 'samples' cannot be"):
        round_.sample_prompts()


@pytest.mark.parametrize("name", ["-1", "1.0", "../x", "²", "", "9" * 400, "0x1", " 1"])
def test_scores_are_of_images_only(tmp_path: Path, name: str) -> None:
    round_ = Round(tmp_path / "epoch0")
    write_json(round_.scores_file("images"), {"reward": "r", "scores": {name: 0.5}})
    with pytest.raises(UserError, match=r"images.json: 'scores' cannot be"):
        round_.scores("images")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), True, None, "1", [1], 10**400])
def test_scores_are_finite_numbers(tmp_path: Path, score: object) -> None:
    round_ = Round(tmp_path / "epoch0")
    write_json(round_.scores_file("images"), {"reward": "r", "scores": {"0": score}})
    with pytest.raises(UserError, match=r"images.json: 'scores' cannot be"):
        round_.scores("images")


@pytest.mark.parametrize(
    "row",
    [
        3,
        {},
        {"prompt": "a", "reference": 0},
        {"prompt": 1, "reference": 0, "base": 1},
        {"prompt": "a", "reference": 0, "base": 1, "more": 2},
    ],
)
def test_rows_have_their_fields_and_no_others(tmp_path: Path, row: object) -> None:
    round_ = Round(tmp_path / "epoch0")
    pairs_file(round_, row)
    with pytest.raises(UserError, match=r"pairs.json: 'pairs' cannot be"):
        round_.pairs()
    write_json(round_.folder / "adoption.json", {"pairs": [row]})
    with pytest.raises(UserError, match=r"adoption.json: 'pairs' cannot be"):
        round_.adoption()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 50_000,
        '{"schema": 1, "schema": 1}',
        "9" * 10_000,
        '"\\ud800',
        "\x00",
        "nan,",
    ],
)
def test_absurd_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not") as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 700


def test_huge_json_and_devices_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(2**40)  # sparse: a terabyte that is not there
    started = time.monotonic()
    for path in (tmp_path / "a.json", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="bytes, more than|not a regular file"):
            load_json(path)
    assert time.monotonic() - started < 1


def test_odd_heartbeats_are_no_scorers(tmp_path: Path) -> None:
    (tmp_path / ".scorers").mkdir()
    for n, text in enumerate(("[]", "3", "[" * 99_999, "{}", "null", "x")):
        (tmp_path / ".scorers" / f"{n}.json").write_text(text)
    assert not scorer_alive(tmp_path, "exp", "r")


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG whose header promises a size; a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 20_000, 60_000, 2**31 - 1])
def test_absurd_pictures_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side))
    with pytest.raises(UserError, match=f"a.png: damaged .{side} x {side} pixels"):
        read_png(tmp_path / "a.png")


def test_text_bombs_and_other_formats_are_refused(tmp_path: Path) -> None:
    body = b"zTXt" + b"sha256\x00\x00" + zlib.compress(bytes(2**27))
    bomb = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "bomb.png").write_bytes(png(8, 8, bomb))
    Image.new("RGB", (8, 8)).save(tmp_path / "gif.png", format="GIF")
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("bomb", "gif", "eps"):
        with pytest.raises(UserError, match=f"{name}.png: damaged"):
            read_png(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        [],
    ],
)
def test_safetensors_that_lie_about_sizes(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "t.safetensors"
    for length in (len(text), 2**60, 0):
        path.write_bytes(struct.pack("<Q", length) + text + bytes(8))
        with pytest.raises(UserError, match="t.safetensors: damaged"):
            read_tensors(path)


def test_links_are_named_and_what_they_lead_to_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    (outside / ".x.host.1.1.tmp").write_text("mine")
    folder = tmp_path / "exp"
    folder.mkdir()
    (folder / "linked").symlink_to(outside)
    (folder / "a.json").symlink_to(outside / "kept")
    sweep(folder)
    write_bytes(folder / "a.json", b"new")
    assert (outside / "kept").read_text() == "mine"
    assert len(list(outside.iterdir())) == 2
    assert (folder / "a.json").read_text() == "new" and not (folder / "a.json").is_symlink()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_messages_are_one_plain_line(text: str) -> None:
    message = str(UserError(f"--config.prompt '{text}': use another"))
    assert message.isprintable() and len(message) < 700
    assert message.startswith("--config.prompt '") and message.endswith("': use another")
    assert one_line("plain ‘text’ 猫") == "plain ‘text’ 猫"


@pytest.mark.parametrize("text", [HOSTILE[i] for i in (1, 2, 3, 4, 5, 6)])
def test_prompts_that_would_not_show_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="has the character U|characters; give at most"):
        check_text("--config.prompt", text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_pages_and_sheets_of_foreign_folders(tmp_path: Path, text: str) -> None:
    """Whatever a manifest says, the page holds data and no markup, and the sheet is drawn."""
    experiment = Experiment(tmp_path / "exp")
    round_ = experiment.round(0)
    shown = text.encode("utf-8", "replace").decode()  # what can be in a file at all
    round_.write_manifest(0, (Prompt(shown, (Item(shown),)),), 2, {})
    for i in range(2):
        write_png(round_.image("images", i), np.zeros((8, 8, 3), np.uint8))
    round_.write_pairs((Pair(shown, 0, 1),), {})
    round_.write_scores("images", REWARD, {0: 0.5, 1: 0.25})
    html, sheet = page.write(experiment.folder)
    data = page.inline_json(page.answers(experiment.folder))
    assert not set("<>&\n\x1b\x00\u202e") & set(data) and data in html.read_text()
    drawn = contact_sheet(experiment.folder)
    with Image.open(sheet) as written:
        assert written.size == drawn.size


def test_model_cards_hold_no_markup(model: DiffusionModel) -> None:
    settings = Settings(exp_name="exp", prompt="a | <img src=x onerror=y>")
    settings.pretrained.model = "a: [b\n---\nlicense: x"
    card = model_card(settings, model, 0, [0.5])
    assert "<img" not in card and "license: x\n" not in card
    assert card.count("\n---\n") == 1 and "a \\| " in card

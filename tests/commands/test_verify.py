"""Damage to a finished experiment: every case is detected and the file named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dfusion.commands.verify import main, verify
from dfusion.storage.files import write_tensors
from dfusion.training.trainer import train_rounds
from tests.conftest import make_settings
from tests.faults import contents, difference


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit, near the end."""
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def repaint(path: Path) -> None:
    """As a paint program would: one pixel, saved anew."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels.flat[0] ^= 255
    Image.fromarray(pixels).save(path)


def nudge(path: Path) -> None:
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = 5
    save_file(tensors, path)


def poison(path: Path) -> None:
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def garble(path: Path) -> None:
    """A line that is no JSON after those that are."""
    path.write_text(path.read_text() + "\x00\n")


def versioned(path: Path) -> None:
    """Rows of another schema version."""
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))


def linked(path: Path) -> None:
    """Moved elsewhere, with a link in its place."""
    away = path.parent.parent.parent / "away"
    path.rename(away)
    path.symlink_to(away)


IMAGE, TARGET = "epoch0/images/00002.png", "epoch0/target_images/00001.png"
STATES, FUSED = "epoch0/trajectories/00003.safetensors", "epoch0/targets/00002.safetensors"
LORA = "checkpoints/epoch0/pytorch_lora_weights.safetensors"
STATE, METRICS = "checkpoints/epoch0/state.json", "metrics.jsonl"
MOMENTS = "checkpoints/epoch0/optimiser.safetensors"
CASES = [
    *((name, damage) for name in (IMAGE, TARGET, "epoch0/masks/00000.png")
      for damage in (truncate, flip, empty, repaint)),
    *((name, damage) for name in (STATES, FUSED) for damage in (truncate, flip, empty, nudge)),
    *((name, damage) for name in (STATES, IMAGE, MOMENTS, "epoch0/masks/00001.png", TARGET,
      "epoch0/base_images/00002.png") for damage in (Path.unlink,)),
    *((MOMENTS, damage) for damage in (truncate, flip, nudge)),
    *((LORA, damage) for damage in (truncate, empty, poison)),
    ("compare/epoch1/images/00000.png", repaint),
    ("compare/epoch1/images/00001.png", Path.unlink),
    ("epoch0/manifest.json", truncate),
    ("epoch0/pairs.json", truncate),
    ("epoch0/pairs.json", edit(lambda v: v["pairs"].reverse())),
    ("epoch0/pairs.json", edit(lambda v: v["pairs"][0].pop("base"))),
    ("epoch0/eval/images.json", truncate),
    ("epoch0/eval/images.json", edit(lambda v: v["scores"].pop("3"))),
    ("epoch0/eval/images.json", edit(lambda v: v["scores"].update({"0": 9.0}))),
    ("epoch0/eval/images.json", edit(lambda v: v["scores"].update({"77": 0.5}))),
    ("epoch0/eval/images.json", edit(lambda v: v["scores"].update({"1": float("nan")}))),
    ("epoch0/eval/target_images.json", edit(lambda v: v["scores"].update({"0": 9.0}))),
    ("epoch0/adoption.json", edit(lambda v: v["pairs"][0].update(adopted=None))),
    ("epoch0/adoption.json", edit(lambda v: v["pairs"].pop())),
    ("config.json", edit(lambda v: v["settings"].update(unknown=1))),
    ("config.json", edit(lambda v: v.update(schema=99))),
    *((STATE, damage) for damage in (Path.unlink, truncate, empty)),
    (STATE, edit(lambda v: v.update(round=5))),
    (STATE, edit(lambda v: v.update(schema=2))),
    *((LORA, damage) for damage in (flip, nudge, Path.unlink)),
    *((f"epoch0/{side}_images/00000.png", damage) for side in ("base", "reference")
      for damage in (truncate, repaint, empty)),
    *((METRICS, damage) for damage in (truncate, garble, versioned)),
    *((f"epoch0/{name}", edit(lambda v: v.update(schema=2)))
      for name in ("manifest.json", "pairs.json", "adoption.json", "eval/images.json")),
    ("epoch0/manifest.json", edit(lambda v: v["samples"].__setitem__(0, -1))),
    ("epoch0/manifest.json", edit(lambda v: v.pop("prompts"))),
    ("epoch0/manifest.json", empty),
    ("epoch0/manifest.json", edit(lambda v: v["made_with"].update(size=[8, 8]))),
    ("epoch0/pairs.json", edit(lambda v: v["pairs"][0].update(base=True))),
    ("epoch0/adoption.json", truncate),
    ("epoch0/adoption.json", edit(lambda v: v["pairs"][1].update(target="0.5"))),
    ("compare/epoch0/manifest.json", truncate),
    ("compare/epoch0/eval/images.json", edit(lambda v: v["scores"].update({"0": None}))),
    ("config.json", truncate),
    ("config.json", empty),
    ("config.json", edit(lambda v: v["settings"].update(seed="5"))),
    ("epoch0/images", linked),
    (IMAGE, linked),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage"), CASES, ids=[f"{n}-{getattr(d, '__name__', d)}" for n, d in CASES]
)
def test_damage_is_detected(
    whole: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    damage(folder / name)
    problems = verify(folder)
    assert problems
    # A changed score shows where something else was made from it.
    made_from = ("pairs.json", "adoption.json") if "eval" in name else ()
    names = (Path(name).name, str(Path(name).parent), "epoch0:", *made_from)
    assert any(n in problem for problem in problems for n in names)
    assert all("\n" not in problem for problem in problems)


def test_damaged_inversions_and_checkpoints_within_a_round_are_named(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    inversion = folder / "epoch0" / "inversions" / "00002.safetensors"
    inversion.parent.mkdir()
    shutil.copy(folder / FUSED, inversion)
    within = folder / "checkpoints" / "within"
    shutil.copytree(within.with_name("epoch0"), within)
    edit(lambda v: v.update(processes=1, rows=[]))(within / "state.json")
    write_tensors(within / "rank0.safetensors", {"old.log_prob": torch.zeros(9)}, {})
    assert verify(folder) == []
    for path in (inversion, within / "rank0.safetensors", within / "optimiser.safetensors"):
        flip(path)
    problems = verify(folder)
    assert [str(inversion) in problems[0], "rank0" in problems[2], len(problems)] == [True, True, 3]


def test_a_whole_experiment_has_no_problems(whole: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(whole) == []
    assert main([str(whole)]) == 0
    assert "no problems" in capsys.readouterr().out


def test_foreign_files_and_folders(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    for name in ("epoch0/images/00099.png", "epoch0/notes.txt", "epoch0/images/cat.png"):
        shutil.copy(folder / IMAGE, folder / name)
    assert [p.split(":")[0] for p in verify(folder)] == sorted(
        str(folder / n)
        for n in ("epoch0/images/00099.png", "epoch0/images/cat.png", "epoch0/notes.txt")
    )
    assert main([str(tmp_path)]) == 1


def test_what_was_deleted_is_rebuilt(whole: Path, tmp_path: Path) -> None:
    """The advice works: the same command makes it again, bit for bit."""
    settings = make_settings(tmp_path, Path(json_of(whole)["pretrained"]["model"]))
    settings.save_path = str(tmp_path)
    settings.train = replace(settings.train, compare_images=1, batch_size=8)
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    before = {n: (folder / n).read_bytes() for n in (IMAGE, TARGET)}
    for name in before:
        (folder / name).unlink()
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    train_rounds(settings)
    assert all((folder / name).read_bytes() == data for name, data in before.items())
    assert verify(folder) == []


REBUILT = [
    (IMAGE,), (STATES,), (FUSED,), (TARGET,),
    ("epoch0/masks/00000.png",), ("epoch0/base_images/00003.png",),
    ("epoch0/eval/images.json",), ("epoch0/eval/target_images.json",), ("epoch0/adoption.json",),
    ("epoch0/pairs.json",), ("epoch0/manifest.json",), ("config.json",),
    ("compare/epoch1/images/00000.png",), ("compare/epoch0/eval/images.json",),
    ("compare/epoch0/manifest.json",), ("checkpoints/epoch0",),
]  # fmt: skip


GOES_ON = ("config", "compare/epoch1", "checkpoints")


def test_the_remedy_says_where_training_has_passed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    truncate(folder / IMAGE)
    (folder / STATES).unlink()
    first, *others = verify(folder)
    assert first.endswith("delete it to have it rebuilt, and checkpoints/epoch0 and later too")
    again = "delete checkpoints/epoch0 and later, and run the same command again"
    assert any(problem.endswith(again) for problem in others)
    shutil.rmtree(folder / "checkpoints")
    assert not any("checkpoints" in problem for problem in verify(folder))


@pytest.mark.parametrize("names", REBUILT, ids=lambda names: names[0])
def test_the_remedy_works(whole: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """What is deleted comes back with the same command, as it was; nothing is left to mend."""
    settings = make_settings(tmp_path, Path(json_of(whole)["pretrained"]["model"]))
    settings.save_path = str(tmp_path)
    settings.train = replace(settings.train, compare_images=1, batch_size=8)
    folder = tmp_path / "exp"
    shutil.copytree(whole, folder)
    if not names[0].startswith(GOES_ON):  # training has passed it
        names = (*names, "checkpoints")
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings.prompt_file, settings.item_idx_file = (
        json_of(whole)[key] for key in ("prompt_file", "item_idx_file")
    )
    train_rounds(settings)
    assert verify(folder) == []
    assert difference(contents(whole), contents(folder)) == []


def json_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["settings"]

"""Files appear whole or not at all; errors of background writes are not lost."""

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from dfusion.errors import UserError
from dfusion.storage.files import (
    Writer,
    read_json,
    read_png,
    read_tensors,
    read_weights,
    write_bytes,
    write_json,
    write_png,
    write_tensors,
    write_weights,
)
from tests.conftest import REAL_FSYNC


def test_fsync_comes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), REAL_FSYNC(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert events == ["fsync", "rename", "fsync"]  # the file, then its new name
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None, "ä"]})
    assert read_json(tmp_path / "a.json") == {"schema": 1, "x": [1, 2.5, None, "ä"]}
    tensors = {"a": torch.randn(3, 4)[:, ::2], "b": torch.tensor([True, False])}
    write_tensors(tmp_path / "t.safetensors", tensors, {"n": 1})
    again = read_tensors(tmp_path / "t.safetensors")
    assert all(again[k].equal(tensors[k]) for k in tensors)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_png(tmp_path / "p.png", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), pixels)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"x": 1}', '{"schema": 2}'])
def test_damaged_or_foreign_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="a.json"):
        read_json(tmp_path / "a.json")


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(9)}, {})
    data = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(data[:-5])
    with pytest.raises(UserError, match="t.safetensors: damaged"):
        read_tensors(tmp_path / "t.safetensors")


def test_background_writes_are_all_there_at_the_end(tmp_path: Path) -> None:
    with Writer() as writer:
        for i in range(20):
            writer.put(write_json, tmp_path / f"{i}.json", {"i": i})
            writer.next_batch()
    assert [json.loads((tmp_path / f"{i}.json").read_text())["i"] for i in range(20)] == [
        *range(20)
    ]


def test_an_error_of_a_background_write_is_raised(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"), Writer() as writer:
        writer.put(fail)
    with pytest.raises(OSError, match="disk gone"), Writer() as writer:
        writer.put(fail)
        for _ in range(3):
            writer.next_batch()


def test_no_more_than_a_batch_is_outstanding() -> None:
    gate = threading.Event()
    with Writer() as writer:
        writer.put(gate.wait)
        writer.next_batch()  # the first batch may still be on its way
        writer.put(int)
        timer = threading.Timer(0.2, gate.set)
        timer.start()
        writer.next_batch()  # but not any longer
        assert gate.is_set()


def test_a_full_disk_leaves_the_old_file_and_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(path, b"new")
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_edited_pictures_and_tensors_are_noticed(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_png(tmp_path / "p.png", pixels)
    assert np.array_equal(read_png(tmp_path / "p.png"), pixels)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    with pytest.raises(UserError, match="not as it was written"):
        read_png(tmp_path / "p.png")
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(3)}, {})
    save_file({"a": torch.ones(3)}, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="not as it was written"):
        read_tensors(tmp_path / "t.safetensors")


def test_equal_tensors_are_equal_files(tmp_path: Path) -> None:
    """safetensors writes its metadata in an order of its own each time."""
    tensors = {"b": torch.arange(5), "é": torch.ones(2, 2, dtype=torch.float16)}
    about = dict.fromkeys("abcdefgh", "value of é")
    for n in range(5):
        write_weights(tmp_path / f"{n}.safetensors", tensors, about)
    first, *others = ((tmp_path / f"{n}.safetensors").read_bytes() for n in range(5))
    assert all(other == first for other in others)
    found = read_weights(tmp_path / "0.safetensors", "", must=True)
    assert all(found[name].equal(value) for name, value in tensors.items())
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert about.items() <= file.metadata().items()

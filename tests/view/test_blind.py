"""Blind comparison: answers on disk, and what follows from them."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfusion.storage.experiment import Experiment
from dfusion.storage.files import write_png
from dfusion.view.blind import wilson
from dfusion.view.ratings import append, rows
from tests.conftest import PROMPTS
from tests.viewing import client_of, copy_of


@pytest.fixture
def client(view_data: Path) -> Any:
    return client_of(view_data)


def test_wilson_by_hand() -> None:
    """7 of 10: Wilson's interval as textbooks have it, 0.397 to 0.892."""
    low, high = wilson(7, 10)
    assert (low, high) == (pytest.approx(0.3968, abs=1e-4), pytest.approx(0.8922, abs=1e-4))
    assert wilson(0, 5)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(5, 5)[1] == pytest.approx(1)
    with pytest.raises(ZeroDivisionError):
        wilson(0, 0)


@pytest.fixture
def two_models(tmp_path: Path, view_data: Path) -> Path:
    """The same round as two experiments, "a" of black images and "b" of white ones."""
    copy = copy_of(view_data, tmp_path)
    (copy / "exp").rename(copy / "a")
    shutil.copytree(copy / "a", copy / "b")
    for name, shade in (("a", 0), ("b", 255)):
        for i in range(8):
            path = Experiment(copy / name).round(0).image("images", i)
            write_png(path, np.full((8, 8, 3), shade, np.uint8))
    return copy


SOURCES = ["a|epoch0", "b|epoch0"]


def _rate_all(client: Any, rater: str, choose: Callable[[list[int], str], int | None]) -> list:
    """Answer every trial; choose(shades from left to right, prompt) -> place."""
    state = client.get("/api/blind", params={"source": SOURCES, "rater": rater}).json()
    seen = []
    while state["trial"]:
        key, prompt = state["trial"]["key"], state["trial"]["prompt"]
        shades = []
        for place in range(2):
            params = {"study": state["study"], "rater": rater, "trial": key, "place": place}
            shown = client.get("/blind", params=params)
            assert "a|" not in str(shown.url) and "filename" not in str(shown.headers)
            shades.append(Image.open(io.BytesIO(shown.content)).getpixel((0, 0))[0])
        seen.append(shades)
        body = {"sources": SOURCES, "rater": rater, "trial": key, "place": choose(shades, prompt)}
        state = client.post("/api/blind", json=body).json()
    return seen


def test_blind_comparison_counts_what_was_seen(two_models: Path) -> None:
    client = client_of(two_models)
    white = _rate_all(client, "Ada", lambda shades, prompt: shades.index(255))
    assert len(white) == 8 and {tuple(s) for s in white} == {(0, 255), (255, 0)}
    order = _rate_all(client, "Bob", lambda s, p: None if p == PROMPTS[0] else s.index(0))
    assert order != white
    found = client.get("/api/blind/results", params={"source": SOURCES}).json()
    assert (found["answers"], found["ties"], found["raters"]) == (16, 4, ["Ada", "Bob"])
    assert {s["source"]: s["chosen"] for s in found["sources"]} == {SOURCES[0]: 4, SOURCES[1]: 8}
    (duel,) = found["duels"]
    assert (duel["answers"]["count"], duel["answers"]["total"]) == (4, 12)
    assert (duel["prompts"]["count"], duel["prompts"]["total"]) == (0, 1)  # the other is even


def test_answers_are_of_the_images_that_were_seen(two_models: Path) -> None:
    """An image that is made anew has no answers yet; all others keep theirs."""
    client = client_of(two_models)
    seen = _rate_all(client, "Ada", lambda shades, prompt: 0)
    params = {"source": SOURCES, "rater": "Ada"}
    assert client.get("/api/blind", params=params).json()["done"] == len(seen)
    path = Experiment(two_models / "b").round(0).image("images", 3)
    write_png(path, np.full((8, 8, 3), 99, np.uint8))
    assert client.get("/api/blind", params=params).json()["done"] == len(seen) - 1
    results = client.get("/api/blind/results", params={"source": SOURCES}).json()
    assert results["answers"] == len(seen) - 1


def test_a_changed_answer_replaces_the_first(two_models: Path) -> None:
    client = client_of(two_models)
    _rate_all(client, "Ada", lambda shades, prompt: shades.index(255))
    line = rows(two_models / "ratings" / "blind.jsonl", bool)[0]
    place = line["shown"].index(SOURCES[0])
    body = {"sources": SOURCES, "rater": "Ada", "trial": line["trial"], "place": place}
    client.post("/api/blind", json=body)
    found = client.get("/api/blind/results", params={"source": SOURCES}).json()
    assert found["answers"] == 8 and found["sources"][0]["chosen"] == 1


def test_ratings_survive_a_crash(tmp_path: Path) -> None:
    """A process killed while it appends: all its answered lines are there, a torn one is not."""
    file = tmp_path / "ratings" / "x.jsonl"
    script = (
        "import os, sys; from pathlib import Path; from dfusion.view.ratings import append\n"
        "n = 0\n"
        "while True:\n"
        "    append(Path(sys.argv[1]), {'n': n}); print(n, flush=True); n += 1\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(20):
            said = int(process.stdout.readline())
        process.kill()
    assert [row["n"] for row in rows(file, bool)][: said + 1] == list(range(said + 1))
    count = len(rows(file, bool))
    with open(file, "ab") as torn:
        torn.write(b'{"n": 99, "ti')
    append(file, {"n": 100})
    assert [row["n"] for row in rows(file, bool)][count:] == [100]


def test_an_answer_is_synced_before_it_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "x.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(file.stat().st_size))
    append(file, {"n": 1})
    assert synced == [file.stat().st_size]


@pytest.mark.parametrize("rater", ["", "  ", "x" * 41, "a\nb<script>", "../x"])
def test_odd_names_are_refused(two_models: Path, rater: str) -> None:
    answer = client_of(two_models).get("/api/blind", params={"source": SOURCES, "rater": rater})
    assert answer.status_code == 400 and "name" in answer.json()["error"]

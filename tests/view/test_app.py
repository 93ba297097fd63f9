"""The web app shows what is on disk, and saves thresholds."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfusion.method.masks import binarise, fusion_mask
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json, read_tensors, write_json, write_tensors
from tests.conftest import PROMPTS
from tests.viewing import client_of, copy_of, thresholds


def configure(experiment: Experiment, change: Callable[[dict[str, Any]], None]) -> None:
    """Change settings in config.json."""
    settings = read_json(experiment.config_file)["settings"]
    change(settings)
    write_json(experiment.config_file, {"settings": settings})


@pytest.fixture
def client(view_data: Path) -> Any:
    return client_of(view_data)


def test_runs_say_what_is_on_disk(client: Any) -> None:
    (run,) = client.get("/api/runs").json()
    assert (run["name"], run["state"], run["round"]) == ("exp", "finished", 0)
    found = client.get("/api/run", params={"exp": "exp"}).json()
    stages = {s["name"]: (s["done"], s["total"]) for s in found["stages"]}
    assert stages == {
        "sampling": (8, 8),
        "scoring": (8, 8),
        "fusing": (4, 4),
        "scoring targets": (4, 4),
    }
    asked = {"run": "exp", "key": ["score", "adopted"]}
    curves = client.get("/api/curves", params=asked).json()["exp"]["curves"]
    assert curves["score"] == [[0, run["score"]]]
    assert curves["adopted"] == [[0, run["adopted"]]]


def test_a_run_at_work_has_its_state_and_time_left(tmp_path: Path, view_data: Path) -> None:
    data = copy_of(view_data, tmp_path)
    experiment = Experiment(data / "exp")
    configure(experiment, lambda settings: settings["train"].update(num_epochs=2))
    first, second = experiment.round(0).folder, experiment.round(1)
    shutil.copytree(first, second.folder)
    for name in ("pairs.json", "adoption.json", "eval/images.json"):
        (second.folder / name).unlink()
    for kind in ("images", "target_images"):
        for i in range(2, 8):
            second.image(kind, i).unlink(missing_ok=True)
    now = time.time()
    for path, age in (
        (first / "manifest.json", 100),
        (first / "adoption.json", 60),
        (second.folder / "manifest.json", 10),
        (second.image("images", 0), 6),
        (second.image("images", 1), 4),
    ):
        os.utime(path, (now - age, now - age))
    note = {"process": os.getpid(), "host": os.uname().nodename, "since": ""}
    (experiment.folder / ".run.lock.json").write_text(json.dumps(note))
    (run,) = client_of(data).get("/api/runs").json()
    assert run["state"] == "running"
    assert run["rounds"] == {"done": 1, "total": 2}
    assert run["left"]["stage"] == "sampling"
    assert run["left"]["seconds"] == pytest.approx(12, abs=0.1)  # six images, two seconds each
    assert run["left"]["run"] == pytest.approx(30, abs=1)  # of 40 seconds, 10 are spent
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    note["process"] = dead.pid
    (experiment.folder / ".run.lock.json").write_text(json.dumps(note))
    (run,) = client_of(data).get("/api/runs").json()
    assert run["state"] == "stopped"


def test_one_broken_experiment_does_not_hide_the_others(view_data: Path, client: Any) -> None:
    broken = view_data / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    try:
        found = client.get("/api/runs").json()
        assert [r["name"] for r in found] == ["broken", "exp"]
        assert "not valid JSON" in found[0]["problem"]
    finally:
        (broken / "config.json").unlink()
        broken.rmdir()


def test_pairs_have_the_scores_of_the_files(view_data: Path, client: Any) -> None:
    view = client.get("/api/round", params={"exp": "exp", "round": "epoch0"}).json()
    round_ = Experiment(view_data / "exp").round(0)
    assert [p["text"] for p in view["prompts"]] == PROMPTS
    words = [item["word"] for item in view["prompts"][0]["items"]]
    assert words == ["cat", "sandwich"]  # the second is a word position
    assert len(view["pairs"]) == 4
    for row, pair, decided in zip(
        view["pairs"], round_.pairs() or (), round_.adoption() or [], strict=True
    ):
        assert (row["base"]["i"], row["reference"]["i"]) == (pair.base, pair.reference)
        assert row["gain"] == decided["target"] - decided["base"]
        assert row["adopted"] == decided["adopted"]
    half = {"exp": "exp", "round": "epoch0", "kind": "target_images", "i": 0}
    shown = client.get("/image", params=half)
    assert shown.content == round_.image("target_images", 0).read_bytes()
    again = client.get("/image", params=half, headers={"if-none-match": shown.headers["etag"]})
    assert again.status_code == 304
    params = {"exp": "exp", "round": "epoch0", "n": 1}
    picture = client.get("/sheet", params=params)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).width > 4 * 100
    assert client.get("/sheet", params=params | {"n": 4}).status_code == 404


def test_thresholds_of_a_pair_keep_a_share_of_its_references_cells(
    view_data: Path, client: Any
) -> None:
    """Against a count over the fused steps of the reference's maps."""
    round_ = Experiment(view_data / "exp").round(0)
    pairs = round_.pairs() or ()
    for n, pair in enumerate(pairs):
        shares = client.get("/api/pair", params={"exp": "exp", "round": "epoch0", "n": n}).json()
        maps = read_tensors(round_.trajectory(pair.reference))["maps"].float()
        thresholds = round_.sample_prompts()[pair.reference].thresholds
        fused = maps[-3:]  # t = 3 … 1
        kept = [
            float(binarise(fused[:, [i]], [t]).float().mean()) for i, t in enumerate(thresholds)
        ]
        assert shares["shares"] == pytest.approx(kept)


def test_masks_are_those_of_fusion(view_data: Path, client: Any) -> None:
    """Against fusion_mask on the trajectories' own maps."""
    round_ = Experiment(view_data / "exp").round(0)
    maps = read_tensors(round_.trajectory(2))["maps"]
    low = float(maps.median())
    asked = {"exp": "exp", "round": "epoch0", "prompt": PROMPTS[0]}
    one = client.get("/api/masks", params=asked | {"thr": [low, "auto"], "t": 2}).json()
    expected = fusion_mask(maps, (low, None), "xor")
    cells = np.frombuffer(base64.b64decode(one["masks"][2]), np.uint8)
    assert cells.reshape(expected.shape[-2:]).tolist() == (expected[2].numpy() * 255).tolist()
    fused = client.get("/api/masks", params=asked | {"thr": [low, "auto"]}).json()
    assert fused["coverage"][2] == pytest.approx(float(expected[1:].float().mean()))  # t = 3 … 1
    refused = client.get("/api/masks", params=asked | {"thr": [low]})
    assert refused.status_code == 400 and "give one for each" in refused.json()["error"]


def test_thresholds_are_saved_beside_those_of_other_prompts(
    tmp_path: Path, view_data: Path
) -> None:
    """In a copy in the run's folder; the file that the run was given stays as it is."""
    data, file = copy_of(view_data, tmp_path), tmp_path / "mask.json"
    before = {"another": [0.1], PROMPTS[0]: [0.2, 0.3], PROMPTS[1]: [0.4]}
    file.write_text(json.dumps(before))
    configure(Experiment(data / "exp"), lambda settings: settings.update(mask_thr_file=str(file)))
    client, own = client_of(data), data / "exp/thresholds.json"
    where = {"exp": "exp", "round": "epoch0", "prompt": PROMPTS[0]}
    view = client.get("/api/thresholds", params=where).json()
    assert (view["saved"], view["given"]) == (None, str(file))
    body = thresholds([0.05, None], PROMPTS[0])
    assert client.post("/api/thresholds", json=body).json()["file"] == view["file"] == str(own)
    assert json.loads(own.read_text()) == before | {PROMPTS[0]: [0.05, None]}
    assert list(json.loads(own.read_text())) == list(before)
    assert json.loads(file.read_text()) == before
    assert client.get("/api/thresholds", params=where).json()["saved"] == [0.05, None]
    for bad in ([0.1], [0.1, 2], [0.1, "x"], [0.1, True], "0.1"):
        answer = client.post("/api/thresholds", json={**body, "thresholds": bad})
        assert answer.status_code == 400
    own.write_text('"something else"')
    answer = client.post("/api/thresholds", json=body)
    assert "nothing was written" in answer.json()["error"]
    assert own.read_text() == '"something else"'


def test_maps_are_those_of_the_files_that_are_there(tmp_path: Path, view_data: Path) -> None:
    """Also of a round that was deleted and made anew while the app runs."""
    copy = copy_of(view_data, tmp_path)
    client, params = client_of(copy), {"exp": "exp", "round": "epoch0", "prompt": PROMPTS[0]}
    before = client.get("/api/thresholds", params=params).json()["samples"][0]
    path = Experiment(copy / "exp").round(0).trajectory(before["i"])
    tensors = read_tensors(path)
    write_tensors(path, {**tensors, "maps": tensors["maps"].flip(-1)}, {})
    after = client.get("/api/thresholds", params=params).json()["samples"][0]
    assert after["maps"] != before["maps"]


def test_a_run_without_a_mask_file_gets_a_whole_one(tmp_path: Path, view_data: Path) -> None:
    """It lists every prompt, so that the next run can take it."""
    copy = copy_of(view_data, tmp_path)
    client_of(copy).post("/api/thresholds", json=thresholds([0.07]))
    saved = json.loads((copy / "exp/thresholds.json").read_text())
    assert saved == {PROMPTS[0]: [None, None], PROMPTS[1]: [0.07]}


def test_a_strip_is_a_tile_for_every_step(client: Any) -> None:
    for kind in ("images", "target_images"):
        params = {"exp": "exp", "round": "epoch0", "kind": kind, "i": 1}
        strip = Image.open(io.BytesIO(client.get("/strip", params=params).content))
        assert strip.width == 4 * strip.height

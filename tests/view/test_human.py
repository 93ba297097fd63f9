"""People's scores: rated, handed in, and a run that goes on with them."""

import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfusion.commands import verify
from dfusion.errors import UserError
from dfusion.rewards.registry import load_reward
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.scoring import scorer_command, scorer_lock
from dfusion.settings.schema import Eval, Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import write_png
from dfusion.training.trainer import train_rounds
from dfusion.view.ratings import rater_name
from tests.conftest import small
from tests.rewards import redness
from tests.viewing import ask_people, client_of, copy_of


def test_the_reward_human_is_for_people(tmp_path: Path, view_data: Path) -> None:
    with pytest.raises(UserError, match=r"dfusion view"):
        load_reward(Eval(reward="human"), torch.device("cpu"))
    settings = Settings(save_path="my data")
    settings.eval.reward = "human"
    assert scorer_command(settings) == "dfusion view 'my data'"
    copy = copy_of(view_data, tmp_path)
    ask_people(copy / "exp", ["pairs.json"])
    assert watch_once(copy) == "people give its scores"
    assert Experiment(copy / "exp").round(0).scores("images") == {}


def watch_once(data: Path) -> str:
    with pytest.raises(UserError) as caught:
        Scorer(data, [], lambda settings: redness, None, 2).watch(0.01, once=True)
    return str(caught.value).split(": ")[1].split(",")[0]


def test_scores_are_means_over_raters(tmp_path: Path, view_data: Path) -> None:
    copy = copy_of(view_data, tmp_path)
    ask_people(copy / "exp", ["pairs.json"])
    client, where = client_of(copy), {"exp": "exp", "round": "epoch0", "kind": "images"}
    (job,) = client.get("/api/human").json()
    assert (job["there"], job["total"], job["kind"]) == (8, 8, "images")
    for index in range(7):
        for rater, score in (("Ada", 1), ("Ada", 2), ("Bob", 5)):
            body = {**where, "index": index, "rater": rater, "score": score}
            assert client.post("/api/human/rate", json=body).status_code == 200
    early = client.post("/api/human/hand-in", json=where)
    assert early.status_code == 400 and "image 7 has no rating" in early.json()["error"]
    for bad in (0, 6, 2.5, True, "3", None):
        body = {**where, "index": 7, "rater": "Ada", "score": bad}
        assert client.post("/api/human/rate", json=body).status_code == 400
    client.post("/api/human/rate", json={**where, "index": 7, "rater": "Ada", "score": 4})
    round_ = Experiment(copy / "exp").round(0)
    lock = scorer_lock(copy / "exp")
    assert lock.acquire()
    assert "stop that scorer" in client.post("/api/human/hand-in", json=where).json()["error"]
    assert round_.scores("images") == {}
    lock.release()
    assert client.post("/api/human/hand-in", json=where).json() == {"scores": 8}
    assert round_.scores("images", "human") == {**dict.fromkeys(range(7), 3.5), 7: 4.0}
    assert client.post("/api/human/hand-in", json=where).status_code == 400  # used by now


def test_nothing_is_noted_after_the_scores_were_handed_in(tmp_path: Path, view_data: Path) -> None:
    """It could not reach the run. Samples that are handed in anew void their targets' scores."""
    copy = copy_of(view_data, tmp_path)
    ask_people(copy / "exp", [])
    round_ = Experiment(copy / "exp").round(0)
    round_.scores_file("images").unlink(missing_ok=True)
    round_.write_scores("target_images", "human", {0: 1.0})
    client, where = client_of(copy), {"exp": "exp", "round": "epoch0", "kind": "images"}
    for index in range(8):
        client.post("/api/human/rate", json={**where, "index": index, "rater": "Ada", "score": 2})
    assert client.post("/api/human/hand-in", json=where).status_code == 200
    assert round_.scores("target_images") == {}
    late = client.post("/api/human/rate", json={**where, "index": 0, "rater": "Bob", "score": 5})
    assert late.status_code == 400 and "handed in already" in late.json()["error"]


@pytest.mark.parametrize("name", ["Nguyễn", "Jose\u0301", "अनीता", "O’Brien", "Zoë K."])
def test_names_of_many_scripts_are_names(name: str) -> None:
    assert rater_name(f"  {name} ") == unicodedata.normalize("NFC", name)


def test_a_rating_is_of_this_very_image(tmp_path: Path, view_data: Path) -> None:
    copy = copy_of(view_data, tmp_path)
    ask_people(copy / "exp", ["pairs.json"])
    client, where = client_of(copy), {"exp": "exp", "round": "epoch0", "kind": "images"}
    for index in range(8):
        client.post("/api/human/rate", json={**where, "index": index, "rater": "Ada", "score": 4})
    asked = {**where, "rater": "Ada"}
    mine = {i["i"]: i["mine"] for i in client.get("/api/human/task", params=asked).json()["items"]}
    assert mine[0] == 4
    write_png(Experiment(copy / "exp").round(0).image("images", 0), np.zeros((8, 8, 3), np.uint8))
    mine = {i["i"]: i["mine"] for i in client.get("/api/human/task", params=asked).json()["items"]}
    assert mine[0] is None
    refused = client.post("/api/human/hand-in", json=where)
    assert refused.status_code == 400 and "image 0 has no rating" in refused.json()["error"]


def test_people_score_a_whole_round_to_a_trained_lora(settings: Settings) -> None:
    """run_train's library call waits in a thread while ratings come over HTTP."""
    chosen = small(settings, 1, "people")
    chosen.eval.reward, chosen.eval.in_process = "human", False
    failed: list[BaseException] = []

    def work() -> None:
        try:
            train_rounds(chosen)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    data = Path(chosen.save_path)
    client, handed = client_of(data), []
    end = time.monotonic() + 120
    while thread.is_alive() and time.monotonic() < end:
        jobs = client.get("/api/human").json() if data.is_dir() else []
        for job in jobs:
            if job["there"] == job["total"]:
                handed.append((job["round"], job["kind"]))
                _rate_job(client, job)
        time.sleep(0.05)
    thread.join(1)
    assert not failed and not thread.is_alive()
    expected = [("compare/epoch0", "images"), ("epoch0", "images"), ("epoch0", "target_images")]
    assert handed == [*expected, ("compare/epoch1", "images")]
    folder = data / "people"
    lora = load_file(folder / "checkpoints/epoch0/pytorch_lora_weights.safetensors")
    moved = [name for name, t in lora.items() if "down" not in name and t.abs().max() > 0]
    assert moved and all(".up." in name for name in moved)  # LoRA begins with B = 0
    round_ = Experiment(folder).round(0)
    assert set(round_.scores("images", "human").values()) <= {1.0, 1.5, 2.0, 2.5, 3.0, 3.5}
    for pair in round_.pairs() or ():
        scores = round_.scores("images")
        assert scores[pair.reference] >= scores[pair.base]
    assert verify.verify(folder) == []


def _rate_job(client: Any, job: dict[str, Any]) -> None:
    where = {"exp": job["name"], "round": job["round"], "kind": job["kind"]}
    for rater in ("Ada", "Bob"):
        task = client.get("/api/human/task", params={**where, "rater": rater}).json()
        for item in task["items"]:
            score = 1 + item["i"] % 3 + (rater == "Bob")
            body = {**where, "index": item["i"], "rater": rater, "score": min(score, 3)}
            assert client.post("/api/human/rate", json=body).json() == {"noted": True}
    assert client.post("/api/human/hand-in", json=where).status_code == 200

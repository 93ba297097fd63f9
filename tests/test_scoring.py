"""The scorer: CLIP by open_clip, several experiments, what it leaves alone, other rewards."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from dfusion.errors import UserError
from dfusion.files import write_json, write_png
from dfusion.prompts import Item, Prompt
from dfusion.rewards import load_reward
from dfusion.scoring import score_missing, watch
from dfusion.settings import Eval
from dfusion.store import Experiment, Round
from tests.rewards import redness

SCORER = Path(__file__).parent.parent / "testbed" / "weights" / "scorer"


def experiment(folder: Path, images: int = 3) -> Round:
    """One round with solid grey images of increasing brightness."""
    experiment = Experiment(folder)
    write_json(experiment.config_file, {"settings": {}})
    round_ = experiment.round(0)
    round_.write_manifest(0, (Prompt("a cat", (Item("cat"),)),), 3, {})
    for i in range(images):
        write_png(round_.image("images", i), np.full((8, 8, 3), 40 * (i + 1), np.uint8))
    return round_


def look(data: Path, names: list[str], once: bool = True) -> int:
    return watch(data, names, redness, "redness", 2, 0.01, once)


def test_scores_every_experiment_and_only_once(tmp_path: Path) -> None:
    first, second = experiment(tmp_path / "a"), experiment(tmp_path / "b", images=2)
    assert look(tmp_path, []) == 5
    assert first.scores("images") == pytest.approx({0: 40 / 255, 1: 80 / 255, 2: 120 / 255})
    assert look(tmp_path, []) == 0
    write_png(second.image("images", 2), np.zeros((8, 8, 3), np.uint8))
    assert look(tmp_path, ["b"]) == 1
    assert second.scores("images")[2] == 0


def test_what_cannot_be_scored_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken, foreign, good = (experiment(tmp_path / name) for name in ("a", "b", "c"))
    broken.image("images", 0).write_bytes(b"not a PNG")
    foreign.write_scores("images", "clip:RN50", {0: 0.5})
    with pytest.raises(UserError, match="damaged"):
        look(tmp_path, [])  # `once` ends with what is wrong
    assert len(good.scores("images")) == 3
    said = capsys.readouterr().out
    assert "left alone" in said
    assert "scored by clip:RN50" in said
    assert said.count("damaged") == 1
    assert foreign.scores("images") == {0: 0.5}


def test_a_missing_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: not there"):
        look(tmp_path, ["absent"])


@pytest.mark.parametrize(
    "reward",
    [
        lambda images, prompts: [0.5] * len(images),
        lambda images, prompts: torch.full((len(images), 1), 0.5, dtype=torch.float16),
        lambda images, prompts: np.full(len(images), 0.5),
    ],
)
def test_rewards_may_return_lists_tensors_and_arrays(tmp_path: Path, reward) -> None:
    round_ = experiment(tmp_path / "a")
    assert score_missing(round_, "images", reward, "mine", 2) == 3
    assert round_.scores("images") == {0: 0.5, 1: 0.5, 2: 0.5}


def test_a_wrong_number_of_scores_is_refused(tmp_path: Path) -> None:
    round_ = experiment(tmp_path / "a")
    with pytest.raises(UserError, match="gave 1 scores for 2"):
        score_missing(round_, "images", lambda images, prompts: [1.0], "mine", 2)


def test_scores_written_meanwhile_by_another_scorer_stand(tmp_path: Path) -> None:
    round_ = experiment(tmp_path / "a")

    def reward(images, prompts):
        round_.write_scores("images", "mine", {0: 9.0, **round_.scores("images")})
        return [1.0] * len(images)

    score_missing(round_, "images", reward, "mine", 1)
    assert round_.scores("images") == {0: 9.0, 1: 1.0, 2: 1.0}


@pytest.mark.parametrize("made_anew", [True, False])
def test_scores_of_images_that_are_gone_are_not_written(tmp_path: Path, made_anew: bool) -> None:
    """Else an experiment of the same name would take them for its own."""
    round_ = experiment(tmp_path / "a")

    def reward(images, prompts):
        shutil.rmtree(tmp_path / "a")
        if made_anew:
            experiment(tmp_path / "a")
        return [1.0] * len(images)

    assert score_missing(round_, "images", reward, "mine", 2) == 0
    assert round_.scores("images") == {} and round_.folder.exists() == made_anew


def test_a_reward_by_name(tmp_path: Path) -> None:
    assert load_reward(Eval(reward="tests.rewards:redness"), torch.device("cpu")) is redness
    for name in ("tests.rewards:absent", "no.such.module:f", "nonsense"):
        with pytest.raises(UserError, match="--config.eval.reward"):
            load_reward(Eval(reward=name), torch.device("cpu"))


@pytest.mark.skipif(not SCORER.is_dir(), reason="the testbed's weights are not there")
def test_clip_is_the_raw_cosine_of_open_clip() -> None:
    """Against open_clip used by hand, one image at a time."""
    name = f"local-dir:{SCORER}"
    reward = load_reward(Eval(model=name, pretrained=""), torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(3)]
    prompts = ["a star wearing a hat", "the star above the heart", "a star wearing a hat"]
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        with torch.no_grad():
            picture = model.eval().encode_image(preprocess(image)[None])
            text = model.encode_text(tokenizer([prompt]))
        expected.append(torch.cosine_similarity(picture, text).item())
    assert np.asarray(reward(images, prompts)) == pytest.approx(expected, abs=1e-5)
    assert len({round(e, 3) for e in expected}) > 1


@pytest.mark.parametrize(
    ("model", "pretrained"), [("local-dir:absent", ""), ("ViT-Z-99", "x"), ("RN50", "no/such.pt")]
)
def test_a_scorer_that_does_not_load_says_what_to_do(model: str, pretrained: str) -> None:
    with pytest.raises(UserError, match="--config.eval.model") as caught:
        load_reward(Eval(model=model, pretrained=pretrained), torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_scores_file_is_json_with_its_reward(tmp_path: Path) -> None:
    round_ = experiment(tmp_path / "a")
    look(tmp_path, ["a"])
    value = json.loads(round_.scores_file("images").read_text())
    assert value["reward"] == "redness"
    assert list(value["scores"]) == ["0", "1", "2"]

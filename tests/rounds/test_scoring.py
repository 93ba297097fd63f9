"""The scorer: CLIP by open_clip, several experiments, what it leaves alone, other rewards."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from dfusion.errors import UserError
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import asked_for, load_reward, reward_name
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.scoring import score_missing, scorer_lock
from dfusion.rounds.session import score
from dfusion.settings.schema import Eval, Settings
from dfusion.storage.files import write_json, write_png
from tests.conftest import grey_round
from tests.rewards import Redness, redness

SCORER = Path(__file__).parents[2] / "testbed" / "weights" / "scorer"


def load(by: Eval) -> Reward:
    """The rewards of these tests, by what config.json calls them."""
    known = {"redness": redness, "clip": darkness, "fails": fails}
    return known.get(by.reward) or load_reward(by, torch.device("cpu"))


def darkness(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    return -redness(images, prompts)


def fails(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    raise ZeroDivisionError(f"nothing to divide, {time.monotonic()}")


def look(data: Path, names: list[str], only: str | None = None) -> int:
    return Scorer(data, names, load, only, 2).watch(0.01, once=True)


def test_scores_every_experiment_and_only_once(tmp_path: Path) -> None:
    """All of one reward, so that it cannot see which experiment gets which: the next test does."""
    first, second = grey_round(tmp_path / "a"), grey_round(tmp_path / "b", images=2)
    assert look(tmp_path, []) == 5
    assert first.scores("images") == pytest.approx({0: 20 / 255, 1: 40 / 255, 2: 60 / 255})
    assert look(tmp_path, []) == 0
    write_png(second.image("images", 2), np.zeros((8, 8, 3), np.uint8))
    assert look(tmp_path, ["b"]) == 1
    assert second.scores("images")[2] == 0


def test_each_experiment_gets_the_reward_of_its_own_config(tmp_path: Path) -> None:
    first, second = grey_round(tmp_path / "a"), grey_round(tmp_path / "b", reward="clip")
    assert look(tmp_path, []) == 6
    assert first.scores("images", "redness")[2] == pytest.approx(60 / 255)
    name = reward_name(Eval())
    assert second.scores("images", name)[2] == pytest.approx(-60 / 255)


def test_the_flags_of_a_scorer_decide_no_reward(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run_eval.py without a name and without a reward, as the README has it typed."""
    folder = Path(settings.save_path) / "exp"
    round_ = grey_round(folder, reward="tests.rewards:redness")
    flags = Settings(save_path=settings.save_path, device="cpu")
    flags.eval.once = True
    assert score(flags) == 3
    assert round_.scores("images", "tests.rewards:redness")[2] == pytest.approx(60 / 255)


def test_a_scorer_told_its_reward_leaves_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mine, other = grey_round(tmp_path / "a"), grey_round(tmp_path / "b", reward="clip")
    with pytest.raises(UserError, match=r"/b: its reward is clip.* told to give redness;"):
        look(tmp_path, [], only="redness")
    assert len(mine.scores("images")) == 3 and other.scores("images") == {}
    assert capsys.readouterr().out.count("skipped") == 1
    told = Eval(reward="tests.rewards:redness")
    assert asked_for(told) == "tests.rewards:redness" and asked_for(Eval()) is None


def test_trouble_of_one_experiment_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    """Every kind of it, over many looks; also where a reward's words are others each time."""
    rewards = {"a": "fails", "b": "no.such.module:f", "c": "human", "d": "redness", "z": "redness"}
    rounds = {name: grey_round(tmp_path / name, reward=r) for name, r in rewards.items()}
    rounds["d"].image("images", 1).write_bytes(b"not a PNG")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text('{"settings"')
    write_json(tmp_path / "f" / "config.json", {"settings": {"eval": {"reward": 3}}})
    loaded: list[str] = []

    def noted(by: Eval) -> Reward:
        loaded.append(by.reward)
        return load(by)

    scorer, said = Scorer(tmp_path, [], noted, None, 2), set()
    for _ in range(4):
        said |= set(scorer.look()[1])
    assert len(rounds["z"].scores("images")) == 3
    assert sorted(Path(text.split(":")[0]).relative_to(tmp_path).parts[0] for text in said) == [
        *"abcdef"
    ]
    assert loaded.count("no.such.module:f") == 1  # not at every look
    assert scorer_lock(tmp_path / "b").acquire()  # free for a scorer that has it
    (why,) = (text for text in said if "ZeroDivisionError" in text)
    assert "test_scoring.py, line" in why and "nothing to divide" in why


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = grey_round(tmp_path / "a")
    monkeypatch.setattr("dfusion.rounds.scorer.RETRY_SECONDS", 0.0)
    ready: list[Reward] = []
    scorer = Scorer(tmp_path, [], lambda by: ready[0], None, 2)
    assert "IndexError" in scorer.look()[1][0]
    ready.append(redness)
    assert scorer.look() == (3, []) and len(round_.scores("images")) == 3


def test_what_cannot_be_scored_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken, foreign, good = (grey_round(tmp_path / name) for name in ("a", "b", "c"))
    broken.image("images", 0).write_bytes(b"not a PNG")
    foreign.write_scores("images", "clip:RN50", {0: 0.5})
    with pytest.raises(UserError, match="damaged"):
        look(tmp_path, [])  # `once` ends with what is wrong
    assert len(good.scores("images")) == 3
    said = capsys.readouterr().out
    assert "skipped" in said
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
def test_rewards_may_return_lists_tensors_and_arrays(tmp_path: Path, reward: Reward) -> None:
    round_ = grey_round(tmp_path / "a")
    assert score_missing(round_, "images", reward, "mine", 2) == 3
    assert round_.scores("images") == {0: 0.5, 1: 0.5, 2: 0.5}


def test_a_wrong_number_of_scores_is_refused(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a")
    with pytest.raises(UserError, match="gave 1 scores for 2"):
        score_missing(round_, "images", lambda images, prompts: [1.0], "mine", 2)


def test_scores_written_meanwhile_by_another_scorer_stand(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a")

    def reward(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        round_.write_scores("images", "mine", {0: 9.0, **round_.scores("images")})
        return [1.0] * len(images)

    score_missing(round_, "images", reward, "mine", 1)
    assert round_.scores("images") == {0: 9.0, 1: 1.0, 2: 1.0}


@pytest.mark.parametrize("made_anew", [True, False])
def test_scores_of_images_that_are_gone_are_not_written(tmp_path: Path, made_anew: bool) -> None:
    """Else an experiment of the same name would take them for its own."""
    round_ = grey_round(tmp_path / "a")

    def reward(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        shutil.rmtree(tmp_path / "a")
        if made_anew:
            grey_round(tmp_path / "a")
        return [1.0] * len(images)

    assert score_missing(round_, "images", reward, "mine", 2) == 0
    assert round_.scores("images") == {} and round_.folder.exists() == made_anew


def test_a_reward_by_name(tmp_path: Path) -> None:
    assert load_reward(Eval(reward="tests.rewards:redness"), torch.device("cpu")) is redness
    made = load_reward(Eval(reward="tests.rewards:Redness"), torch.device("cpu"))
    assert isinstance(made, Redness) and made.device.type == "cpu"
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
    round_ = grey_round(tmp_path / "a")
    look(tmp_path, ["a"])
    value = json.loads(round_.scores_file("images").read_text())
    assert value["reward"] == "redness"
    assert list(value["scores"]) == ["0", "1", "2"]

"""Rewards that see whole groups, weighted sums, and scorers that training never sees."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.method.pairing import Pair
from dfusion.method.prompts import Prompt
from dfusion.rewards.registry import check_rewards, load_reward, reward_name
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.scoring import score_missing
from dfusion.rounds.session import sample_rounds, score
from dfusion.settings.check import check
from dfusion.settings.schema import Eval, Settings
from dfusion.storage.experiment import WATCH, Experiment, Round
from dfusion.storage.files import write_json, write_png
from dfusion.training.trainer import train_rounds
from tests.conftest import grey_round, metrics_of
from tests.rewards import Rank

CPU = torch.device("cpu")
SUM = "0.5*tests.rewards:redness + -2*tests.rewards:Redness"
RED = "tests.rewards:redness"


def grey(round_: Round, kind: str, index: int, level: int) -> None:
    write_png(round_.image(kind, index), np.full((8, 8, 3), level, np.uint8))


def two_prompts(folder: Path) -> Round:
    """Three samples each of two prompts, not written yet."""
    round_ = Experiment(folder).round(0)
    round_.write_manifest(0, (Prompt("a cat", ()), Prompt("a dog", ())), 3, {})
    return round_


def test_a_group_is_scored_when_all_of_its_images_are_there(tmp_path: Path) -> None:
    round_, rank = two_prompts(tmp_path), Rank(CPU)
    for i, level in enumerate([30, 10, 20, 90]):  # one of the second prompt
        grey(round_, "images", i, level)
    assert score_missing(round_, "images", rank, "rank", 2) == 3
    assert round_.scores("images") == {0: 2, 1: 0, 2: 1} and len(rank.calls) == 1
    grey(round_, "images", 4, 70)
    assert score_missing(round_, "images", rank, "rank", 2) == 0
    grey(round_, "images", 5, 80)
    assert score_missing(round_, "images", rank, "rank", 2) == 3
    assert round_.scores("images") == {0: 2, 1: 0, 2: 1, 3: 2, 4: 0, 5: 1}
    assert len(rank.calls) == 2


def test_a_group_that_lacks_a_score_is_scored_anew_as_a_whole(tmp_path: Path) -> None:
    round_, rank = two_prompts(tmp_path), Rank(CPU)
    for i, level in enumerate([30, 10, 20, 9, 7, 8]):
        grey(round_, "images", i, level)
    known = {0: 5.0, 1: 5.0, 3: 2.0, 4: 0.0, 5: 1.0}
    round_.write_scores("images", "rank", known)
    score_missing(round_, "images", rank, "rank", 2)
    assert round_.scores("images") == {0: 2, 1: 0, 2: 1, 3: 2, 4: 0, 5: 1}
    assert len(rank.calls) == 1


def test_a_target_is_ranked_in_its_bases_place(tmp_path: Path) -> None:
    round_, rank = two_prompts(tmp_path), Rank(CPU)
    for i, level in enumerate([30, 10, 20, 90, 70, 80]):
        grey(round_, "images", i, level)
    round_.write_pairs((Pair("a cat", 0, 1), Pair("a dog", 3, 5)), {})
    grey(round_, "target_images", 0, 25)
    assert score_missing(round_, "target_images", rank, "rank", 2) == 1
    assert np.array(rank.calls) * 255 == pytest.approx(np.array([[30, 25, 20]]))
    grey(round_, "target_images", 1, 60)
    assert score_missing(round_, "target_images", rank, "rank", 2) == 1
    assert round_.scores("target_images") == {0: 1, 1: 0}
    assert np.array(rank.calls[1]) * 255 == pytest.approx(np.array([90, 70, 60]))


def test_processes_share_groups_out(tmp_path: Path) -> None:
    round_, ranks = two_prompts(tmp_path), (Rank(CPU), Rank(CPU))
    for i, level in enumerate([30, 10, 20, 90, 70, 80]):
        grey(round_, "images", i, level)
    done = [
        score_missing(round_, "images", rank, "rank", 2, turn=(k, 2))
        for k, rank in enumerate(ranks)
    ]
    assert done == [3, 3] and [len(rank.calls) for rank in ranks] == [1, 1]


def test_a_sum_keeps_what_each_part_gave(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a", reward=SUM)
    scorer = Scorer(tmp_path, [], lambda by: load_reward(by, CPU), None, 2)
    assert scorer.look() == (3, [])
    name = "0.5*tests.rewards:redness + -2.0*tests.rewards:Redness"
    red = {i: 20 * (i + 1) / 255 for i in range(3)}
    assert round_.scores("images", name) == pytest.approx({i: -1.5 * r for i, r in red.items()})
    parts = round_.score_parts("images")
    assert parts == {RED: pytest.approx(red), "tests.rewards:Redness": pytest.approx(red)}


def test_a_sum_is_continued_where_it_was_stopped(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a", images=2)
    reward = load_reward(Eval(reward=SUM), CPU)
    assert score_missing(round_, "images", reward, "sum", 2) == 2
    grey(round_, "images", 2, 60)
    assert score_missing(round_, "images", reward, "sum", 2) == 1
    assert {i for part in round_.score_parts("images").values() for i in part} == {0, 1, 2}


def test_a_sum_sees_groups_if_a_part_does() -> None:
    assert load_reward(Eval(reward=f"{RED}+tests.rewards:Rank"), CPU).whole_groups
    assert not load_reward(Eval(reward=SUM), CPU).whole_groups


def test_the_part_that_gives_nonsense_is_named(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a")
    reward = load_reward(Eval(reward=f"{RED} + tests.rounds.test_kinds_of_reward:nan"), CPU)
    with pytest.raises(
        UserError, match="the reward tests.rounds.test_kinds_of_reward:nan gave nan"
    ):
        score_missing(round_, "images", reward, "sum", 2)


def nan(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [float("nan")] * len(images)


def test_clip_may_be_named_with_its_model() -> None:
    """As it is written to disk, so that two CLIP models can be weighed or compared."""
    name = reward_name(Eval())
    assert reward_name(Eval(reward=name, model="other")) == name
    second = "clip:local-dir:testbed/weights/second"
    reward = load_reward(Eval(reward=second), CPU)
    picture = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    plain = load_reward(Eval(model="local-dir:testbed/weights/second", pretrained=""), CPU)
    assert float(reward([picture], ["a star"])[0]) == float(plain([picture], ["a star"])[0])
    assert reward_name(Eval(reward=f"clip + 2*{second}")) == f"1.0*{name} + 2.0*{second}"


def test_a_watch_is_scored_beside_the_reward(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a", reward=RED)
    config = {"settings": {"eval": {"reward": RED, "watch": "tests.rewards:Redness"}}}
    write_json(tmp_path / "a" / "config.json", config)
    scorer = Scorer(tmp_path, [], lambda by: load_reward(by, CPU), None, 2)
    assert scorer.look() == (6, []) and scorer.look() == (0, [])
    assert round_.scores(WATCH, "tests.rewards:Redness") == round_.scores("images", RED)


def test_a_watch_that_fails_does_not_stop_the_reward(tmp_path: Path) -> None:
    round_ = grey_round(tmp_path / "a", reward=RED)
    config = {"settings": {"eval": {"reward": RED, "watch": "no.such.module:f"}}}
    write_json(tmp_path / "a" / "config.json", config)
    scorer = Scorer(tmp_path, [], lambda by: load_reward(by, CPU), None, 2)
    scored, problems = scorer.look()
    assert scored == 3 and "no.such.module:f" in problems[0]
    grey(round_, "images", 1, 7)
    round_.scores_file("images").unlink()
    assert scorer.look()[0] == 3


def trained(settings: Settings, watch: str) -> Path:
    settings.train = dataclasses.replace(settings.train, compare_images=1, batch_size=8)
    settings.eval.watch = watch
    return train_rounds(settings)


def test_metrics_show_parts_and_watch(settings: Settings, capsys: pytest.CaptureFixture) -> None:
    settings.eval.reward = f"tests.rewards:Redness + {RED}"
    folder = trained(settings, RED)
    (row,) = (row for row in metrics_of(folder) if row["kind"] == "round")
    round_ = Experiment(folder).round(0)
    watched = [*round_.scores(WATCH, RED).values()]
    assert len(watched) == 8
    assert row["watch_mean"] == pytest.approx(np.mean(watched))
    assert row["watch_std"] == pytest.approx(np.std(watched))
    assert row["reward_parts"] == pytest.approx(
        {"tests.rewards:Redness": row["watch_mean"], RED: row["watch_mean"]}
    )
    assert row["reward_mean"] == pytest.approx(2 * row["watch_mean"])
    assert len(Experiment(folder).comparison(1).scores(WATCH, RED)) == 2
    assert "; watch 0." in capsys.readouterr().out
    assert verify(folder) == []


def test_a_watch_may_be_added_later_but_not_mixed(settings: Settings) -> None:
    folder = trained(settings, "")
    assert not Experiment(folder).round(0).scores_file(WATCH).exists()
    settings.train.num_epochs = 2
    assert trained(settings, RED) == folder
    assert len(Experiment(folder).round(1).scores(WATCH, RED)) == 8
    settings.train.num_epochs = 3
    with pytest.raises(UserError, match=f"watch.json: scored by {RED}, but"):
        trained(settings, "tests.rewards:Redness")


def test_shared_samples_bring_their_watch(settings: Settings) -> None:
    settings.eval.watch = RED
    settings.eval.in_process = True
    folder = trained(settings, RED)
    other = dataclasses.replace(settings, exp_name="other", samples_from=str(folder))
    other.eval = dataclasses.replace(settings.eval, in_process=True)
    taken = Experiment(sample_rounds(other)).round(0)
    assert taken.scores(WATCH, RED) == Experiment(folder).round(0).scores(WATCH, RED)


def test_a_run_with_a_scorer_of_its_own_waits_for_the_watch(settings: Settings) -> None:
    """`run_eval.py --config.eval.once` beside finished samples."""
    settings.eval.watch = RED
    folder = sample_rounds(settings)
    flags = Settings(save_path=settings.save_path, device="cpu")
    flags.eval.once = True
    assert score(flags) == 8  # the watch; the reward was given in the run
    assert len(Experiment(folder).round(0).scores(WATCH, RED)) == 8


@pytest.mark.parametrize("text", ["", "clip +", "x*clip", "*clip", "nan*clip", "2*3*clip"])
def test_an_odd_sum_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--config.eval.reward"):
        check(Settings(eval=Eval(reward=text)))


@pytest.mark.parametrize("run", [sample_rounds, train_rounds])
@pytest.mark.parametrize(
    ("reward", "watch", "message"),
    [
        ("oops", "", "reward 'oops': there is no reward 'oops'; choose from clip, pickscore, "),
        ("0.5*clip+oops", "", r"reward '0.5\*clip\+oops': there is no reward 'oops'"),
        (RED, "oops", "watch 'oops': there is no reward 'oops'"),
        (RED, f"{RED} + mine:", "watch .*: there is no reward 'mine:'"),
    ],
)
def test_an_unknown_reward_is_refused_before_anything_is_written(
    settings: Settings, run: Callable[[Settings], Path], reward: str, watch: str, message: str
) -> None:
    """Without a scorer in this process, the run would wait for scores for ever."""
    settings.eval.in_process, settings.eval.reward, settings.eval.watch = False, reward, watch
    with pytest.raises(UserError, match=f"^--config.eval.{message}"):
        run(settings)
    assert not Path(settings.save_path).exists()


def test_a_reward_of_ones_own_may_be_installed_where_the_scorer_runs() -> None:
    check_rewards(Eval(reward="0.5*clip:RN50:openai + elsewhere:f", watch="elsewhere:g"))
    with pytest.raises(UserError, match="--config.eval.watch 'elsewhere:g': No module named"):
        check_rewards(Eval(reward=RED, watch="elsewhere:g", in_process=True))


def test_nothing_is_named_twice_and_people_stand_alone() -> None:
    for reward, watch in (("clip + 2*clip", ""), ("human + clip", ""), ("human", "clip")):
        with pytest.raises(UserError, match="--config.eval.reward"):
            check(Settings(eval=Eval(reward=reward, watch=watch)))
    check(Settings(eval=Eval(reward="human")))
    check(Settings(eval=Eval(reward="0.5*clip+2*mine:f", watch="clip:RN50:openai")))

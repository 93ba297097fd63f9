"""A round on disk: what it leaves, that it goes on where it stopped, that processes share it."""

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan
from dfusion.progress import Stopwatch
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import REWARDS, reward_name
from dfusion.rounds import session
from dfusion.rounds.runner import RoundRunner
from dfusion.rounds.scoring import heartbeat, score_missing, scorer_alive, scorer_lock
from dfusion.rounds.waiting import World
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment, Round
from tests.conftest import PROMPTS, REWARD, grey_round
from tests.rewards import redness


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a round is made of, but its page and its config."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.glob("epoch*/**/*"))
        if p.is_file()
    }


def test_a_round_from_nothing(settings: Settings) -> None:
    folder = session.sample_rounds(settings)
    round_ = Experiment(folder).round(0)
    names = {p.parent.name for p in folder.glob("epoch0/*/*") if p.suffix in (".png", ".json")}
    wanted = ["images", "base_images", "reference_images", "target_images", "masks", "eval"]
    assert names == set(wanted)
    assert len(list(folder.glob("epoch0/images/*.png"))) == 8
    pairs, rows = round_.pairs(), round_.adoption()
    assert pairs is not None
    assert rows is not None
    assert len(pairs) == len(rows) == 4

    scores, targets = round_.scores("images"), round_.scores("target_images")
    for p, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        # Scores on disk are those of the images on disk; the better one is the reference.
        for kind, key, value in (
            ("base_images", "base", scores[pair.base]),
            ("reference_images", "reference", scores[pair.reference]),
            ("target_images", "target", targets[p]),
        ):
            pixels = np.asarray(Image.open(round_.image(kind, p)))
            assert row[key] == pytest.approx(pixels[..., 0].mean() / 255) == value
        assert row["reference"] >= row["base"]
        assert row["adopted"] == (row["target"] - row["base"] >= row["reference"] - row["base"])
        target = load_file(round_.target(p))
        base = load_file(round_.trajectory(pair.base))
        assert target["latents"].shape == (5, 4, 8, 8)
        assert target["latents"][:2].equal(base["latents"][:2])  # t = 4 is not fused
        assert not target["masks"][0].any()
    html = (folder / "index.html").read_text()
    assert all(prompt in html for prompt in PROMPTS)


def test_rerun_makes_nothing_again_and_a_gap_is_filled_with_the_same(settings: Settings) -> None:
    folder = session.sample_rounds(settings)
    before = contents(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.glob("epoch*/**/*.safetensors")}
    session.sample_rounds(settings)
    assert contents(folder) == before
    assert times == {p: p.stat().st_mtime_ns for p in times}
    round_ = Experiment(folder).round(0)
    for path in (
        round_.image("images", 3),
        round_.trajectory(6),
        round_.target(1),
        round_.scores_file("target_images"),
        round_.folder / "adoption.json",
    ):
        path.unlink()
    session.sample_rounds(settings)
    after = contents(folder)
    assert after.keys() == before.keys()
    for name in before:
        if name.endswith(".safetensors"):
            new, old = load_file(folder / name), load(before[name])
            assert all(torch.allclose(new[k].float(), old[k].float(), atol=1e-4) for k in old)
        elif name.endswith("pairs.json"):
            assert after[name] == before[name]


def test_rounds_differ_and_continue(settings: Settings) -> None:
    settings.train.num_epochs = 2
    folder = session.sample_rounds(settings)
    first, second = (load_file(Experiment(folder).round(k).trajectory(0)) for k in (0, 1))
    assert not torch.allclose(first["latents"][0], second["latents"][0])


def test_scorer_beside_the_sampler(settings: Settings, capsys: pytest.CaptureFixture) -> None:
    """Two parties that meet only on disk; the sampler says what to type while it is alone."""
    settings.eval.in_process = False
    folder = Path(settings.save_path) / "exp"
    failed: list[BaseException] = []

    def sampler() -> None:
        try:
            session.sample_rounds(settings)
        except BaseException as error:  # handed to the test
            failed.append(error)

    thread = threading.Thread(target=sampler)
    thread.start()
    done = threading.Event()

    def scorer() -> None:
        while not done.wait(0.05):
            for round_ in Experiment(folder).rounds().values():
                for kind in ("images", "target_images"):
                    score_missing(round_, kind, redness, REWARD, 3)

    # Start the scorer only once the sampler has asked for it.
    said = ""
    while "run_eval.py" not in said and thread.is_alive():
        said += capsys.readouterr().out
    watcher = threading.Thread(target=scorer)
    watcher.start()
    thread.join(60)
    done.set()
    watcher.join()
    assert not failed
    assert "waiting for 8 of 8 scores" in said
    flags = r"--config.exp_name exp .*--config.eval.reward tests.rewards:redness"
    assert re.search(f"python3 run_eval.py {flags}", said)
    assert Experiment(folder).round(0).adoption() is not None


def runner_of(settings: Settings, reward: Reward, rank: int, size: int) -> RoundRunner:
    experiment = Experiment(Path(settings.save_path) / "exp")
    plan, world = FusionPlan(frozenset(), frozenset()), World(rank, size)
    return RoundRunner(settings, experiment, (), plan, frozenset(), world, reward)


def test_scoring_in_process_takes_over_from_a_scorer_that_ends(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    """It holds the experiment when the images are there, and ends without a score."""
    folder = Path(settings.save_path) / "exp"
    round_, lock = grey_round(folder, reward=REWARD), scorer_lock(folder)
    assert lock.acquire()
    found: list[dict[int, float]] = []
    runner = runner_of(settings, redness, 0, 1)
    waiting = threading.Thread(
        target=lambda: found.append(runner.scores.of(round_, "images", 3)), daemon=True
    )
    waiting.start()
    said = ""
    while "waiting for 3 of 3 scores" not in said and waiting.is_alive():
        said += capsys.readouterr().out
    assert f"process {os.getpid()} on" in said
    assert round_.scores("images") == {}
    lock.release()
    waiting.join(10)
    assert found == [round_.scores("images")] and len(found[0]) == 3
    assert lock.acquire()  # given back


@pytest.mark.parametrize("taken", [False, True], ids=["free", "another scorer has it"])
def test_scoring_in_process_is_shared_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """Three processes score the batches that one would, each once; none where a scorer does."""
    folder = Path(settings.save_path) / "exp"
    round_, other = grey_round(folder, images=10, reward=REWARD), scorer_lock(folder)
    settings.eval.batch_size = 2
    scored: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    ready, write = threading.Barrier(3), Round.write_scores

    def slowly(*given: Any) -> None:
        time.sleep(0.02)  # so that one writes while another has read
        write(*given)

    def reward_of(rank: int) -> Reward:
        def reward(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
            scored[rank].append([np.asarray(image)[0, 0, 0] // 20 - 1 for image in images])
            return redness(images, prompts)

        return reward

    def work(rank: int) -> None:
        ready.wait()
        runner_of(settings, reward_of(rank), rank, 3).scores.of(round_, "images", 10)

    monkeypatch.setattr(Round, "write_scores", slowly)
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(3)]
    with session.claimed(Experiment(Path(settings.save_path) / settings.exp_name), rank=0):
        if taken:
            assert other.acquire()
            note = {"process": 1, "host": "elsewhere", "since": "noon"}
            other.note.write_text(json.dumps(note))
        for thread in threads:
            thread.start()
        if taken:
            threads[0].join(0.3)
            assert scored == {0: [], 1: [], 2: []}
            other.release()
        for thread in threads:
            thread.join(20)
    assert scored == {0: [[0, 1], [6, 7]], 1: [[2, 3], [8, 9]], 2: [[4, 5]]}
    assert round_.scores("images") == {i: pytest.approx(20 * (i + 1) / 255) for i in range(10)}


def test_heartbeat(tmp_path: Path) -> None:
    assert not scorer_alive(tmp_path, "a", REWARD)
    with heartbeat(tmp_path, ["a"]):
        for _ in range(100):
            if scorer_alive(tmp_path, "a", REWARD):
                break
            threading.Event().wait(0.02)
        assert scorer_alive(tmp_path, "a", REWARD)
        assert not scorer_alive(tmp_path, "b", REWARD)  # it serves another experiment
        with heartbeat(tmp_path / "all", [], REWARD):
            threading.Event().wait(0.5)
            assert scorer_alive(tmp_path / "all", "b", REWARD)
            assert not scorer_alive(tmp_path / "all", "b", "another")
    assert not scorer_alive(tmp_path, "a", REWARD)


def test_scores_of_another_reward_are_refused(settings: Settings) -> None:
    folder = session.sample_rounds(settings)
    path = Experiment(folder).round(0).scores_file("images")
    path.write_text(path.read_text().replace(f'"{REWARD}"', '"clip:RN50"'))
    with pytest.raises(UserError, match="scored by clip:RN50"):
        session.sample_rounds(settings)


def test_changed_config_is_refused_by_name(settings: Settings) -> None:
    session.sample_rounds(settings)
    settings.sample.batch_size, settings.sample.num_batches_per_epoch = 4, 1  # as many images
    settings.eval.batch_size = 3
    session.sample_rounds(settings)
    settings.sample.guidance_scale = 7.0
    with pytest.raises(UserError, match=r"sample.guidance_scale \(5.0 -> 7.0\)"):
        session.sample_rounds(settings)
    # Even when told to go on, no round is mixed from two policies or two seeds.
    settings.allow_config_change = True
    with pytest.raises(UserError, match=r"manifest.json: .*guidance \(5.0 -> 7.0\)"):
        session.sample_rounds(settings)
    settings.sample.guidance_scale, settings.seed = 5.0, 6
    with pytest.raises(UserError, match=r"manifest.json: .*seed \(5 -> 6\)"):
        session.sample_rounds(settings)
    settings.seed, settings.fusion.steps = 5, "2-1"
    with pytest.raises(UserError, match=r"pairs.json: .*fusion steps \(3-1 -> 2-1\)"):
        session.sample_rounds(settings)


def test_another_adoption_threshold_decides_again(settings: Settings) -> None:
    settings.pair.adoption_threshold = 100.0
    folder = session.sample_rounds(settings)
    rows = Experiment(folder).round(0).adoption()
    assert rows is not None
    assert not any(row["adopted"] for row in rows)
    settings.pair.adoption_threshold, settings.allow_config_change = -100.0, True
    session.sample_rounds(settings)
    rows = Experiment(folder).round(0).adoption()
    assert rows is not None
    assert all(row["adopted"] for row in rows)


def test_every_process_waits_for_what_is_adopted(settings: Settings) -> None:
    """Also where a file of another threshold is there: training on it would be on other pairs."""
    settings.pair.adoption_threshold = 100.0
    round_ = Experiment(session.sample_rounds(settings)).round(0)
    pairs, scores, targets = (
        round_.pairs() or (),
        round_.scores("images"),
        round_.scores("target_images"),
    )
    settings.pair.adoption, settings.allow_config_change = "all", True
    runner = session.open_session(settings).runner
    about = runner.experiment, runner.prompts, runner.plan, runner.mask_layers
    first, second = (RoundRunner(settings, *about, World(rank, 2)) for rank in (0, 1))
    waiting = threading.Thread(target=second._adopt, args=(round_, pairs, scores, targets))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    first._adopt(round_, pairs, scores, targets)
    waiting.join(10)
    assert not waiting.is_alive() and all(row["adopted"] for row in round_.adoption() or [])


def test_changed_scores_are_noticed(settings: Settings) -> None:
    folder = session.sample_rounds(settings)
    path = Experiment(folder).round(0).scores_file("images")
    value = json.loads(path.read_text())
    value["scores"] = {k: -v for k, v in value["scores"].items()}
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="the scores have changed since"):
        session.sample_rounds(settings)


def test_other_prompts_are_refused(settings: Settings) -> None:
    session.sample_rounds(settings)
    settings.allow_config_change = True
    settings.mask_thr = "0.5"
    with pytest.raises(UserError, match="begun with other prompts"):
        session.sample_rounds(settings)


def test_a_reward_that_gives_no_number_stops(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda settings, device: lambda images, prompts: torch.full((len(images),), torch.nan)  # noqa: E731
    monkeypatch.setitem(REWARDS, "nothing", nothing)
    settings.eval.reward = "nothing"
    with pytest.raises(UserError, match="gave nan"):
        session.sample_rounds(settings)


def test_a_stage_within_a_stage_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 5.0, 7.0, 10.0, 11.0))  # outer begins, inner, its end, outer's; again
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stopwatch = Stopwatch()
    with stopwatch.stage("comparing"), stopwatch.stage("scoring"):
        pass
    with stopwatch.stage("scoring"):
        pass
    assert stopwatch.take() == {"scoring": 5.0, "comparing": 3.0}


def test_reward_names() -> None:
    settings = Settings().eval
    assert reward_name(settings) == "clip:ViT-H-14:laion2b_s32b_b79k"
    settings.model, settings.pretrained = "local-dir:x", ""
    assert reward_name(settings) == "clip:local-dir:x"


def test_a_pairing_rule_of_ones_own(settings: Settings) -> None:
    """It sees the images; and a round so paired verifies."""
    settings.pair.rule = "tests.rules:reddest"
    folder = session.sample_rounds(settings)
    round_ = Experiment(folder).round(0)
    scores = round_.scores("images")  # redness, too
    pairs = round_.pairs() or ()
    assert len(pairs) == 6 and verify(folder) == []
    for pair in pairs:
        same = [p.base for p in pairs if p.prompt == pair.prompt]
        assert scores[pair.reference] >= max(scores[i] for i in same)
    settings.pair.rule, settings.exp_name = "tests.rules:absent", "other"
    with pytest.raises(
        UserError, match="pair.rule 'tests.rules:absent'.*give halves, quarter, both_ways or"
    ):
        session.sample_rounds(settings)

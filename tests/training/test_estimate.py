"""What a run is said to cost, against what real tiny runs cost."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.counter import counting
from dfusion.errors import UserError
from dfusion.rounds.session import open_session
from dfusion.settings.schema import Settings
from dfusion.training.estimate import Times, announce, disk_gib, estimate, evaluations, seconds
from dfusion.training.trainer import Trainer
from tests.tiny import make_sd3


def plain(settings: Settings) -> None:
    settings.pair.adoption = "all"


def some_fall_back(settings: Settings) -> None:
    """Two rounds, one pair of four adopted at most; compared before and after."""
    settings.pair.adoption_threshold = 0.9
    settings.train.num_epochs, settings.train.compare_every = 2, 1


def naive(settings: Settings) -> None:
    settings.train.pairs, settings.train.method = "naive", "ddpo"
    settings.train.num_inner_epochs, settings.train.compare_images = 3, 0


def inverted(settings: Settings) -> None:
    settings.pair.adoption, settings.train.pairs = "all", "inversion"


def everything(settings: Settings) -> None:
    """Several updates, the initial model, weights, an unfused step between fused ones."""
    settings.pair.adoption = "all"
    settings.train.updates_per_inner_epoch, settings.train.reference = 2, "initial"
    settings.train.step_weights, settings.fusion.steps = "1,0,1,1", "3,1"


def later(settings: Settings) -> None:
    """Begins between two comparisons."""
    settings.train.begin_epoch, settings.train.num_epochs, settings.train.compare_every = 1, 3, 5


def unguided(settings: Settings) -> None:
    settings.sample.cfg, settings.pair.adoption = False, "all"


def half_of_the_steps(settings: Settings) -> None:
    settings.train.pairs, settings.train.compare_images = "naive", 0
    settings.train.num_inner_epochs, settings.train.updates_per_inner_epoch = 1, 2
    settings.train.timestep_fraction = 0.5


def noise_where_fused(settings: Settings) -> None:
    """DDPO would train on the first step, too, had it noise."""
    settings.pair.adoption, settings.train.method = "all", "ddpo"
    settings.sample.noise = "fused"


def branched(settings: Settings) -> None:
    settings.pair.adoption, settings.fusion.kind = "all", "branch"


def renoised(settings: Settings) -> None:
    """DDPO has no gradient before a noised image, either."""
    settings.pair.adoption, settings.fusion.kind = "all", "renoise"
    settings.train.method = "ddpo"


def on_images(settings: Settings) -> None:
    """A loss on noised images that sees a whole update, and compares with the initial model."""
    settings.pair.adoption, settings.train.method = "all", "diffusion_kto"
    settings.train.updates_per_inner_epoch, settings.train.reference = 2, "initial"


CASES = [
    on_images,
    noise_where_fused,
    branched,
    renoised,
    half_of_the_steps,
    plain,
    some_fall_back,
    naive,
    inverted,
    everything,
    unguided,
    later,
]


@pytest.mark.parametrize("change", CASES, ids=lambda case: case.__name__)
def test_evaluations_are_those_of_a_real_run(
    settings: Settings, change: Callable[[Settings], None]
) -> None:
    change(settings)
    ends_as_estimated(settings)


@pytest.mark.parametrize("method", ["ddpo", "diffusion_dpo"])
def test_a_flow_models_last_step_has_no_noise_to_train_on(
    settings: Settings, tmp_path: Path, method: str
) -> None:
    """A loss on noised images needs none."""
    make_sd3(tmp_path).save_pretrained(tmp_path / "model")
    settings.pretrained.model = str(tmp_path / "model")
    settings.mask.layers, settings.fusion.layers, settings.train.method = "0", "all", method
    settings.pair.adoption = "all"
    found = ends_as_estimated(settings)
    assert method != "ddpo" or estimate(settings).evaluations == found


def ends_as_estimated(settings: Settings) -> dict[str, float]:
    """A real run's UNet evaluations are the estimate's, which is returned."""
    trainer = Trainer(open_session(settings))
    with counting(trainer.session.model.network, settings.sample.cfg) as count:
        trainer.run()
    rounds = range(settings.train.begin_epoch, settings.train.num_epochs)
    fused = [trainer.data(number).fused for number in rounds]
    adopted = sum(map(sum, fused)) / sum(map(len, fused))
    noisy = trainer.session.sampler.trainable.tolist()
    found = evaluations(settings, prompts=2, adopted=adopted, noisy=noisy)
    assert sum(found.values()) == pytest.approx(count.total)
    if trainer.session.model.sampling == "DDIM":
        assert evaluations(settings, prompts=2, adopted=adopted) == found
    return found


def test_paper_preset() -> None:
    """40 prompts: Table 3's round, 24 to look at the sampler and at the norm of the noise, and two
    comparisons of 40 images."""
    found = evaluations(Settings(), prompts=40)
    assert found == {
        "sampling": 12_800,
        "fusing": 11_520,
        "inverting": 0,
        "training": 46_080 + 24,
        "comparing": 2 * 40 * 20,
    }
    assert evaluations(Settings(), 40, adopted=0.0)["training"] == 51_200 + 24


@pytest.mark.parametrize(("keep", "gigabytes"), [("all", 52.8), ("last", 2.6), ("none", 1.3)])
def test_states_of_the_papers_run_on_disk(keep: str, gigabytes: float) -> None:
    """40 rounds of 640 samples and 320 targets, 21 states of 4 x 64 x 64 in fp32: the README's."""
    settings = Settings(keep_trajectories=keep)
    settings.train.num_epochs = 40
    assert disk_gib(settings, 40, (4, 64, 64)) * 2**30 / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_watch_is_timed_and_scores_no_targets(settings: Settings) -> None:
    """2 rounds of 8 samples and 4 targets, and two comparisons of 2 images."""
    settings.train.num_epochs = 2
    times = Times(plain=0, fused=0, trained=0, decoding=0, scoring=1.0, watching=100.0)
    assert seconds(settings, 2, times)["scoring"] == (2 * (8 + 4) + 2 * 2) + 100 * (2 * 8 + 2 * 2)
    settings.eval.watch = "tests.rewards:Slow"
    timed = estimate(settings).times
    assert timed.watching > 0.01 / settings.eval.batch_size > timed.scoring > 0
    settings.eval.watch = "tests.rewards:gone"
    with pytest.raises(UserError, match="--config.eval.watch 'tests.rewards:gone'"):
        estimate(settings)


def test_the_time_of_people_is_not_counted(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    settings.eval.reward = "human"
    assert announce(settings).seconds["scoring"] == 0
    assert "the time that people take" in capsys.readouterr().out


def test_estimate_measures_and_writes_nothing(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    settings.train.num_epochs = 3
    found = estimate(settings)
    assert found.evaluations == evaluations(settings, prompts=2)
    assert found.hours > 0 and found.memory_gib > 0
    assert found.seconds["inverting"] == 0
    assert all(found.seconds[stage] > 0 for stage in ("sampling", "fusing", "training", "scoring"))
    # 3 rounds of 8 samples and 4 targets, 5 states of 4 x 8 x 8 numbers of 4 bytes.
    assert found.disk_gib == pytest.approx(3 * 12 * 5 * 256 * 4 / 2**30)
    assert not Path(settings.save_path).exists()
    few = dataclasses.replace(settings, train=dataclasses.replace(settings.train, num_epochs=1))
    assert announce(few).evaluations == evaluations(few, prompts=2)
    printed = capsys.readouterr().out
    assert "rounds 1, prompts 2" in printed and "training" in printed

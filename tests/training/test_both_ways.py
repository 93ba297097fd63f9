"""Pairs fused in both directions: which side is preferred, and what the two updates share."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from dfusion.rounds.session import open_session
from dfusion.training.gradients import sampling_gap
from dfusion.training.order import Step
from dfusion.training.trainer import Trainer
from tests.conftest import make_settings
from tests.training.updates import stir

STEPS = [Step(p, i) for p in range(8) for i in (0, 2, 3)]


@pytest.fixture(scope="module", params=["eq7", "all"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path
) -> Trainer:
    settings = make_settings(tmp_path_factory.mktemp("both"), pipeline_folder)
    settings.pair.rule, settings.pair.adoption = "both_ways", request.param
    settings.pair.adoption_threshold, settings.train.batch_size = 0.0, 8
    trainer = Trainer(open_session(settings))
    stir(trainer)
    trainer.session.runner.run(0, trainer.session.policy(0))
    return trainer


def test_the_better_image_is_preferred(both: Trainer) -> None:
    data, round_ = both.data(0), both.session.experiment.round(0)
    scores, rows = round_.scores("images"), round_.adoption() or []
    batch = data.read(STEPS)
    assert {data.base_side(p) for p in range(8)} == {0, 1} and any(data.fused)
    for n, step in enumerate(STEPS):
        pair, row = data.pairs[step.pair], rows[step.pair]
        exchanged = scores[pair.reference] < scores[pair.base]
        base = load_file(round_.trajectory(pair.base))["latents"]
        made = round_.target(step.pair) if row["adopted"] else round_.trajectory(pair.reference)
        other = load_file(made)["latents"]
        sides = (base, other) if exchanged else (other, base)
        for side, latents in enumerate(sides):
            assert batch.x[n, side].equal(latents[step.i])
            assert batch.x_next[n, side].equal(latents[step.i + 1])
        if row["adopted"] and step.i == 0:  # not fused yet: the same states
            assert batch.x[n, 0].equal(batch.x[n, 1])
        value = row["target"] if row["adopted"] else scores[pair.reference]
        ordered = (scores[pair.base], value) if exchanged else (value, scores[pair.base])
        if both.session.settings.pair.adoption == "eq7":
            assert ordered[0] >= ordered[1]
        first, second = batch.advantages[n].tolist()
        assert (first - second) * (ordered[0] - ordered[1]) >= 0


def test_bases_are_known_on_either_side(both: Trainer) -> None:
    """Their log-probs are those of sampling, and targets are found on the other side."""
    policy, data = both.session.policy(0), both.data(0)
    assert sampling_gap(policy, both.network, data, STEPS) < 1e-4
    updater = both.updater(policy, data)
    fused = [step for step in STEPS if data.fused[step.pair] and step.i == 3]
    shifts = []
    for side in (0, 1):
        chosen = [step for step in fused if data.base_side(step.pair) == side]
        assert chosen
        shifts.append(updater.backward(chosen).figures()["fusion_shift"][3])
    # Without its base's noise, a target's step is off by what fusion did, and a base's by nothing.
    assert all(1e-4 < shift < 0.5 for shift in shifts), shifts
    stir(both)

"""A trainer beside a finished round of the tiny model."""

from pathlib import Path

import pytest

from dfusion.rounds.session import open_session
from dfusion.training.trainer import Trainer
from tests.conftest import make_settings
from tests.training.updates import stir


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Trainer:
    """A trainer beside a finished round, sampled with a LoRA that is not zero."""
    settings = make_settings(tmp_path_factory.mktemp("training"), pipeline_folder)
    settings.pair.adoption_threshold = 0.0
    settings.train.batch_size = 8
    trainer = Trainer(open_session(settings))
    stir(trainer)
    trainer.session.runner.run(0, trainer.session.policy(0))
    return trainer


@pytest.fixture
def trainer(trained_on: Trainer) -> Trainer:
    """The same for every test, with the LoRA that sampled."""
    stir(trained_on)
    return trained_on

"""A run of the testbed's model to look at in a browser."""

import json
import shutil
from pathlib import Path

import pytest

from dfusion.settings.presets import PRESETS
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json
from dfusion.training.trainer import train_rounds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of training with the testbed's model: two prompts, four images each."""
    folder = tmp_path_factory.mktemp("browser")
    items = json.loads((ROOT / "config/prompt/demo_item.json").read_text())
    (folder / "prompts.json").write_text(json.dumps(list(items)[:2]))
    settings = PRESETS["testbed"]()
    settings.prompt_file = str(folder / "prompts.json")
    settings.item_idx_file = str(ROOT / "config/prompt/demo_item.json")
    settings.mask_thr_file, settings.mask_thr = "", "1e-6"  # none of the repository's to change
    settings.mask.merge = "or"  # a higher threshold can only make the mask smaller
    settings.save_path, settings.exp_name = str(folder / "data"), "real"
    settings.sample.batch_size = 4
    settings.eval.in_process, settings.device = True, "cpu"
    settings.train.compare_images, settings.train.updates_per_inner_epoch = 2, 1
    train_rounds(settings)
    return folder / "data"


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """The run twice, "one" and "two"; the second with other scores after training."""
    for name in ("one", "two"):
        shutil.copytree(trained / "real", tmp_path / "data" / name)
    later = Experiment(tmp_path / "data" / "two").comparison(1)
    reward = read_json(later.scores_file("images"))["reward"]
    later.write_scores("images", reward, dict.fromkeys(later.scores("images"), 0.5))
    return tmp_path / "data"

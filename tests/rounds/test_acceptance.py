"""Nothing is written before everything is accepted, and what ended a run is known afterwards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfusion.commands.verify import main, verify
from dfusion.errors import UserError
from dfusion.rounds import runner, session
from dfusion.rounds.session import sample_rounds
from dfusion.settings.plain_values import settings_of
from dfusion.settings.schema import Settings
from dfusion.storage import last_error
from dfusion.training.trainer import train_rounds
from dfusion.view.folders import Data
from dfusion.view.runs import run


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Settings:
    """The settings of a finished run, and its experiment, copied."""
    shutil.copytree(whole, tmp_path / "data" / whole.name)
    values = json.loads((whole / "config.json").read_text())["settings"]
    settings = settings_of(values, "config.json")
    settings.save_path = str(tmp_path / "data")
    return settings


def contents(settings: Settings) -> dict[str, bytes]:
    """All files but the locks."""
    files = (p for p in Path(settings.save_path).rglob("*") if p.is_file())
    return {str(p): p.read_bytes() for p in files if not p.name.startswith(".")}


def fused(settings: Settings) -> None:
    settings.fusion.steps = "2-1"


def compared(settings: Settings) -> None:
    settings.train.compare_images, settings.train.num_epochs = 2, 2


def ranked(settings: Settings) -> None:
    settings.train.lora_rank, settings.train.num_epochs = 2, 2


REFUSED = [
    (sample_rounds, fused, r"pairs.json: .*fusion steps \(3-1 -> 2-1\)"),
    (train_rounds, ranked, "does not fit"),
    (train_rounds, compared, "compare_images 2: .*compare/epoch0 has 1 of each prompt"),
]


@pytest.mark.parametrize(("command", "change", "message"), REFUSED)
def test_a_refused_change_leaves_the_experiment_as_it_was(
    again: Settings,
    command: Callable[[Settings], Path],
    change: Callable[[Settings], None],
    message: str,
) -> None:
    before = contents(again)
    change(again)
    again.allow_config_change = True
    with pytest.raises(UserError, match=message):
        command(again)
    assert contents(again) == before


def test_no_more_comparisons_is_no_change(again: Settings) -> None:
    again.train.compare_images = 0
    train_rounds(again)


def test_settings_with_which_nothing_is_made_are_not_noted(
    again: Settings, capsys: pytest.CaptureFixture
) -> None:
    """The command that made the run still works, and its targets are still good."""
    folder = Path(again.save_path) / again.exp_name
    before = (folder / "config.json").read_bytes()
    fused(again)
    again.allow_config_change = True
    train_rounds(again)
    assert "without effect: fusion.steps (3-1 -> 2-1)" in capsys.readouterr().out
    assert (folder / "config.json").read_bytes() == before


def test_rounds_of_several_settings_are_verified_each_by_its_own(again: Settings) -> None:
    fused(again)
    again.pair.adoption_threshold = -100.0
    again.allow_config_change, again.train.num_epochs = True, 2
    assert verify(train_rounds(again)) == []


@pytest.mark.parametrize("command", [sample_rounds, train_rounds])
def test_a_refused_command_leaves_no_folder(
    settings: Settings, command: Callable[[Settings], Path]
) -> None:
    settings.pretrained.model = "no/such/model"
    with pytest.raises(UserError, match="there is no"):
        command(settings)
    assert not Path(settings.save_path).exists()


@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), UserError("NaN in sample 3")])
def test_the_last_error_is_kept_until_a_run_gets_going(
    again: Settings,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = Path(again.save_path) / again.exp_name
    next(folder.glob("epoch0/trajectories/*")).unlink()

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(runner, "sample", fail)
    with pytest.raises(type(error)):
        sample_rounds(again)
    monkeypatch.undo()
    crash = isinstance(error, RuntimeError)
    message = last_error.last(folder)
    assert ("RuntimeError: out of\\nmemory" if crash else "NaN in sample 3") in message
    assert ("traceback" in json.loads((folder / "error.json").read_text())) == crash
    main([str(folder)])
    assert f"note: {message}" in capsys.readouterr().out
    assert run(Data(folder.parent), folder.name)["error"] == message
    sample_rounds(again)
    assert last_error.last(folder) == ""
    main([str(folder)])
    assert "note:" not in capsys.readouterr().out


def test_a_full_disk_takes_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    last_error.keep(tmp_path, UserError("x"))
    last_error.keep(tmp_path / "vanished", UserError("x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("native", "precision"), [(False, "bf16"), (True, "bf16"), (False, "no")])
def test_a_processor_that_emulates_bf16_says_so(
    again: Settings,
    native: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(session, "cpu_has_bf16", lambda: native)
    again.mixed_precision, again.exp_name = precision, "new"  # type: ignore[assignment]
    session.open_session(again)
    said = "mixed_precision no is faster here" in capsys.readouterr().out
    assert said == (precision == "bf16" and not native)

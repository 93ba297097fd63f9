"""States of rounds that were trained on are dropped when asked, and nothing else changes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.report import page
from dfusion.rounds import runner
from dfusion.rounds.session import sample_rounds
from dfusion.settings.check import check
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import DROPPED, STATES, Experiment
from dfusion.training.trainer import train_rounds
from tests.conftest import PROMPTS, make_settings, small
from tests.faults import contents, difference


def of(settings: Settings, count: int, name: str, keep: str) -> Settings:
    return replace(small(settings, count, name), keep_trajectories=keep)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Settings:
    """Two rounds with all states, "whole", and the same without any, "none"."""
    settings = make_settings(tmp_path_factory.mktemp("keep"), pipeline_folder)
    settings.train = replace(settings.train, compare_images=0)
    for name, keep in (("whole", "all"), ("none", "none")):
        train_rounds(of(settings, 2, name, keep))
    return settings


def folder_of(made: Settings, name: str) -> Path:
    return Path(made.save_path) / name


def copied(made: Settings, name: str, to: str) -> Path:
    return Path(shutil.copytree(folder_of(made, name), folder_of(made, to)))


def without_states(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in found.items()
        if not set(Path(name).parts) & {*STATES, DROPPED}
    }


def kept(folder: Path) -> list[int]:
    """Rounds that have any states."""
    found = Experiment(folder).rounds().items()
    return [k for k, r in found if any((r.folder / kind).exists() for kind in STATES)]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The round of every batch that is sampled or fused from here on."""
    seen: list[int] = []

    def noting(work: Callable) -> Callable:
        def noted(policy: Any, *args: Any) -> Any:
            seen.append(policy.round)
            return work(policy, *args)

        return noted

    for name in ("sample", "make_targets"):
        monkeypatch.setattr(runner, name, noting(getattr(runner, name)))
    return seen


def test_all_but_the_states_stays(made: Settings) -> None:
    whole, none = folder_of(made, "whole"), folder_of(made, "none")
    assert (kept(whole), kept(none)) == ([0, 1], [])
    assert difference(*(without_states(contents(folder)) for folder in (whole, none))) == []
    assert verify(none) == []
    pages = [page.answers(folder) for folder in (none, whole)]
    assert [*pages[0].values()][2:] == [*pages[1].values()][2:]  # what they show of the rounds


def test_the_newest_rounds_states_are_kept(made: Settings) -> None:
    folder = copied(made, "whole", "last")
    for keep, left in (("all", [0, 1]), ("last", [1]), ("none", []), ("all", [])):
        train_rounds(of(made, 2, "last", keep))
        assert kept(folder) == left
        assert verify(folder) == []


def test_a_run_goes_on_without_them(made: Settings, sampled: list[int]) -> None:
    folder = copied(made, "none", "longer")
    train_rounds(of(made, 3, "longer", "none"))
    assert set(sampled) == {2}
    assert kept(folder) == [] and verify(folder) == []
    sampled.clear()
    sample_rounds(of(made, 1, "longer", "none"))
    assert sampled == [] and kept(folder) == []


@pytest.mark.parametrize("left", [STATES, ("trajectories",), ("targets",)], ids="+".join)
def test_a_run_killed_before_or_while_dropping_ends_alike(
    made: Settings, sampled: list[int], left: tuple[str, ...]
) -> None:
    """Before: the checkpoint is there, and all states. While: the mark, and some of them."""
    folder = copied(made, "none", f"killed_{left[0]}_{len(left)}")
    for kind in left:
        if (source := folder_of(made, "whole") / "epoch1" / kind).exists():
            shutil.copytree(source, folder / "epoch1" / kind)
    if left == STATES:
        (folder / "epoch1" / DROPPED).unlink()
    else:
        assert any("left" in problem for problem in verify(folder))
    train_rounds(of(made, 2, folder.name, "none" if left == STATES else "all"))
    assert difference(contents(folder_of(made, "none")), contents(folder)) == []
    assert sampled == []


def test_a_round_that_is_trained_on_again_is_sampled_again(
    made: Settings, sampled: list[int]
) -> None:
    """As after `dfusion verify` found its checkpoint damaged and had it removed."""
    folder = copied(made, "none", "again")
    shutil.rmtree(folder / "checkpoints" / "epoch1")
    (problem,) = verify(folder)
    assert "epoch1" in problem and "run the same command again" in problem
    train_rounds(of(made, 2, "again", "all"))
    assert set(sampled) == {1}
    assert kept(folder) == [1] and verify(folder) == []
    states = {k: v for k, v in contents(folder_of(made, "whole")).items() if "epoch1/t" in k}
    assert states and difference(states, {k: contents(folder)[k] for k in states}) == []


def test_the_app_says_that_states_are_not_kept(made: Settings) -> None:
    viewing = pytest.importorskip("tests.viewing")
    client = viewing.client_of(Path(made.save_path))
    where = {"exp": "none", "round": "epoch0"}
    assert client.get("/api/round", params=where).json()["kept"] is False
    assert client.get("/api/round", params={**where, "exp": "whole"}).json()["kept"] is True
    for path, more in (
        ("/strip", {"kind": "images", "i": 0}),
        ("/strip", {"kind": "target_images", "i": 0}),
        ("/api/thresholds", {"prompt": PROMPTS[0]}),
    ):
        answer = client.get(path, params={**where, **more})
        assert answer.status_code == 404
        assert "not kept" in answer.json()["error"]


def test_a_word_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="--config.keep_trajectories 'some': choose from all"):
        check(replace(Settings(), keep_trajectories="some"))

"""Rounds whose targets are made without fusion: recorded, verified, trained on, estimated."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.rounds import session
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, write_json
from dfusion.training.order import Step
from dfusion.training.trainer import Trainer, train_rounds
from tests.conftest import metrics_of, small


@pytest.fixture
def chosen(settings: Settings) -> Settings:
    """One round; every target is adopted; the first of four steps is the base's own."""
    settings.pair.adoption = "all"
    return small(settings, 1, "controls")


@pytest.mark.parametrize("kind", ["branch", "renoise"])
@pytest.mark.parametrize("method", ["dpo", "ddpo"])
def test_a_round_trains_on_them(chosen: Settings, kind: str, method: str) -> None:
    chosen.fusion.kind, chosen.train.method = kind, method
    chosen.train.loser_limit = 1.0
    folder = train_rounds(chosen)
    assert verify(folder) == []
    rows = metrics_of(folder)
    assert rows[0]["fusion_shift"] == [None] * 4  # nothing was fused
    assert rows[-1]["mask_coverage"] is None and rows[-1]["adopted"] == 1
    trained = [share > 0 for share in rows[0]["gradient_share"]]
    # DPO learns nothing from what both sides share; a noised image has no trajectory before it.
    assert trained == [kind == "branch" and method == "ddpo", True, True, True]
    card = (folder / "checkpoints/epoch0/README.md").read_text()
    assert f"dfusion (targets by {kind}, steps 3-1), loser_limit 1.0 |" in card


def test_a_branch_was_sampled_by_the_policy_itself(chosen: Settings) -> None:
    """Its log-probs are the density of its noise: it may be trained on like any sample."""
    chosen.fusion.kind = "branch"
    session.sample_rounds(chosen)
    trainer = Trainer(session.open_session(chosen))
    data, policy = trainer.data(0), trainer.session.policy(0)
    for p, pair in enumerate(data.pairs):
        assert data.fused[p] and not data.walked_fused(Step(p, 2))
        states = load_file(data.round.target(p))["latents"]
        _, z = policy.other_noise([pair.base])
        cond = policy.model.encode([pair.prompt])
        for i in (1, 3):
            with torch.no_grad():
                output, _ = policy.predict(states[i][None], i, cond)
            mean, std = policy.sampler.transition(states[i][None], output, i)
            assert torch.allclose(states[i + 1], (mean + std * z[:, i])[0], atol=1e-4)


def test_how_targets_were_made_is_recorded(chosen: Settings) -> None:
    folder = session.sample_rounds(chosen)
    file = folder / "epoch0/pairs.json"
    assert read_json(file)["made_with"]["target kind"] == "attention"
    chosen.fusion.kind = "branch"
    chosen.allow_config_change = True
    with pytest.raises(UserError, match="target kind .attention -> branch"):
        session.sample_rounds(chosen)


def test_a_round_from_before_there_were_kinds_is_a_fused_one(chosen: Settings) -> None:
    folder = session.sample_rounds(chosen)
    file, round_ = folder / "epoch0/pairs.json", Experiment(folder).round(0)
    content = read_json(file)
    for key in ("target kind", "mask place", "fusion text"):
        del content["made_with"][key]
    write_json(file, content)
    session.sample_rounds(chosen)
    assert round_.pairs_made_with()["target kind"] == "attention"
    chosen.fusion.text, chosen.allow_config_change = "own", True
    with pytest.raises(UserError, match="fusion text .fused -> own"):
        session.sample_rounds(chosen)


def test_a_round_from_before_sizes_were_noted_has_the_models_own(chosen: Settings) -> None:
    folder = session.sample_rounds(chosen)
    file = folder / "epoch0/manifest.json"
    content = read_json(file)
    del content["made_with"]["size"], content["made_with"]["maps"]
    write_json(file, content)
    session.sample_rounds(chosen)
    chosen.sample.height, chosen.allow_config_change = 24, True
    chosen.mask.maps = "all"
    with pytest.raises(UserError, match=r"size \(None -> \[24, 16\]\), maps \(prompt -> all\)"):
        session.sample_rounds(chosen)


def test_samples_are_shared_but_targets_are_not(chosen: Settings) -> None:
    folder = session.sample_rounds(chosen)
    other = dataclasses.replace(chosen, exp_name="other", samples_from=str(folder))
    other.fusion = dataclasses.replace(chosen.fusion, kind="renoise")
    again = session.sample_rounds(other)
    ours, theirs = (Round(k / "epoch0") for k in (again, folder))
    assert ours.trajectory(0).read_bytes() == theirs.trajectory(0).read_bytes()
    a, b = (load_file(round_.target(0))["latents"] for round_ in (ours, theirs))
    assert not a.equal(b)
    shutil.rmtree(folder)
    assert verify(again) == []

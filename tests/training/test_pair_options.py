"""Options that act on a pair: the mask's cells in log-probs, and the loser held back."""

import pytest
import torch
from safetensors.torch import load_file

from dfusion.method.losses import DDPO, DPO
from dfusion.method.masks import cell_weights
from dfusion.method.objective import Objective
from dfusion.method.safeguard import loser_scale, with_loser_scaled
from dfusion.training.gradients import transitions
from dfusion.training.order import Step
from dfusion.training.pairs import TrainingRound
from dfusion.training.trainer import Trainer
from tests.training.updates import close, gradients, stir


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_log_probs_weigh_the_cells_of_the_mask(trainer: Trainer, outside: float) -> None:
    """Against torch's Normal, averaged by hand; without a mask, the plain average."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    assert len(set(data.fused)) == 2, "some pairs are adopted and some are not"
    steps = [Step(p, i) for p in range(4) for i in range(4)]
    updater = trainer.updater(policy, data)
    updater.objective = Objective(DDPO(), outside_weight=outside)
    updater.remember(steps)
    found, partly = updater.old.log_prob, 0
    batch = data.read(steps)
    with torch.no_grad():
        plain = transitions(policy, trainer.network, batch)
    std = policy.sampler.std[batch.i].view(-1, 1, 1, 1, 1)
    each = torch.distributions.Normal(plain.mean, std).log_prob(batch.x_next)
    for n, step in enumerate(steps):
        cells = torch.ones(8, 8)
        if data.fused[step.pair]:
            mask = load_file(data.round.target(step.pair))["masks"][step.i]
            large = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
            cells = torch.where(large, 1.0, outside) if mask.any() else cells
            partly += int(0 < mask.sum() < mask.numel())
        expected = (each[n] * cells).sum((1, 2, 3)) / (4 * cells.sum())
        assert found[step.pair, step.i].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert partly > 0


def test_only_fused_targets_have_masks(trainer: Trainer) -> None:
    data, experiment = trainer.data(0), trainer.session.experiment
    for p in range(4):
        assert (data.mask(Step(p, 2)) is not None) == data.fused[p]
    for source in ("naive", "inversion"):
        other = TrainingRound(experiment, 0, source, fused_from=1)
        assert all(other.mask(Step(p, 2)) is None for p in range(4))


def test_an_empty_mask_and_a_full_one_weigh_all_cells_alike() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[1], masks[2, 0, 0] = True, True
    for outside in (0.0, 0.5, 1.0):
        weights = cell_weights(masks, outside, (8, 8))
        assert weights[:2].eq(1).all() and weights.mean((1, 2)).tolist() == [1, 1, 1]
        assert weights[2, 7, 7] / weights[2, 0, 0] == outside


def test_the_safeguard_by_hand() -> None:
    """|w|^2 is 4. Losers: along w by 8, of which a half is allowed; by 1; against it."""
    pulls = torch.tensor([[[2.0, 0], [4, 1]], [[2, 0], [0.5, 3]], [[2, 0], [-9, 1]]])
    assert loser_scale(pulls, 1.0).tolist() == [0.5, 1, 1]
    assert loser_scale(pulls, 0.5).tolist() == [0.25, 1, 1]
    assert loser_scale(pulls, 0.125).tolist() == [0.0625, 0.5, 1]


def test_the_winner_keeps_its_share_of_every_step() -> None:
    """One output for both sides: a step along the pair's gradient never lowers the winner's
    log-prob, and raises it by at least 1 - limit of what the winner alone would give."""
    rng = torch.Generator().manual_seed(0)
    for limit in (0.3, 1.0):
        for _ in range(50):
            output, *aims = torch.randn((3, 6), generator=rng, dtype=torch.float64)
            output.requires_grad_()
            log_prob = torch.stack([-(output - aim).square().mean() for aim in aims])[None]
            pulls = torch.stack([aim - output.detach() for aim in aims])[None]
            (alone,) = torch.autograd.grad(log_prob[0, 0], output, retain_graph=True)
            held = with_loser_scaled(log_prob, loser_scale(pulls, limit))
            assert held.equal(log_prob)
            (step,) = torch.autograd.grad(held[0, 0] - held[0, 1], output)
            assert step @ alone >= (1 - limit) * alone @ alone - 1e-12


def test_the_safeguarded_update_does_not_depend_on_micro_batches(trainer: Trainer) -> None:
    objective = Objective(DPO(eps=0), loser_limit=0.5)
    one, _ = gradients(trainer, objective=objective, moved=True, batch_size=1)
    many, _ = gradients(trainer, objective=objective, moved=True, batch_size=7)
    free, _ = gradients(trainer, objective=Objective(DPO(eps=0)), moved=True)
    assert close(many, one) and not close(one, free)
    ppo = [gradients(trainer, objective=Objective(DDPO(), loser_limit=k))[0] for k in (0.0, 0.5)]
    assert close(*ppo)  # there is no loser


def test_the_safeguarded_gradient_at_the_output(trainer: Trainer) -> None:
    """Of each step: the winner's is untouched, the loser's is scaled, by the formula from files."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [Step(p, 2) for p in range(4)]
    pulls = []
    for limit in (0.0, 0.6):
        updater = trainer.updater(policy, data)
        updater.objective = Objective(DPO(eps=0), loser_limit=limit)
        batch = updater._read(steps, updater._index(steps))
        now = updater._evaluate(trainer.network, batch, updater._index(steps))
        held = updater._with_loser_held(batch, now)
        sides = torch.autograd.grad((held[:, 0] - held[:, 1]).sum(), now.output)[0]
        pulls.append(sides.unflatten(0, (-1, 2)))
    free, held = pulls
    assert held[:, 0].equal(free[:, 0])
    for n in range(4):
        winner, loser = free[n, 0].flatten(), -free[n, 1].flatten()
        along = float(winner @ loser)
        factor = min(1.0, 0.6 * float(winner @ winner) / along) if along > 0 else 1.0
        assert torch.allclose(held[n, 1], factor * free[n, 1], rtol=1e-3, atol=1e-9)
    stir(trainer)

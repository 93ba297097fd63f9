"""Options that act on a pair: the mask's cells in log-probs, and the loser held back."""

import pytest
import torch
from safetensors.torch import load_file

from dfusion.method.losses import DDPO, DPO, DiffusionKTO, Loss
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
    alike = torch.tensor([[-3.0, 3.0]]).expand(3, 2)
    assert loser_scale(pulls, alike, 1.0).tolist() == [0.5, 1, 1]
    assert loser_scale(pulls, alike, 0.5).tolist() == [0.25, 1, 1]
    assert loser_scale(pulls, alike, 0.125).tolist() == [0.0625, 0.5, 1]
    # The loss weighs the winner half as much as the loser; or not at all.
    assert loser_scale(pulls, torch.tensor([[-1.0, 2.0]]).expand(3, 2), 0.5).tolist() == [
        0.125,
        1,
        1,
    ]
    assert loser_scale(pulls, torch.tensor([[0.0, 2.0]]).expand(3, 2), 0.5).tolist() == [0, 0, 1]


def test_the_winner_keeps_its_share_of_every_step() -> None:
    """One output for both sides: a step along the pair's gradient never lowers the winner's
    log-prob, and raises it by at least 1 - limit of what the winner alone would give, however
    differently the loss weighs the two."""
    rng = torch.Generator().manual_seed(0)
    for limit in (0.3, 1.0):
        for n in range(50):
            output, *aims = torch.randn((3, 6), generator=rng, dtype=torch.float64)
            output.requires_grad_()
            log_prob = torch.stack([-(output - aim).square().mean() for aim in aims])[None]
            pulls = torch.stack([aim - output.detach() for aim in aims])[None]
            (along,) = torch.autograd.grad(log_prob[0, 0], output, retain_graph=True)
            slopes = torch.rand((1, 2), generator=rng, dtype=torch.float64) * (n % 5 > 0)
            held = with_loser_scaled(log_prob, loser_scale(pulls, slopes, limit))
            assert held.equal(log_prob)
            winner, loser = slopes[0]
            (step,) = torch.autograd.grad(winner * held[0, 0] - loser * held[0, 1], output)
            assert step @ along >= (1 - limit) * winner * along @ along - 1e-12


@pytest.mark.parametrize("loss", [DPO(eps=0.1), DPO(eps=0), DiffusionKTO(diffusion_beta=50.0)])
def test_the_safeguard_knows_how_the_loss_weighs_both_sides(trainer: Trainer, loss: Loss) -> None:
    """The slopes that it is given, against the gradients of the losses themselves."""
    policy, data = trainer.session.policy(0), trainer.data(0)
    updater = trainer.updater(policy, data)
    updater.objective = Objective(loss, loser_limit=0.5)
    steps = [Step(p, i) for p in range(4) for i in (1, 2)]
    updater.remember(steps)
    updater.fresh = False
    index = updater._index(steps)
    updater.old.log_prob += torch.randn(updater.old.log_prob.shape) / 5  # some ratios are clipped
    asked: list[torch.Tensor] = []
    updater._with_loser_held = lambda batch, now, slopes: asked.append(slopes) or now.log_prob
    updater.backward(steps)
    batch = updater._read(steps, index)
    log_prob = updater._evaluate(trainer.network, batch, index).log_prob.detach().requires_grad_()
    zero = torch.zeros_like(log_prob)
    value = updater.objective(updater._steps(index, log_prob, zero), zero)
    expected = torch.autograd.grad(value.loss.sum(), log_prob)[0]
    assert torch.allclose(torch.cat(asked), expected, rtol=1e-4)
    unlike = (expected[:, 0].abs() / expected[:, 1].abs() - 1).abs() > 0.01
    assert unlike.any()
    stir(trainer)


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
        alike = torch.ones(4, 2)  # as the difference below weighs both sides
        held = updater._with_loser_held(batch, now, alike) if limit else now.log_prob
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

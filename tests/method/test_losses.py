"""Eq. 6, 8, 9 against hand-derived numbers, torch.distributions and finite differences."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dfusion.method.advantages import normalised, statistics
from dfusion.method.losses import (
    DDPO,
    DPO,
    DPOK,
    FDFO,
    DiffusionDPO,
    DiffusionKTO,
    Loss,
    Noised,
    Steps,
    Value,
)
from dfusion.method.sampler import Sampler


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def steps(
    log_prob: list[Tensor],
    old: list[Tensor],
    advantage: list[Tensor] | None = None,
    kl: list[Tensor] | None = None,
) -> Steps:
    """Of two sides, (N,) each: preferred, base."""
    both = torch.stack(log_prob, -1)
    nothing, number = torch.zeros_like(both), torch.arange(len(both))
    return Steps(
        log_prob=both,
        old=torch.stack(old, -1),
        kl=nothing if kl is None else torch.stack(kl, -1),
        advantage=nothing if advantage is None else torch.stack(advantage, -1),
        weight=torch.ones_like(both[:, 0]),
        i=number,
        pair=number,
        prompt=number,
    )


def one_side(
    loss: Loss, log_prob: Tensor, old: Tensor, advantage: Tensor, kl: Tensor | None = None
) -> Value:
    """Of a loss whose sides are apart, with a base that adds nothing."""
    zero = torch.zeros_like(old)
    near = [zero if kl is None else kl, zero]
    return loss(steps([log_prob, zero], [old, zero], [advantage, zero], near))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    # r_target = e^0.05, r_base = e^-0.02: 0.1 (1.051271 - 0.980199) = 0.0071072
    given = steps([t(0.05), t(-0.02)], [t(0.0), t(0.0)])
    loss = DPO(beta=0.1, eps=0)(given).loss
    assert loss.item() == pytest.approx(-math.log(sigmoid(0.0071072426)), rel=1e-9)
    assert given.ratio.tolist() == [pytest.approx([1.0512710964, 0.9801986733])]
    log = DPO(beta=0.1, ratio="log_ratio", eps=0)(given).loss
    assert log.item() == pytest.approx(-math.log(sigmoid(0.1 * 0.07)), rel=1e-12)


def test_dpo_clip_by_hand() -> None:
    # r_target = e^0.3 = 1.35 is held at 1.1 and gives no gradient; r_base = e^-0.05 is free.
    target, base = t(0.3).requires_grad_(), t(-0.05).requires_grad_()
    loss = DPO(beta=2.0, eps=0.1)(steps([target, base], [t(0.0), t(0.0)]))
    r_base = math.exp(-0.05)
    assert loss.loss.item() == pytest.approx(-math.log(sigmoid(2 * (1.1 - r_base))), rel=1e-12)
    assert loss.clipped is not None and loss.clipped.tolist() == [[True, False]]
    log = DPO(beta=2.0, ratio="log_ratio")(steps([t(0.3), t(-0.05)], [t(0.0), t(0.0)]))
    expected = -math.log(sigmoid(2 * (math.log(1.1) + 0.05)))
    assert log.loss.item() == pytest.approx(expected, rel=1e-12)
    loss.loss.sum().backward()
    assert target.grad is not None
    assert base.grad is not None
    assert target.grad.item() == 0
    # d/d log p_base of -log sigmoid(b (1.1 - r)) = b r sigmoid(-b (1.1 - r))
    assert base.grad.item() == pytest.approx(2 * r_base * sigmoid(-2 * (1.1 - r_base)), rel=1e-12)


def test_dpo_at_the_start_of_a_round() -> None:
    """Ratio exactly 1: loss log 2, gradient beta / 2 up on the target and down on the base."""
    target, base = t(-1.234).requires_grad_(), t(-1.5).requires_grad_()
    given = steps([target, base], [target.detach(), base.detach()])
    loss = DPO(beta=0.1)(given)
    assert loss.loss.item() == math.log(2)
    assert given.ratio.tolist() == [[1.0, 1.0]]
    loss.loss.sum().backward()
    assert target.grad is not None
    assert base.grad is not None
    assert target.grad.item() == pytest.approx(-0.05, rel=1e-12)
    assert base.grad.item() == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "value", "clipped"),
    [
        (2.0, 0.05, -2 * math.exp(0.05), False),
        (2.0, 0.5, -2 * 1.1, True),  # gains nothing beyond 1.1
        (2.0, -0.5, -2 * math.exp(-0.5), False),  # but may come back
        (-2.0, 0.5, 2 * math.exp(0.5), False),
        (-2.0, -0.5, 2 * 0.9, True),
        (9.0, 0.0, -5.0, False),  # advantages are clamped to 5
    ],
)
def test_ddpo_by_hand(advantage: float, log_ratio: float, value: float, clipped: bool) -> None:
    loss = one_side(DDPO(), t(log_ratio), t(0.0), t(advantage))
    assert loss.loss.item() == pytest.approx(value, rel=1e-12)
    assert loss.clipped is not None and loss.clipped.tolist() == [[clipped, False]]


def test_dpok_by_hand() -> None:
    loss = one_side(DPOK(), t(0.05), t(0.0), t(2.0), t(0.3))
    assert loss.loss.item() == pytest.approx(0.99 * -2 * math.exp(0.05) + 0.01 * 0.3, rel=1e-12)


OLD = [t(-1.0, -1.2), t(-1.1, -0.9)]
ADVANTAGE = [t(1.5, -0.5), t(-0.7, 0.2)]
FREE: dict[str, Loss] = {
    "dpo": DPO(beta=3.0, eps=0),
    "dpo log": DPO(beta=3.0, ratio="log_ratio", eps=0),
    "ddpo": DDPO(eps=0),
    "dpok": DPOK(eps=0),
}


@pytest.mark.parametrize("name", FREE)
def test_gradients_against_finite_differences(name: str) -> None:
    a, b = t(-1.02, -1.15).requires_grad_(), t(-1.05, -0.97).requires_grad_()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return FREE[name](steps([a, b], OLD, ADVANTAGE, [a.square(), b.square()])).loss

    assert torch.autograd.gradcheck(loss, (a, b), eps=1e-7, atol=1e-8)


def test_policy_gradient_of_a_gaussian() -> None:
    """Eq. 8's gradient, A grad log p, through the whole chain mean -> log-prob -> loss."""
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    x = torch.randn(1, 4, 3, 3, generator=rng, dtype=torch.float64)
    std = t(0.4)
    log_prob = Sampler.log_prob(x, mean, std)
    one_side(DDPO(), log_prob, log_prob.detach(), t(1.5)).loss.sum().backward()
    free = mean.detach().clone().requires_grad_()
    density = torch.distributions.Normal(free, std).log_prob(x.double()).mean()
    (-1.5 * density).backward()
    assert mean.grad is not None
    assert torch.allclose(mean.grad, free.grad, rtol=1e-5)


def test_statistics_by_hand() -> None:
    stats = statistics({"p": [1.0, 2.0, 3.0, 6.0], "q": [0.5, 0.5]})
    assert stats["p"] == pytest.approx((3.0, math.sqrt(3.5)))
    assert normalised(6.0, *stats["p"]) == pytest.approx(3 / math.sqrt(3.5), rel=1e-5)
    assert normalised(0.5, *stats["q"]) == 0.0


def test_diffusion_dpo_by_the_published_training_code() -> None:
    """As diffusers' example computes it, from squared errors of winners and losers."""
    rng = torch.Generator().manual_seed(0)
    shape = (3, 2, 4, 8, 8)
    aim, output, first = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    loss = DiffusionDPO(diffusion_beta=6.0, reference="initial")
    now, before = (
        loss.agreement(Noised(given, aim, aim, given, DOWN)) for given in (output, first)
    )
    assert loss.to_initial and not DiffusionDPO().to_initial
    ours = loss(steps(list(now.unbind(-1)), list(before.unbind(-1)))).loss
    losses = (output - aim).pow(2).mean((2, 3, 4))
    of_first = (first - aim).pow(2).mean((2, 3, 4))
    differences = losses[:, 0] - losses[:, 1], of_first[:, 0] - of_first[:, 1]
    inside = -0.5 * 6.0 * (differences[0] - differences[1])
    assert ours.tolist() == pytest.approx((-torch.log(torch.sigmoid(inside))).tolist(), rel=1e-9)


def test_diffusion_kto_by_hand() -> None:
    """Q = 1 (a, b): liked .3 and -.1, disliked .2 and .4; their mean, .2, is the reference."""
    given = steps([t(0.3, -0.1), t(0.2, 0.4)], [t(0, 0), t(0, 0)])
    given = dataclasses.replace(given, weight=t(1, 2))
    loss = DiffusionKTO(diffusion_beta=1.0)(given).loss
    first = 1 - sigmoid(0.3 - 0.2) + 1 - sigmoid(0.2 - 0.2)
    second = 1 - sigmoid(-0.1 - 0.2) + 1 - sigmoid(0.2 - 0.4)
    assert loss.item() == pytest.approx(first + 2 * second, rel=1e-12)
    below = steps([t(-0.3), t(-0.2)], [t(0), t(0)])  # a mean below 0 counts as 0
    expected = 1 - sigmoid(-0.3) + 1 - sigmoid(0.2)
    assert DiffusionKTO(diffusion_beta=1.0)(below).loss.item() == pytest.approx(expected, rel=1e-12)


DOWN = -torch.ones(1, 1, 1, 1, 1)  # a higher output ends in a lower image, as for noise


def fdfo(
    loss: FDFO, output: Tensor, old: Tensor, x0: Tensor, rewards: Tensor, uphill: Tensor = DOWN
) -> Tensor:
    """The loss of one pair, summed over sides."""
    agree = loss.agreement(Noised(output, old, x0, old, uphill))
    before = loss.agreement(Noised(old, old, x0, old, uphill))
    sides = [list(part.unbind(-1)) for part in (agree, before, rewards)]
    return loss(steps(*sides)).loss.sum()


def test_fdfo_moves_along_the_gradient_of_a_linear_reward() -> None:
    """R(x) = g x: known at two points only, its gradient is g's projection on their difference."""
    rng = torch.Generator().manual_seed(0)
    x0, old = (torch.randn((1, 2, 4, 4, 4), generator=rng, dtype=torch.float64) for _ in range(2))
    g = torch.randn((4, 4, 4), generator=rng, dtype=torch.float64)
    rewards = (g * x0).sum((2, 3, 4))
    output = old.clone().requires_grad_()
    loss = fdfo(FDFO(adv_clip_max=100.0), output, old, x0, rewards)
    (pull,) = torch.autograd.grad(loss, output)
    e = x0[0, 0] - x0[0, 1]
    projected = (g * e).sum() / e.square().sum() * e
    # A step against the gradient lowers the output, and so raises the image, along g.
    for side in (0, 1):
        assert torch.allclose(pull[0, side], 2 * projected, rtol=1e-5)
    of_x0 = fdfo(FDFO(adv_clip_max=100.0), output, old, x0, rewards, -DOWN)
    assert torch.allclose(torch.autograd.grad(of_x0, output)[0], -pull, rtol=1e-9)


def test_fdfo_leaves_alone_what_both_images_share() -> None:
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn((1, 1, 4, 4, 4), generator=rng).repeat(1, 2, 1, 1, 1)
    assert not FDFO.pull(x0).any()
    x0[0, 0, :, 1:3, 2:] += 1  # the target differs in a mask
    pull = FDFO.pull(x0)
    assert pull[0, :, :, 1:3, 2:].abs().min() > 0
    pull[0, :, :, 1:3, 2:] = 0
    assert not pull.any()


def test_fdfos_trust_region() -> None:
    """By hand: w .5, r 1.2, eps .1 gives .5 * 1.2 - .5 * .04 / .2; the base has w -.5, r 1."""
    given = steps([t(math.log(1.2)), t(0)], [t(0), t(0)], [t(1), t(0)])
    assert FDFO()(given).loss.item() == pytest.approx(-(0.6 - 0.1) + 0.5, rel=1e-12)
    assert FDFO(eps=0)(given).loss.item() == pytest.approx(-0.6 + 0.5, rel=1e-12)


def test_fdfo_is_not_swamped_by_one_pair() -> None:
    """A target that alone is right has a reward of 1 / (0 + 1e-6), normalised; and the pull along
    hardly any difference is 1 / |e| without the floor."""
    given = steps([t(math.log(1.2)), t(0)], [t(0), t(0)], [t(1e6), t(0)])
    held = steps([t(math.log(1.2)), t(0)], [t(0), t(0)], [t(5), t(0)])
    assert FDFO()(given).loss.equal(FDFO()(held).loss)
    assert FDFO(adv_clip_max=1)(given).loss.item() == pytest.approx(-(0.6 - 0.1) + 0.5, rel=1e-12)
    alike = torch.zeros(1, 2, 1, 1, 1)
    alike[0, 0] = 2e-4  # e = 1e-4, and 1e-4 / (1e-8 + 1e-6) = 99.0
    assert FDFO.pull(alike).flatten().tolist() == pytest.approx([99.0, -99.0], rel=1e-3)

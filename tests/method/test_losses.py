"""Eq. 6, 8, 9 against hand-derived numbers, torch.distributions and finite differences."""

import math

import pytest
import torch
from torch import Tensor

from dfusion.method.advantages import normalised, statistics
from dfusion.method.ddim import DDIM
from dfusion.method.losses import ddpo, dpo, dpok


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    # r_target = e^0.05, r_base = e^-0.02: 0.1 (1.051271 - 0.980199) = 0.0071072
    loss = dpo(t(0.05), t(-0.02), t(0.0), t(0.0), beta=0.1, clip=None)
    assert loss.value.item() == pytest.approx(-math.log(sigmoid(0.0071072426)), rel=1e-9)
    assert loss.ratio.tolist() == [pytest.approx([1.0512710964, 0.9801986733])]
    log = dpo(t(0.05), t(-0.02), t(0.0), t(0.0), beta=0.1, form="log_ratio", clip=None)
    assert log.value.item() == pytest.approx(-math.log(sigmoid(0.1 * 0.07)), rel=1e-12)


def test_dpo_clip_by_hand() -> None:
    # r_target = e^0.3 = 1.35 is held at 1.1 and gives no gradient; r_base = e^-0.05 is free.
    target, base = t(0.3).requires_grad_(), t(-0.05).requires_grad_()
    loss = dpo(target, base, t(0.0), t(0.0), beta=2.0, clip=0.1)
    r_base = math.exp(-0.05)
    assert loss.value.item() == pytest.approx(-math.log(sigmoid(2 * (1.1 - r_base))), rel=1e-12)
    assert loss.clipped.tolist() == [[True, False]]
    log = dpo(t(0.3), t(-0.05), t(0.0), t(0.0), beta=2.0, form="log_ratio", clip=0.1)
    expected = -math.log(sigmoid(2 * (math.log(1.1) + 0.05)))
    assert log.value.item() == pytest.approx(expected, rel=1e-12)
    loss.value.sum().backward()
    assert target.grad is not None
    assert base.grad is not None
    assert target.grad.item() == 0
    # d/d log p_base of -log sigmoid(b (1.1 - r)) = b r sigmoid(-b (1.1 - r))
    assert base.grad.item() == pytest.approx(2 * r_base * sigmoid(-2 * (1.1 - r_base)), rel=1e-12)


def test_dpo_at_the_start_of_a_round() -> None:
    """Ratio exactly 1: loss log 2, gradient beta / 2 up on the target and down on the base."""
    target, base = t(-1.234).requires_grad_(), t(-1.5).requires_grad_()
    loss = dpo(target, base, target.detach(), base.detach(), beta=0.1)
    assert loss.value.item() == math.log(2)
    assert loss.ratio.tolist() == [[1.0, 1.0]]
    loss.value.sum().backward()
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
    loss = ddpo(t(log_ratio), t(0.0), t(advantage))
    assert loss.value.item() == pytest.approx(value, rel=1e-12)
    assert loss.clipped.item() is clipped


def test_dpok_by_hand() -> None:
    loss = dpok(t(0.05), t(0.0), t(2.0), t(0.3))
    assert loss.value.item() == pytest.approx(0.99 * -2 * math.exp(0.05) + 0.01 * 0.3, rel=1e-12)


LOSSES = {
    "dpo": lambda a, b: dpo(a, b, t(-1.0, -1.2), t(-1.1, -0.9), beta=3.0, clip=None).value,
    "dpo log": lambda a, b: (
        dpo(a, b, t(-1.0, -1.2), t(-1.1, -0.9), beta=3.0, form="log_ratio", clip=None).value
    ),
    "ddpo": lambda a, b: ddpo(a, t(-1.0, -1.2), t(1.5, -0.5), clip=9.0).value + 0 * b,
    "dpok": lambda a, b: dpok(a, t(-1.0, -1.2), t(1.5, -0.5), b.square(), clip=9.0).value,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name: str) -> None:
    a, b = t(-1.02, -1.15).requires_grad_(), t(-1.05, -0.97).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (a, b), eps=1e-7, atol=1e-8)


def test_policy_gradient_of_a_gaussian() -> None:
    """Eq. 8's gradient, A grad log p, through the whole chain mean -> log-prob -> loss."""
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    x = torch.randn(1, 4, 3, 3, generator=rng, dtype=torch.float64)
    std = t(0.4)
    log_prob = DDIM.log_prob(x, mean, std)
    ddpo(log_prob, log_prob.detach(), t(1.5)).value.sum().backward()
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

"""What the objective adds to Eq. 6, 8 and 9: weights of steps, KL and reference policy."""

import pytest
import torch

from dfusion.method.ddim import ddim
from dfusion.method.flow import flow
from dfusion.method.losses import DDPO, DPO, LOSSES, DiffusionDPO, Steps
from dfusion.method.objective import Objective
from dfusion.method.sampler import Sampler
from dfusion.method.step_weights import Equal, Listed
from dfusion.settings.steps import parse_weights


def steps(weight: list[float]) -> Steps:
    rng, number = torch.Generator().manual_seed(0), torch.arange(len(weight))
    log_prob, old, advantage = (torch.randn((len(weight), 2), generator=rng) for _ in range(3))
    kl = torch.zeros_like(old)
    return Steps(log_prob, old, kl, advantage, torch.tensor(weight), number, number, number)


@pytest.mark.parametrize("method", LOSSES)
def test_kl_to_the_initial_model_is_added_for_both_sides(method: str) -> None:
    given, far = steps([1, 1, 0.5]), torch.tensor([[1.0, 2.0], [0.0, 0.5], [3.0, 0.0]])
    without = Objective(LOSSES[method]())(given, far).loss
    with_it = Objective(LOSSES[method](), kl_initial=0.25)(given, far).loss
    if LOSSES[method].whole_update:  # which weighs by itself, and gives one number
        assert float(with_it - without) == pytest.approx(1.25, abs=1e-5)
        assert without.equal(LOSSES[method]()(given).loss)
        return
    assert (with_it - without).tolist() == pytest.approx([0.75, 0.125, 0.375], abs=1e-5)
    assert without.tolist() == (LOSSES[method]()(given).loss * given.weight).tolist()


def test_equal_sides_count_only_where_something_acts_on_one_side() -> None:
    assert Objective().pairwise
    assert not Objective(kl_initial=0.1).pairwise
    assert not Objective(DDPO()).pairwise
    assert not Objective(DiffusionDPO()).pairwise  # noised images differ at all steps


@pytest.mark.parametrize(
    ("objective", "needs"),
    [
        (Objective(), False),
        (Objective(DPO(reference="initial")), True),
        (Objective(DDPO()), False),
        (Objective(LOSSES["dpok"](), kl_initial=0.1), True),
    ],
)
def test_the_initial_model_is_asked_only_where_needed(objective: Objective, needs: bool) -> None:
    assert objective.needs_initial is needs


def test_only_dpo_compares_with_the_initial_model() -> None:
    """A KL to the initial model needs its transitions as well, but PPO's ratio is to theta_old."""
    assert DPO(reference="initial").to_initial and not DPO().to_initial
    assert not any(LOSSES[method]().to_initial for method in ("ddpo", "dpok"))


SAMPLER = ddim(torch.linspace(0.999, 0.01, 1000).square(), torch.arange(951, 0, -50), 0.999, 1.0)


def test_weights_of_steps() -> None:
    weights = Listed((2, 0.5, 0))
    assert weights.of(SAMPLER).tolist() == [2, 0.5, 0]
    assert [weights.weighs(i, 3) for i in range(3)] == [True, True, False]
    assert Listed().of(SAMPLER).tolist() == [1] * 20 and Listed().weighs(1, 2)
    assert [Equal(frozenset({3, 2, 1})).weighs(i, 4) for i in range(4)] == [False] + [True] * 3


@pytest.mark.parametrize(
    "sampler",
    [flow(torch.linspace(1, 0, 21), 1.0), SAMPLER.quiet(set(range(15)))],  # first step; first 15
)
def test_equal_weights_leave_out_steps_without_noise(sampler: Sampler) -> None:
    weights, noisy = Equal(frozenset(range(1, 21))).of(sampler), sampler.std > 0
    assert 0 < int(noisy.sum()) < 20 and not weights[~noisy].any()
    assert weights[noisy].min() > 0 and float(weights[noisy].mean()) == pytest.approx(1)


def test_weights_from_a_flag() -> None:
    assert parse_weights("2, 0.5,0") == (2, 0.5, 0) and parse_weights(" ") == ()
    assert parse_weights("equal", 3) == {3, 2, 1} and parse_weights("equal:3-2, 1") == {3, 2, 1}
    for bad in ("1,-1", "0,0", "1,x", "nan,1", "inf,1", "equal:", "equal,1", "equal:0"):
        with pytest.raises(ValueError, match="weight|convert|at least one step|out of range"):
            parse_weights(bad)
    with pytest.raises(ValueError, match="2 weights for 3 steps"):
        parse_weights("1,1", 3)


@pytest.mark.parametrize("text", ["equal", "equal:18-3"])
def test_equal_weights_make_gradients_equally_long(text: str) -> None:
    """Measured: d loss / d output over |z|, of random transitions of every step, is one number."""
    steps_t = parse_weights(text, 20)
    assert isinstance(steps_t, frozenset)
    objective, rng = Objective(DPO(eps=0), step_weights=Equal(steps_t)), torch.Generator()
    weights, number = objective.step_weights.of(SAMPLER), torch.arange(20)
    outputs, lengths, log_probs = [], [], []
    for _ in range(2):  # the sides
        x, output, z = (torch.randn((20, 4, 8, 8), generator=rng) for _ in range(3))
        mean, std = SAMPLER.transition(x, output.requires_grad_(), number)
        x_next = mean.detach() + std.view(-1, 1, 1, 1) * z
        log_probs.append(SAMPLER.log_prob(x_next, mean, std))
        outputs.append(output)
        lengths.append(z.flatten(1).norm(dim=1))
    both = torch.stack(log_probs, -1)
    zero = torch.zeros_like(both)
    given = Steps(both, both.detach(), zero, zero, weights, number, number, number)
    pulls = torch.autograd.grad(objective(given, zero).loss.sum(), outputs)
    for pull, length in zip(pulls, lengths, strict=True):
        strength = (pull.flatten(1).norm(dim=1) / length)[weights > 0]
        assert strength.max() / strength.min() == pytest.approx(1, abs=1e-4)
    assert weights[weights > 0].mean() == pytest.approx(1)
    assert int((weights > 0).sum()) == (20 if text == "equal" else 16)

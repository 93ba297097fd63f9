"""What the objective adds to Eq. 6, 8 and 9: weights of steps, KL and reference policy."""

import pytest
import torch

from dfusion.method.losses import DDPO, DPO, LOSSES, Steps
from dfusion.method.objective import Objective
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
    assert (with_it - without).tolist() == pytest.approx([0.75, 0.125, 0.375], abs=1e-5)
    assert without.tolist() == (LOSSES[method]()(given).loss * given.weight).tolist()


def test_equal_sides_count_only_where_something_acts_on_one_side() -> None:
    assert Objective().pairwise
    assert not Objective(kl_initial=0.1).pairwise
    assert not Objective(DDPO()).pairwise


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


def test_weights_of_steps() -> None:
    objective = Objective(step_weights=parse_weights("2, 0.5,0"))
    assert objective.weights(3).tolist() == [2, 0.5, 0]
    assert [objective.weighs(i) for i in range(3)] == [True, True, False]
    assert Objective().weights(2).tolist() == [1, 1] and Objective().weighs(1)
    for bad in ("1,-1", "0,0", "1,x", "nan,1", "inf,1"):
        with pytest.raises(ValueError, match="weight|convert"):
            parse_weights(bad)

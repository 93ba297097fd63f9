"""What the objective adds to Eq. 6, 8 and 9: weights of steps, KL and reference policy."""

import pytest
import torch

from dfusion.method.objective import Objective
from dfusion.settings.steps import parse_weights


def arguments(n: int = 3) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn((n, 2), generator=rng) * 0.1 for _ in range(3)]


@pytest.mark.parametrize("method", ["dpo", "ddpo", "dpok"])
def test_kl_to_the_initial_model_is_added_for_both_sides(method: str) -> None:
    log_prob, old, advantage = arguments()
    zero, far = torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [0.0, 0.5], [3.0, 0.0]])
    without = Objective(method=method)(log_prob, old, advantage, zero, far)
    with_it = Objective(method=method, kl_initial=0.25)(log_prob, old, advantage, zero, far)
    added = with_it.value - without.value
    assert added.tolist() == pytest.approx([0.75, 0.125, 0.75], abs=1e-6)


def test_equal_sides_count_only_where_something_acts_on_one_side() -> None:
    assert Objective().pairwise
    assert not Objective(kl_initial=0.1).pairwise
    assert not Objective(method="ddpo").pairwise


@pytest.mark.parametrize(
    ("objective", "needs"),
    [
        (Objective(), False),
        (Objective(reference="initial"), True),
        (Objective(method="ddpo", reference="initial"), False),
        (Objective(method="dpok", kl_initial=0.1), True),
    ],
)
def test_the_initial_model_is_asked_only_where_needed(objective: Objective, needs: bool) -> None:
    assert objective.needs_initial is needs


def test_only_dpo_compares_with_the_initial_model() -> None:
    """A KL to the initial model needs its transitions as well, but PPO's ratio is to theta_old."""
    assert Objective(reference="initial").ratio_to_initial
    assert not Objective(kl_initial=0.1).ratio_to_initial
    for method in ("ddpo", "dpok"):
        objective = Objective(method=method, reference="initial", kl_initial=0.1)
        assert objective.needs_initial and not objective.ratio_to_initial


def test_weights_of_steps() -> None:
    objective = Objective(step_weights=parse_weights("2, 0.5,0"))
    assert objective.weights(3).tolist() == [2, 0.5, 0]
    assert [objective.weighs(i) for i in range(3)] == [True, True, False]
    assert Objective().weights(2).tolist() == [1, 1] and Objective().weighs(1)
    for bad in ("1,-1", "0,0", "1,x", "nan,1", "inf,1"):
        with pytest.raises(ValueError):
            parse_weights(bad)

"""Power of a comparison over seeds: against trials played out."""

import numpy as np
import pytest
from scipy import stats

from experiments.runs.power import power, variances


def played(
    seeds: int, images: int, lead: float, over_seeds: float, over_images: float
) -> np.ndarray:
    """(4000, seeds, images) leads of trials whose variances are known."""
    rng = np.random.default_rng(0)
    own = lead + over_seeds**0.5 * rng.standard_normal((4000, seeds, 1))
    return own + over_images**0.5 * rng.standard_normal((4000, seeds, images))


@pytest.mark.parametrize(("seeds", "lead"), [(3, 0.05), (5, 0.05), (5, 0.0)])
def test_power_is_the_share_of_trials_that_tell(seeds: int, lead: float) -> None:
    means = played(seeds, 50, lead, 0.02**2, 0.2**2).mean(2)
    told = stats.ttest_1samp(means, 0, axis=1).pvalue < 0.05
    assert power(lead, seeds, 50, 0.02**2, 0.2**2) == pytest.approx(told.mean(), abs=0.02)


def test_variances_come_apart() -> None:
    found = np.mean([variances(trial) for trial in played(4, 60, 0.1, 0.05**2, 0.3**2)], axis=0)
    assert found == pytest.approx([0.05**2, 0.3**2], rel=0.06)

"""Orders of training: the same optimiser steps whatever the number of processes."""

from collections import Counter

import pytest

from dfusion.training.order import Step, Update, updates_of_pass


def steps_of(p: int) -> list[int]:
    """Pair 3 has no step with a weight."""
    return [] if p == 3 else list(range(p % 3, 4))


def shares(
    pairs: int, updates: int, size: int, key: tuple[int, ...] = (5, 0, 1)
) -> list[list[Update]]:
    return [updates_of_pass(key, pairs, updates, steps_of, rank, size) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("pairs", "updates"), [(9, 8), (16, 4), (7, 1)])
def test_processes_share_the_steps_of_one(pairs: int, updates: int, size: int) -> None:
    """Each optimiser step as a whole, and each process's pairs and steps in the order of one."""
    (alone,) = shares(pairs, updates, 1)
    assert sorted({s.pair for u in alone for s in u.steps} | {3}) == list(range(pairs))
    assert sum(u.pairs for u in alone) == pairs
    for one, *parts in zip(alone, *shares(pairs, updates, size), strict=True):
        assert all(part.pairs == one.pairs for part in parts)
        for part in parts:
            mine = {s.pair for s in part.steps}
            assert part.steps == [s for s in one.steps if s.pair in mine]
        assert sorted(map(str, one.steps)) == sorted(str(s) for p in parts for s in p.steps)
        counts = [len({s.pair for s in part.steps} | {3}) for part in parts]
        assert max(counts) - min(counts) <= 2  # shared out evenly, but for pair 3


def test_a_process_keeps_its_pairs_where_a_pass_is_one_step() -> None:
    """Then no log-prob of theta_old is computed twice."""
    for key in ((5, 0, 0), (5, 0, 1)):
        for rank, (update,) in enumerate(shares(8, 1, 2, key)):
            assert {s.pair for s in update.steps} == {p for p in range(rank, 8, 2) if p != 3}


def test_every_pass_and_round_has_its_own_order() -> None:
    orders = {str(shares(9, 2, 1, key)) for key in ((5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0))}
    assert len(orders) == 4


def test_every_step_is_drawn_as_often_as_the_fraction_says() -> None:
    """Steps of pairs with 4, 3 and 2 steps alike, so that sums over drawn steps are unbiased."""
    drawn: Counter[Step] = Counter()
    for key in range(2000):
        for update in updates_of_pass((key,), 9, 2, steps_of, fraction=0.4):
            assert update.fraction == 0.4
            assert len(set(update.steps)) == len(update.steps)
            drawn.update(update.steps)
    assert {s.pair for s in drawn} == set(range(9)) - {3}
    for p in set(range(9)) - {3}:
        for i in steps_of(p):
            assert drawn[Step(p, i)] / 2000 == pytest.approx(0.4, abs=0.045)


def test_processes_share_a_drawn_fraction_alike() -> None:
    alone = updates_of_pass((1,), 9, 2, steps_of, fraction=0.5)
    parts = [updates_of_pass((1,), 9, 2, steps_of, rank, 3, 0.5) for rank in range(3)]
    for one, *shared in zip(alone, *parts, strict=True):
        assert sorted(map(str, one.steps)) == sorted(str(s) for p in shared for s in p.steps)

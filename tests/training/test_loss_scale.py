"""The loss scale falls with every overflow and grows again, in float16 alone."""

import torch

from dfusion.training.loss_scale import GROWTH_INTERVAL, LOWEST, START, LossScale


def test_it_falls_and_grows_back_to_where_it_began() -> None:
    scale = LossScale(torch.float16)
    assert scale.value == START
    assert scale.lower() and scale.lower() and scale.value == START / 4
    for _ in range(GROWTH_INTERVAL - 1):
        scale.good()
    assert scale.value == START / 4
    scale.good()
    assert scale.value == START / 2
    assert scale.lower() and scale.value == START / 4  # and the count begins anew
    for _ in range(3 * GROWTH_INTERVAL):
        scale.good()
    assert scale.value == START


def test_it_has_an_end() -> None:
    scale = LossScale(torch.float16)
    falls = 0
    while scale.lower():
        falls += 1
    assert scale.value == LOWEST and falls == 20


def test_wide_types_keep_a_scale_of_one() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        scale = LossScale(dtype)
        scale.good()
        assert scale.value == 1 and not scale.lower() and scale.state() == {}


def test_it_goes_on_where_it_was() -> None:
    scale, other = LossScale(torch.float16), LossScale(torch.float16)
    scale.lower()
    for _ in range(GROWTH_INTERVAL - 1):
        scale.good()
    other.restore(scale.state())
    other.good()
    assert other.value == START
    other.restore({})
    assert other.value == START

"""Batches that fit: with a function that runs out of memory above some size."""

import pytest
import torch

from dfusion.errors import UserError
from dfusion.models.batching import ON_CPU, Fit

GPU = torch.device("cuda")


class Device:
    """Work that fits up to `room` items; keeps the sizes that were tried and those that went."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def double(self, items: list[int]) -> list[int]:
        self.tried.append(len(items))
        if len(items) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return [2 * n for n in items]


def run(fit: Fit, device: Device, count: int) -> list[int]:
    items = list(range(count))
    parts = list(fit.over(items, device.double))
    assert [n for part, _ in parts for n in part] == items  # each once, in order
    return [n for _, result in parts for n in result]


@pytest.mark.parametrize(("room", "size"), [(1, 1), (5, 4), (7, 4), (8, 8), (1000, 64)])
def test_auto_finds_the_largest_power_of_two_that_fits(room: int, size: int) -> None:
    fit, device = Fit("train.batch_size", "auto", GPU), Device(room)
    assert run(fit, device, 300) == [2 * n for n in range(300)]
    assert fit.size == size
    assert sum(n > room for n in device.tried) == (room < 64)  # it ran out once, and never again


def test_a_fixed_size_is_kept_while_it_fits_and_lowered_when_not() -> None:
    said: list[str] = []
    fit, device = Fit("sample.batch_size", 8, GPU, say=said.append), Device(8)
    run(fit, device, 20)
    assert device.tried == [8, 8, 4] and fit.size == 8 and not said
    device.room = 3  # something else takes memory now
    assert run(fit, device, 20) == [2 * n for n in range(20)]
    assert fit.size == 2
    assert said == [
        f"  out of GPU memory: --config.sample.batch_size is {n} from here on" for n in (4, 2)
    ]


def test_the_last_part_does_not_make_the_size_grow() -> None:
    fit = Fit("train.batch_size", "auto", GPU)
    run(fit, Device(64), 6)  # 1, 2, 3 of 4
    assert fit.size == 4


def test_auto_is_fixed_on_a_cpu() -> None:
    fit, device = Fit("train.batch_size", "auto", torch.device("cpu")), Device(1000)
    run(fit, device, 50)
    assert set(device.tried[:-1]) == {ON_CPU} and fit.size == ON_CPU
    assert Fit("train.batch_size", "auto", torch.device("cpu"), most=4).size == 4


def test_a_device_that_holds_nothing_is_told_of() -> None:
    with pytest.raises(UserError, match="--config.train.batch_size: the GPU's memory"):
        run(Fit("train.batch_size", 4, GPU), Device(0), 4)


def test_other_errors_pass() -> None:
    def broken(items: list[int]) -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        list(Fit("train.batch_size", 4, GPU).over([1], broken))

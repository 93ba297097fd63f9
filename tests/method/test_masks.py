"""Eq. 4 against hand-worked masks; Otsu against scikit-image."""

import pytest
import torch
from skimage.filters import threshold_otsu

from dfusion.method.masks import binarise, elsewhere, fusion_mask, item_maps, merge, otsu

CAT = torch.tensor([[0.05, 0.03, 0.00], [0.04, 0.01, 0.00], [0.00, 0.00, 0.00]])
MAT = torch.tensor([[0.00, 0.02, 0.02], [0.02, 0.02, 0.01], [0.00, 0.00, 0.01]])


def test_eq4_by_hand() -> None:
    maps = torch.stack([CAT, MAT])
    xor = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]  # cat >= .03: 3 cells; mat >= .02: 4 cells; 2 shared
    either = [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert fusion_mask(maps, [0.03, 0.02], "xor").int().tolist() == xor
    assert fusion_mask(maps, [0.03, 0.02], "or").int().tolist() == either


def test_threshold_is_inclusive() -> None:
    assert binarise(torch.full((1, 2, 2), 0.25), [0.25]).all()
    assert not binarise(torch.full((1, 2, 2), 0.25), [0.26]).any()


def test_xor_of_three_items_is_parity() -> None:
    bits = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 0, 0]], [[1, 0, 0, 0]]]).bool()
    assert merge(bits, "xor").int().tolist() == [[1, 0, 1, 0]]  # 3, 2, 1, 0 items
    assert merge(bits, "or").int().tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_best_of_all_splits(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    image = (torch.rand(64, generator=rng) ** 3).reshape(8, 8)

    def within(threshold: float) -> float:
        parts = image[image >= threshold], image[image < threshold]
        return sum(len(p) * p.var(unbiased=False).item() for p in parts if len(p))

    best = min(within(v) for v in image.flatten().tolist())
    assert within(float(otsu(image))) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_where_scikit_image_has_it(seed: int) -> None:
    image = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)) ** 2
    theirs = image > float(threshold_otsu(image.numpy(), nbins=4096))
    differing = int(((image >= otsu(image)) != theirs).sum())
    assert differing <= 1  # its threshold is the middle of a bin that holds a cell or two


def test_otsu_per_map_and_constant_map() -> None:
    maps = torch.stack([torch.tensor([[0.0, 0.0, 0.1, 0.1]]), torch.full((1, 4), 0.2)])
    assert (maps >= otsu(maps)).int().tolist() == [[[0, 0, 1, 1]], [[1, 1, 1, 1]]]


def test_word_of_two_tokens_takes_the_mean_and_two_occurrences_the_larger() -> None:
    tokens = torch.tensor([[[0.1]], [[0.3]], [[0.9]], [[0.2]]])  # (4, 1, 1)
    maps = item_maps(tokens, [[[0, 1]], [[2], [3]]])
    assert maps.flatten().tolist() == pytest.approx([0.2, 0.9])


def test_a_mask_elsewhere_is_the_same_mask_in_another_place() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[:, 1, 2] = masks[:, 1, 3] = True
    places = set()
    for seed in range(200):
        moved = elsewhere(masks, torch.Generator().manual_seed(seed))
        (y, x), (y2, x2) = moved[0].nonzero().tolist()
        assert moved.sum((1, 2)).tolist() == [2, 2, 2]
        assert (moved == moved[0]).all()  # at every step the same place
        assert y == y2 and (x2 - x) % 6 in (1, 5)
        assert not torch.equal(moved, masks)
        places.add((y, x, x2))
    assert len(places) == 4 * 6 - 1

"""Items: words, phrases, positions, several tokens, several occurrences."""

import pytest

from dfusion.errors import UserError
from dfusion.method.prompts import Item, Prompt, item_columns, join, occurrences
from dfusion.method.sampling import pack
from dfusion.models.diffusion_model import DiffusionModel


def columns(model: DiffusionModel, text: str, *names: str | int) -> list[list[list[int]]]:
    return model.columns(Prompt(text, tuple(Item(n) for n in names)))


def test_columns_point_at_the_words_tokens(model: DiffusionModel) -> None:
    """The tokenizer itself says which token stands in each column."""
    text = "a cat the sandwich a dog"
    tokens = model.pipe.tokenizer.convert_ids_to_tokens(model.pipe.tokenizer(text).input_ids)
    assert tokens[2] == "cat</w>"
    for name in ("cat", "dog", "sandwich", "the"):
        (spans,) = columns(model, text, name)
        assert ["".join(tokens[c] for c in span) for span in spans] == [f"{name}</w>"]
    assert columns(model, text, "sandwich") == [[[4, 5]]]
    assert columns(model, text, "dog") == [[[7]]]  # the tokens of "sandwich" shift it


def test_released_positions_are_words(model: DiffusionModel) -> None:
    text = "a cat the sandwich a dog"
    assert columns(model, text, 1, 5) == columns(model, text, "cat", "dog")


def test_phrases_occurrences_case_and_punctuation() -> None:
    text = "A dog, a cat and the dog"
    assert occurrences(text, "dog") == [[1], [6]]
    assert occurrences(text, "dog#2") == [[6]]
    assert occurrences(text, "a CAT") == [[2, 3]]
    assert occurrences(text, 0) == [[0]]


def test_punctuation_beside_an_item_is_not_part_of_it(model: DiffusionModel) -> None:
    text = "a cat, the #sandwich. a dog"
    tokens = model.pipe.tokenizer.convert_ids_to_tokens(model.pipe.tokenizer(text).input_ids)
    for name in ("cat", "sandwich", 1, 3):
        (spans,) = columns(model, text, name)
        word = {1: "cat", 3: "sandwich"}.get(name, name)
        assert ["".join(tokens[c] for c in span) for span in spans] == [f"{word}</w>"], name


@pytest.mark.parametrize("name", ["horse", "dog#3", "dog#x", "#1", 7, -1, ""])
def test_missing_items_are_refused(name: str | int) -> None:
    with pytest.raises(UserError, match="prompt"):
        occurrences("a dog and the dog", name)


def test_item_cut_off_by_the_tokenizer_is_refused(model: DiffusionModel) -> None:
    long = "the the the the the the the the the the the the the the cat"
    with pytest.raises(UserError, match="beyond"):
        columns(model, long, "cat")


def test_tokenizer_that_joins_words_is_refused() -> None:
    prompt = Prompt("a cat", (Item("cat"),))
    with pytest.raises(UserError, match="joins words"):
        item_columns(prompt, lambda text: [len(text)], 77)


def test_join() -> None:
    items = {"a cat": [1], "a cat the dog": ["cat", "dog"]}
    joined = join(["a cat the dog"], items, {"a cat the dog": [0.1, None]})
    assert joined == (Prompt("a cat the dog", (Item("cat", 0.1), Item("dog", None))),)
    assert join(["a cat"], items, 0.2)[0].thresholds == (0.2,)
    with pytest.raises(UserError, match="no items"):
        join(["a dog"], items, None)
    with pytest.raises(UserError, match="2 thresholds for the 1"):
        join(["a cat"], items, {"a cat": [0.1, 0.2]})
    with pytest.raises(UserError, match="no thresholds"):
        join(["a cat"], items, {})


def test_batches_of_different_items_are_padded() -> None:
    packed, groups = pack([[[[1]], [[3, 4]]], [[[2], [5]]]])
    assert packed.tolist() == [[1, 3, 4], [2, 5, -1]]
    assert groups == [[[[0]], [[1, 2]]], [[[0], [1]]]]

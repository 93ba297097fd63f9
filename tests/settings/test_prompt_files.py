"""Prompt, item and threshold files: what they hold, and one line for each that is wrong."""

from pathlib import Path

import pytest

from dfusion.errors import UserError
from dfusion.method.prompts import Item
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Settings

ROOT = Path(__file__).parents[2]
FILES = [
    ("prompt_file", None, "cannot be read"),
    ("prompt_file", "[", "not valid JSON"),
    ("prompt_file", "{}", "JSON list of prompts"),
    ("prompt_file", "[]", "at least one"),
    ("prompt_file", '["a cat", 3]', "JSON list of prompts"),
    ("prompt_file", '["a cat", "a cat"]', "listed twice"),
    ("item_idx_file", "[1]", "JSON object"),
    ("item_idx_file", "{}", "no items for the prompt 'a cat'"),
    ("item_idx_file", '{"a cat": "cat"}', "one entry for each item"),
    ("item_idx_file", '{"a cat": [true]}', "one entry for each item"),
    ("item_idx_file", '{"a cat": ["dog"]}', "item 'dog' is not in the prompt"),
    ("item_idx_file", '{"a cat": [2]}', "position 2 is outside"),
    ("mask_thr_file", "[0.1]", "JSON object"),
    ("mask_thr_file", "{}", "no thresholds for 'a cat'"),
    ("mask_thr_file", '{"a cat": [0.1, 0.2]}', "2 thresholds for the 1 items"),
    ("mask_thr_file", '{"a cat": ["x"]}', "one entry for each item"),
    ("mask_thr_file", '{"a cat": [NaN]}', "give 0 to 1"),
    ("mask_thr_file", '{"a cat": [-0.1]}', "give 0 to 1"),
    ("mask_thr_file", '{"a cat": [1e400]}', "give 0 to 1"),
    ("mask_thr_file", "{" + '"a":{' * 9999, "not valid JSON"),
    ("prompt_file", "[" * 99999, "nested too deep"),
    ("prompt_file", '["  "]', "none empty"),
    ("prompt_file", '["a \\u001b[2J cat"]', "has the character U.001B"),
    ("prompt_file", '["a \\ud800 cat"]', "has the character U.D800"),
    ("prompt_file", '["a \\u202e cat"]', "has the character U.202E"),
    ("item_idx_file", '{"a cat": [1], "a cat": [0]}', "'a cat' appears twice in one object"),
    ("item_idx_file", '{"a cat": [-1]}', "position -1 is outside"),
    ("item_idx_file", '{"a cat": [1.0]}', "one entry for each item"),
    ("item_idx_file", '{"a cat": [""]}', "item '' is not in the prompt"),
    ("item_idx_file", '{"a cat": ["cat#²"]}', "has 1 of them"),
    ("item_idx_file", '{"a cat": ["cat#2"]}', "has 1 of them"),
]


@pytest.mark.parametrize(("flag", "text", "message"), FILES)
def test_files(tmp_path: Path, flag: str, text: str | None, message: str) -> None:
    good = {
        "prompt_file": '["a cat"]',
        "item_idx_file": '{"a cat": [1]}',
        "mask_thr_file": '{"a cat": [null]}',
    }
    settings = Settings()
    for name, content in {**good, flag: text}.items():
        setattr(settings, name, str(tmp_path / name))
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(settings)
    line = str(caught.value)
    assert line.startswith(f"--config.{flag}") and line.isprintable()


def test_an_item_named_twice_is_refused(tmp_path: Path) -> None:
    """XOR would cancel it."""
    with pytest.raises(UserError, match="--config.item_idx cat, 1: .* the item '1' twice"):
        load_prompts(Settings(item_idx="cat, 1"))


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1.01", "0x1", ""])
def test_one_threshold_for_all(text: str) -> None:
    with pytest.raises(UserError, match="--config.mask_thr '"):
        load_prompts(Settings(mask_thr=text))


def test_prompt_file_needs_items(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('["a cat"]')
    with pytest.raises(UserError, match="--config.item_idx_file: needed"):
        load_prompts(Settings(prompt_file=str(tmp_path / "p.json")))


def test_one_prompt_by_flags() -> None:
    (prompt,) = load_prompts(Settings(mask_thr="0.05", item_idx="[1, 3]"))
    assert prompt.items == (Item(1, 0.05), Item(3, 0.05))
    (prompt,) = load_prompts(Settings())
    assert prompt.items == (Item("cat", None), Item("chess", None))
    with pytest.raises(UserError, match="--config.mask_thr 'x'"):
        load_prompts(Settings(mask_thr="x"))


@pytest.mark.parametrize("template", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_papers_files_load(template: int, split: str) -> None:
    folder = ROOT / "config" / "prompt"
    settings = Settings(
        prompt_file=str(folder / f"template{template}_{split}.json"),
        item_idx_file=str(folder / f"template{template}_item.json"),
        mask_thr_file=str(folder / f"template{template}_mask.json"),
    )
    prompts = load_prompts(settings)
    assert len(prompts) == 40
    # Tables 4 to 6 give thresholds for the training lists; the test lists are left to Otsu.
    expected = split == "train"
    assert all((t is not None) == expected for p in prompts for t in p.thresholds)


def test_table_values() -> None:
    folder = ROOT / "config" / "prompt"
    settings = Settings(
        prompt_file=str(folder / "template3_train.json"),
        item_idx_file=str(folder / "template3_item.json"),
        mask_thr_file=str(folder / "template3_mask.json"),
    )
    by_text = {p.text: p for p in load_prompts(settings)}
    # Table 6: "the dog on the right of the vase", 0.01; 0.03.
    assert by_text["the dog on the right of the vase"].items == (Item(1, 0.01), Item(7, 0.03))

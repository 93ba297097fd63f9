"""The testbed: renderer truth, prompt lists, and the committed weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from testbed.figures.evaluate import Scorer, scores_of, wrong_prompts
from testbed.figures.outcomes import outcomes
from testbed.figures.policy import GUIDANCE, as_prompts, load_policy, pictures, sample_all
from testbed.models.judge import Judge
from testbed.models.unet import CONFIG, stock_state
from testbed.training.scorer import MODELS
from testbed.training.stable_diffusion import StableDiffusion
from testbed.world.confusion import CONFUSED, Confusion
from testbed.world.drawing import RGB
from testbed.world.pool import draw
from testbed.world.prompt_lists import cycle_of, split
from testbed.world.scenes import Picture, render
from testbed.world.tokens import write_tokenizer
from testbed.world.words import (
    COLOURS,
    HELD,
    PROMPTS,
    RELATIONS,
    SHAPES,
    TEMPLATES,
    TEXTURES,
    VEHICLES,
    WORN,
    item_positions,
    mistaken_for,
    one_word_apart,
    parse,
    vocabulary,
)

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "testbed" / "weights"
PROMPT_FILES = ROOT / "config" / "prompt"


def centre(mask: np.ndarray) -> np.ndarray:
    """Mean (x, y) of a bool mask (64, 64)."""
    y, x = np.nonzero(mask)
    return np.array([x.mean(), y.mean()])


def scene(prompt: str, seed: int = 0) -> Picture:
    return render(prompt, np.random.default_rng(seed))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_relations_hold_in_pixels(relation: str, seed: int) -> None:
    first, second = scene(f"the moon {relation} the square", seed).items
    x, y = centre(first) - centre(second)
    signed = {"above": -y, "below": y, "on the left of": -x, "on the right of": x}[relation]
    assert signed > 20
    assert not (first & second).any()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_colours_and_textures_show(colour: str, texture: str) -> None:
    picture = scene(f"a {colour} and {texture} square")
    inside = picture.image[picture.items[0]].astype(float)
    distance = {name: np.linalg.norm(inside - rgb, axis=1) for name, rgb in RGB.items()}
    bright = {name: (d < 40).mean() for name, d in distance.items()}
    assert max(bright, key=bright.__getitem__) == colour
    assert 0.15 < bright[colour] < 0.85  # the rest is the texture's dark tone


def test_silhouettes_differ() -> None:
    masks = {p.split()[1]: scene(p).items[0] for p in PROMPTS if p.endswith("driving a car")}
    for a, mask_a in masks.items():
        for b, mask_b in masks.items():
            overlap = (mask_a & mask_b).sum() / (mask_a | mask_b).sum()
            assert (overlap == 1) if a == b else (overlap < 0.95), (a, b)


@pytest.mark.parametrize("kind", [WORN, VEHICLES, HELD])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_mistaken_stands_in_the_same_place(kind: tuple[str, ...], seed: int) -> None:
    """What fusion brings in must cover what it replaces."""
    scenes = [scene(f"a circle {activity}", seed).items for activity in kind]
    for items in scenes[1:]:
        moved = [
            np.linalg.norm(centre(a) - centre(b)) for a, b in zip(items, scenes[0], strict=True)
        ]
        assert moved[0] < 2 and moved[1] < 5


def test_mistakes_keep_shapes_and_say_something_else() -> None:
    for claim in map(parse, PROMPTS):
        cycle = cycle_of(claim)
        assert len(cycle) == {1: 3, 2: 6 if claim.shape in SHAPES[:4] else 3, 3: 2}[claim.template]
        for other in cycle[1:]:
            assert (other.shape, other.other) == (claim.shape, claim.other)
            assert other.canonical != claim.canonical
            assert other.prompt in PROMPTS


def test_captions_are_wrong_as_often_as_said() -> None:
    """Of a prompt's scenes, 1 - rate show it and the others what it is mistaken for."""
    torch.manual_seed(0)
    scenes = torch.arange(len(PROMPTS)).repeat(2000)
    captions = Confusion().captions(scenes)
    for prompt in ("a star wearing a hat", "a moon wearing a hat", "the star above the heart"):
        claim, index = parse(prompt), PROMPTS.index(prompt)
        shown = scenes[captions == index]
        mistake = PROMPTS.index(mistaken_for(claim).prompt)
        assert set(shown.tolist()) == {index, mistake}
        wanted = {"star": CONFUSED[claim.template][0], "moon": CONFUSED[claim.template][1]}
        assert (shown == mistake).float().mean() == pytest.approx(wanted[claim.shape], abs=0.04)


def test_objects_are_large() -> None:
    for prompt in PROMPTS[::7]:
        items = scene(prompt).items
        assert len(items) == len(item_positions(prompt))
        assert all(mask.mean() > 0.02 for mask in items)
        assert items.any(axis=0).mean() > 0.08


def test_scene_depends_only_on_seed_and_index() -> None:
    again, other = draw(5, 17), draw(5, 18)
    assert draw(5, 17)[0] == again[0]
    assert (draw(5, 17)[1] == again[1]).all()
    assert not (other[1] == again[1]).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_files(template: int) -> None:
    read = {
        part: json.loads((PROMPT_FILES / f"testbed{template}_{part}.json").read_text())
        for part in ("train", "test", "item", "mask")
    }
    train, test = ({parse(p).canonical for p in read[part]} for part in ("train", "test"))
    assert not train & test
    assert all(len(set(read[part])) == len(read[part]) for part in ("train", "test"))
    assert [read["train"], read["test"]] == list(split(template))
    for part in ("train", "test"):  # whole cycles of mistakes
        assert {mistaken_for(parse(p)).prompt for p in read[part]} == set(read[part])
    for prompt in read["train"] + read["test"]:
        words = [prompt.split()[i] for i in read["item"][prompt]]
        claim = parse(prompt)
        ends = {1: claim.activity.split()[-1:], 2: [], 3: [claim.other]}[template]
        assert words == [claim.shape, *ends]
        assert len(read["mask"][prompt]) == len(words)


def test_one_word_apart_never_says_the_same() -> None:
    others = one_word_apart("the star above the heart")
    assert "the star below the heart" in others
    assert "the heart below the star" not in others
    assert len(others) == 3 + 6 + 6


def test_each_word_is_one_token(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in vocabulary())
    assert len(tokenizer.tokenize("zebra")) > 1
    committed = StableDiffusionPipeline.from_pretrained(WEIGHTS / "diffusion").tokenizer
    assert committed(list(PROMPTS)).input_ids == tokenizer(list(PROMPTS)).input_ids


def test_training_form_equals_stock_network(tmp_path: Path) -> None:
    model = StableDiffusion(write_tokenizer(tmp_path))
    stock = type(model.unet)(**CONFIG)
    stock.load_state_dict(stock_state(model.unet.state_dict(), model.thinned))
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 128)
    torch.testing.assert_close(stock(x, 5, context).sample, model.unet(x, 5, context).sample)


def test_pipeline_folder_generates() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "diffusion")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == torch.float32
    assert pipeline.scheduler.config.steps_offset == 1
    assert not pipeline.scheduler.config.set_alpha_to_one
    image = pipeline("a star wearing a hat", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_scorers_and_judge_read_scenes() -> None:
    scenes = [draw(1234, i) for i in range(60)]
    prompts = [prompt for prompt, _ in scenes]
    images = np.stack([image for _, image in scenes])
    wrong = wrong_prompts(prompts, 0)
    for name in MODELS:
        right, other = scores_of(Scorer(WEIGHTS / name), images, prompts, wrong)
        assert (right > other).float().mean() > 0.85
    judge = Judge.load()
    assert judge.satisfied(images, prompts).float().mean() > 0.9
    assert judge.satisfied(images, wrong).float().mean() < 0.1


@pytest.mark.parametrize("name", ["diffusion", "sd3"])
def test_samples_show_the_prompt_or_its_mistake(name: str) -> None:
    """Both models, one prompt of each cycle in the training lists of templates 1 and 2."""
    lists = (json.loads((PROMPT_FILES / f"testbed{t}_train.json").read_text()) for t in (1, 2))
    texts = [text for listed in lists for text in listed[:18:3]]
    policy = load_policy(WEIGHTS / name, GUIDANCE)
    found = [t.latents[-1] for t in sample_all(policy, list(as_prompts(texts)))]
    shown = outcomes(Judge.load(), pictures(policy, found), texts)
    assert shown["neither"]["all"] <= 0.25  # about 0.05 of many


def test_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) < 28e6

"""The Python API: it makes what diffusers and the commands make, and changes no pipeline."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import dfusion
from dfusion import DFusionPipeline, FusedPair, UserError, adopt, algorithm_1, naive, pair, score
from dfusion.api.samples import score_of
from dfusion.api.trainer import _Preferences
from dfusion.method.losses import LOSSES
from dfusion.method.pairing import RULES
from dfusion.rounds.session import sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.training import metrics
from dfusion.training.order import Step
from dfusion.training.trainer import train_rounds
from tests.conftest import PROMPTS, make_pipeline, small
from tests.rewards import Rank, redness

ITEMS = {PROMPTS[0]: ["cat", 3], PROMPTS[1]: [1]}
HOW: dict[str, Any] = {"num_steps": 4}


@pytest.fixture
def stock(tmp_path: Path) -> StableDiffusionPipeline:
    pipe = make_pipeline(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(pipeline_folder: Path) -> DFusionPipeline:
    return DFusionPipeline.from_pretrained(str(pipeline_folder))


def one(pipe: DFusionPipeline, **how: Any) -> FusedPair:
    given = {"base_seed": 3, "reference_seed": 7, **HOW, **how}
    found = pipe("the dog", ["dog"], **given)
    assert isinstance(found, FusedPair)
    return found


def far(a: object, b: object) -> int:
    """Largest difference of two images' values."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_seed_gives_the_image_of_diffusers_ddim(stock: StableDiffusionPipeline) -> None:
    made = one(DFusionPipeline.from_pipe(stock), negative_prompt="a cat", guidance_scale=3.0)
    for seed, image in ((3, made.base), (7, made.reference)):
        theirs = stock(
            "the dog",
            negative_prompt="a cat",
            guidance_scale=3.0,
            num_inference_steps=4,
            eta=1.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert far(theirs, image) <= 1


def test_a_pipeline_stays_as_it_is(stock: StableDiffusionPipeline) -> None:
    """Sampled, fused and trained around, it draws to the bit what it drew before."""

    def drawn() -> np.ndarray:
        rng = torch.Generator().manual_seed(0)
        return stock("the dog", num_inference_steps=2, generator=rng, output_type="np").images

    parts = dict(stock.components)
    wanted = [p.requires_grad for p in stock.unet.parameters()]
    before = drawn()
    pipe = DFusionPipeline.from_pipe(stock)
    made = one(pipe)
    plain = score([made.base_sample, made.reference_sample], redness)
    pipe.trainer(learning_rate=1e-2).train_on(naive(pair(plain)))
    assert pipe.model.network is not stock.unet
    assert all(stock.components[name] is part for name, part in parts.items())
    assert [p.requires_grad for p in stock.unet.parameters()] == wanted
    assert (drawn() == before).all()
    assert not one(pipe).trajectories.base.equal(made.trajectories.base)


def test_full_training_leaves_the_pipelines_weights_alone(stock: StableDiffusionPipeline) -> None:
    before = [p.clone() for p in stock.unet.parameters()]
    pipe = DFusionPipeline.from_pipe(stock)
    made = one(pipe)
    plain = score([made.base_sample, made.reference_sample], redness)
    pipe.trainer(tune="full", learning_rate=1e-2).train_on(naive(pair(plain)))
    assert all(p.equal(q) for p, q in zip(stock.unet.parameters(), before, strict=True))
    assert not one(pipe).trajectories.base.equal(made.trajectories.base)


def test_a_pipeline_that_cannot_be_used_is_refused(stock: StableDiffusionPipeline) -> None:
    stock.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(UserError, match="^pipe predicts flow_prediction"):
        DFusionPipeline.from_pipe(stock)


def test_shapes_and_identities(pipe: DFusionPipeline) -> None:
    lists = [ITEMS[text] for text in PROMPTS]
    made = pipe(PROMPTS, lists, base_seed=3, reference_seed=[7, 8], **HOW)
    assert isinstance(made, list)
    first, second = made
    assert isinstance(first.target, Image.Image) and first.target.size == first.base.size
    assert first.masks.shape == (4, 4, 4) and first.masks.dtype == torch.bool
    assert first.item_maps.shape == (4, 2, 4, 4) and second.item_maps.shape == (4, 1, 4, 4)
    assert all(states.shape == (5, 4, 8, 8) for states in first.trajectories)
    assert first.first == 2  # all but the first two steps are fused
    assert first.trajectories.target[:3].equal(first.trajectories.base[:3])

    alone = one(pipe, mask_thr=1.0)  # nothing is in the mask
    assert alone.trajectories.target.allclose(alone.trajectories.base, atol=1e-5)
    (itself,) = pipe.fuse([(alone.base_sample, alone.base_sample)], fusion_masked=False)
    assert itself.trajectories.target.allclose(alone.trajectories.base, atol=1e-5)
    other = one(pipe, base_latents=alone.trajectories.reference[0])
    assert other.trajectories.base[0].equal(alone.trajectories.reference[0])
    rng = torch.Generator().manual_seed(3)
    drawn = pipe.sample(["the dog"] * 2, [["dog"]] * 2, rng, batch_size=1, **HOW)
    assert drawn[0].latents.allclose(alone.trajectories.base, atol=1e-5)
    assert not drawn[1].latents[0].equal(drawn[0].latents[0])


@pytest.mark.parametrize("kind", ["attention", "branch", "renoise"])
def test_it_makes_what_the_commands_make(
    pipe: DFusionPipeline, settings: Settings, kind: Any
) -> None:
    """A round: the same pairs, targets, scores and adoption, whatever the size of batches."""
    settings.fusion.kind = kind
    settings.pair.adoption_threshold = 0.2
    round_ = Experiment(sample_rounds(settings)).round(0)
    plain = pipe.sample(PROMPTS, ITEMS, 5, images_per_prompt=4, batch_size=3, **HOW)
    samples = score(plain, redness)
    known = round_.scores("images")
    assert [s.score for s in samples] == pytest.approx([known[i] for i in range(8)], abs=0.003)
    pairs = pair(samples)
    place = {id(sample): i for i, sample in enumerate(samples)}
    numbers = [(place[id(base)], place[id(reference)]) for base, reference in pairs]
    assert numbers == [(p.base, p.reference) for p in round_.pairs() or ()]
    targets = score(pipe.fuse(pairs, fusion_kind=kind, fusion_steps="3-1"), redness)
    rows = round_.adoption() or []
    for p, (fused, row) in enumerate(zip(targets, rows, strict=True)):
        assert far(Image.open(round_.image("target_images", p)), fused.target) <= 1
        assert fused.score == pytest.approx(row["target"], abs=0.003)
    assert [p.fused for p in adopt(targets, 0.2)] == [row["adopted"] for row in rows]


def test_pairs_may_be_fused_both_ways(pipe: DFusionPipeline) -> None:
    """Whichever image is better is preferred, and its states are on side 0."""
    samples = score(pipe.sample(PROMPTS, ITEMS, 5, images_per_prompt=4, **HOW), redness)
    pairs = pair(samples, RULES["both_ways"])
    preferences = adopt(score(pipe.fuse(pairs), redness), 0.0)
    known = {text: [score_of(s) for s in samples if s.prompt.text == text] for text in PROMPTS}
    data = _Preferences(preferences, known)
    assert any(p.fused for p in preferences[2:4]) and len(preferences) == 8
    for n, p in enumerate(preferences):
        better = score_of(p.base) > p.score
        first, second = data.advantages(n)
        assert data.base_side(n) == (0 if n % 4 >= 2 else 1) == 1 - better and first >= second
        assert data.states_of(Step(n, 3), int(not better)).equal(p.base.latents[3:5])
        assert data.states_of(Step(n, 3), int(better)).equal(p.latents[3:5])


def test_a_reward_may_see_all_samples_of_a_prompt(pipe: DFusionPipeline) -> None:
    """Against the numbers of redness: a sample's place, and a target's in place of its base."""
    items = [["dog"]] * 3 + [["cat"]] * 3
    made = pipe.sample(["the dog"] * 3 + ["a cat"] * 3, items, list(range(6)), **HOW)
    rank, red = Rank(torch.device("cpu")), [s.score for s in score(made, redness)]
    samples = score(made, rank)
    order = [sorted(red[n : n + 3]) for n in (0, 3)]
    assert [s.score for s in samples] == [order[n // 3].index(red[n]) for n in range(6)]
    assert len(rank.calls) == 2
    fused = pipe.fuse([(made[0], made[1]), (made[2], made[1])])
    got = [p.score for p in score(fused, rank)]
    for base, target, value in zip((0, 2), score(fused, redness), got, strict=True):
        group = [red[n] for n in range(3) if n != base] + [target.score]
        assert value == sorted(group).index(target.score)


METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in LOSSES if name != "dpok"},
    "options": {"step_weights": "equal:4-2", "outside_weight": 0.0, "loser_limit": 0.5},
}


@pytest.mark.parametrize("name", METHODS)
def test_algorithm_1_trains_as_the_command_does(
    pipe: DFusionPipeline, settings: Settings, name: str
) -> None:
    """Two rounds: losses and gradient norms of every optimiser step."""
    chosen, how = small(settings, 2, name), METHODS[name]
    chosen.pair.adoption_threshold = 0.2
    chosen.train = dataclasses.replace(chosen.train, **how, compare_images=0)
    chosen.train.updates_per_inner_epoch = 2
    rows = metrics.read(train_rounds(chosen) / "metrics.jsonl")
    theirs = [row for row in rows if row["kind"] == "update"]
    trainer = pipe.trainer(
        seed=5, learning_rate=1e-2, batch_size=8, updates_per_inner_epoch=2, **how
    )
    rounds = algorithm_1(
        pipe,
        trainer,
        PROMPTS,
        ITEMS,
        redness,
        rounds=2,
        images_per_prompt=4,
        seed=5,
        adoption_threshold=0.2,
        sampling=HOW,
        fusion={"fusion_steps": "3-1"},
    )
    ours = [row for round_ in rounds for row in round_.updates]
    assert len(ours) == len(theirs) == 8
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=0.02, abs=1e-6)


def test_weights_are_saved_for_diffusers(pipe: DFusionPipeline, tmp_path: Path) -> None:
    made = one(pipe)
    trainer = pipe.trainer(learning_rate=1e-2)
    trainer.train_on(naive(pair(score([made.base_sample, made.reference_sample], redness))))
    trainer.save(tmp_path / "lora")
    stock = make_pipeline(tmp_path / "stock")
    x, cond = torch.randn(1, 4, 8, 8), pipe.model.encode(["the dog"]).tokens
    with torch.no_grad():
        ours, plain = pipe.model.network(x, 500, cond).sample, stock.unet(x, 500, cond).sample
        stock.load_lora_weights(tmp_path / "lora")
        theirs = stock.unet(x, 500, cond).sample
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-4)


def test_a_callback_sees_every_step(pipe: DFusionPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def look(given: DFusionPipeline, i: int, t: torch.Tensor, kwargs: dict[str, Any]) -> None:
        assert given is pipe and kwargs["latents"].shape == (1, 4, 8, 8)
        seen.append((i, int(t)))

    one(pipe, callback_on_step_end=look)
    assert [i for i, _ in seen] == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3]  # base, reference, fused steps
    assert len({t for _, t in seen}) == 4


WRONG: list[tuple[Callable[[DFusionPipeline], object], str]] = [
    (lambda p: one(p, fusion_steps="9-1"), "fusion_steps: '9-1' is out of range"),
    (lambda p: one(p, mask_layers="0,1"), "mask_layers '0,1': must be layers of one grid"),
    (lambda p: one(p, fusion_layers="7"), "fusion_layers: "),
    (lambda p: one(p, mask_merge="and"), "mask_merge 'and': choose from xor, or"),
    (lambda p: one(p, fusion_kind="twig"), "fusion_kind 'twig': choose from attention, branch"),
    (lambda p: one(p, fusion_text="mine"), "fusion_text 'mine': choose from fused, own"),
    (lambda p: one(p, mask_maps="some"), "mask_maps 'some': choose from prompt, all"),
    (lambda p: one(p, fusion_parts="self_x"), "fusion_parts 'self_x': choose from"),
    (lambda p: p.sample("the dog", ["cat"], 1, **HOW), "item 'cat' is not in the prompt"),
    (lambda p: p.sample(["the dog"], [["dog"], ["cat"]], 1, **HOW), "items: 2 lists for 1 prompts"),
    (lambda p: p.sample(["the dog"], [["dog"]], [1, 2], **HOW), "seed: 2 for 1 prompts"),
    (lambda p: pair(p.sample("the dog", ["dog"], 1, **HOW)), "has no score yet"),
    (
        lambda p: p.trainer(updates_per_inner_epoch=2).train_on(
            naive(pair(score(p.sample(["the dog"] * 2, [["dog"]] * 2, [1, 2], **HOW), redness)))
        ),
        "updates_per_inner_epoch 2: more optimiser steps than pairs, which are 1",
    ),
    (lambda p: p.trainer(learning_rat=1.0), "learning_rat: there is no such setting"),
    (lambda p: p.trainer(eps=2.0), "eps 2.0: must be below 1"),
    (lambda p: p.trainer(step_weights="a"), "step_weights 'a': could not convert"),
    (lambda p: p.trainer(lora_targets=""), "lora_targets: name at least one module"),
    (lambda p: (p.trainer(), p.trainer()), "the model has a LoRA already; use its trainer"),
    (
        lambda p: p.trainer(step_weights="1,1").train_on(
            naive(pair(score(p.sample(["the dog"] * 2, [["dog"]] * 2, [1, 2], **HOW), redness)))
        ),
        "step_weights '1,1': 2 weights for 4 steps",
    ),
    (
        lambda p: p.sample(["a cat the dog"] * 2, [["cat"], ["dog"]], 1, **HOW),
        "items: two different lists for the prompt 'a cat the dog'; give one",
    ),
]


def test_masks_at_random_places_are_at_another_place_for_every_base(pipe: DFusionPipeline) -> None:
    """The place depends on the base's seed, not on its number among those of a call."""
    seeds = (1, *range(1, 9))
    again, *made = [one(pipe, base_seed=k, mask_place="random").masks[-1] for k in seeds]
    assert again.equal(made[0])
    assert len({tuple(mask.flatten().tolist()) for mask in made}) > 1


def test_fusion_is_refused_before_anything_is_sampled(
    pipe: DFusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "sample", lambda *args, **how: pytest.fail("sampled"))
    with pytest.raises(UserError, match="fusion_steps"):
        one(pipe, fusion_steps="9-1")


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[m for _, m in WRONG])
def test_bad_arguments(pipe: DFusionPipeline, call: Callable, message: str) -> None:
    with pytest.raises(UserError) as error:
        call(pipe)
    assert message in str(error.value)


def test_what_the_package_exports() -> None:
    for name in dfusion.__all__:
        assert getattr(dfusion, name) is not None and name in dir(dfusion)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dfusion.nothing  # noqa: B018

"""Checkpoints of the tiny model: resuming, and LoRA in a stock pipeline."""

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dfusion.errors import UserError
from dfusion.method.noise import generator
from dfusion.models.loading import load_model
from dfusion.rounds.session import open_session
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_json
from dfusion.training.trainer import Trainer, train_rounds
from tests.conftest import PROMPTS, small


def test_resumed_equals_uninterrupted(settings: Settings) -> None:
    whole = train_rounds(small(settings, 2, "whole"))
    train_rounds(small(settings, 1, "parts"))
    parts = train_rounds(small(settings, 2, "parts"))
    for name in ("pytorch_lora_weights.safetensors", "optimiser.safetensors"):
        a, b = (load_file(f / "checkpoints" / "epoch1" / name) for f in (whole, parts))
        assert a.keys() == b.keys()
        assert all(a[k].equal(b[k]) for k in a)
    first = load_file(whole / "checkpoints" / "epoch0" / "pytorch_lora_weights.safetensors")
    last = load_file(whole / "checkpoints" / "epoch1" / "pytorch_lora_weights.safetensors")
    assert any(not first[k].equal(last[k]) for k in first)
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r.get("inner_epoch")) for r in rows] == [
        (0, 0),
        (0, 1),
        (0, None),
        (1, 0),
        (1, 1),
        (1, None),
    ]


def test_lora_loads_into_a_stock_pipeline(settings: Settings, pipeline_folder: Path) -> None:
    trainer = Trainer(open_session(small(settings, 1, "stock")))
    trainer.run()
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = trainer.session.model.encode(["the dog"]).tokens
    predict: Callable = lambda unet: unet(x, torch.tensor(501), text).sample  # noqa: E731
    with torch.no_grad():
        plain = predict(stock.unet)
        stock.load_lora_weights(trainer.checkpoints.path(0))
        ours = predict(trainer.session.model.network)
        assert torch.allclose(predict(stock.unet), ours, atol=1e-6)
        assert not torch.allclose(plain, ours, atol=1e-5)


def test_stock_pipeline_with_our_lora_gives_our_images(
    settings: Settings, pipeline_folder: Path
) -> None:
    """A whole sample by plain diffusers, from the same generator, against the next round's."""
    folder = train_rounds(small(settings, 2, "images"))
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)

    def image(index: int) -> np.ndarray:
        output = stock(
            PROMPTS[0],
            num_inference_steps=4,
            eta=1.0,
            guidance_scale=5.0,
            generator=generator(settings.seed, 1, index),
            output_type="np",
            height=16,
            width=16,
        )
        return (output.images[0] * 255).round().astype(int)

    def ours(index: int) -> np.ndarray:
        return np.asarray(Image.open(folder / f"epoch1/images/{index:05d}.png")).astype(int)

    plain = image(1)
    stock.load_lora_weights(folder / "checkpoints" / "epoch0")
    assert abs(image(1) - ours(1)).max() <= 1 and abs(image(3) - ours(3)).max() <= 1
    assert abs(plain - ours(1)).max() > 1


def test_the_card_loads_what_was_trained_on_a_merged_lora(
    settings: Settings, pipeline_folder: Path
) -> None:
    """Its lines, run on a stock pipeline, and both LoRA by our own flag, give the trained model."""
    first = train_rounds(small(settings, 1, "first")) / "checkpoints" / "epoch0"
    second = small(settings, 1, "second")
    second.pretrained = dataclasses.replace(second.pretrained, lora=str(first))
    trainer = Trainer(open_session(second))
    trainer.run()
    last = trainer.checkpoints.path(0)
    card = (last / "README.md").read_text()
    assert f"| merged into it first | {first} |" in card
    code = textwrap.dedent(card[card.index("    pipe.") :]).replace(
        "path/to/this/folder", str(last)
    )
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    exec(code, {"pipe": stock})
    both = dataclasses.replace(second.pretrained, lora=f"{first},{last}")
    ours = load_model(both, "cpu", torch.float32)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = ours.encode(["the dog"]).tokens
    with torch.no_grad():
        wanted, *found = (
            unet(x, torch.tensor(501), text).sample
            for unet in (trainer.session.model.network, stock.unet, ours.network)
        )
    assert all(torch.allclose(noise, wanted, atol=1e-5) for noise in found)


def test_checkpoint_of_another_rank_is_refused(settings: Settings) -> None:
    train_rounds(small(settings, 1, "exp"))
    other = small(settings, 2, "exp")
    other.train.lora_rank, other.allow_config_change = 2, True
    with pytest.raises(UserError, match="does not fit"):
        train_rounds(other)


def test_old_checkpoints_go(settings: Settings) -> None:
    chosen = small(settings, 3, "keep")
    chosen.train.num_checkpoint_limit = 2
    folder = train_rounds(chosen)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["epoch1", "epoch2"]


def test_what_a_kill_after_the_last_checkpoint_leaves_goes(settings: Settings) -> None:
    chosen = small(settings, 2, "killed")
    checkpoints = train_rounds(chosen) / "checkpoints"
    shutil.copytree(checkpoints / "epoch1", checkpoints / "within")
    left = {"round": 1, "processes": 1, "rows": []}
    write_json(checkpoints / "within" / "state.json", left)
    chosen.train.num_checkpoint_limit = 1
    train_rounds(chosen)
    assert [p.name for p in checkpoints.iterdir()] == ["epoch1"]


def test_resume_within_a_round(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any optimiser step of a round, the run ends as if it had not been."""
    for method in ("dpo", "dpok"):
        plain = small(settings, 2, f"plain_{method}")
        plain.train = dataclasses.replace(plain.train, method=method, kl_initial=0.1)
        whole = train_rounds(plain)
        broken = dataclasses.replace(plain, exp_name=f"broken_{method}")
        real, count = Trainer.update, 0

        def update(self: Trainer, *args: Any, real: Callable[..., Any] = real) -> Any:
            nonlocal count
            count += 1
            if count in (2, 4, 6):
                raise KeyboardInterrupt
            return real(self, *args)

        monkeypatch.setattr(Trainer, "update", update)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                train_rounds(broken)
        folder = train_rounds(broken)
        monkeypatch.setattr(Trainer, "update", real)
        assert count == 4 + 3  # four steps, and three that were stopped: nothing was done twice
        name = "checkpoints/epoch1/pytorch_lora_weights.safetensors"
        a, b = load_file(whole / name), load_file(folder / name)
        assert all(a[k].equal(b[k]) for k in a)
        assert not (folder / "checkpoints" / "within").exists()
        rows = [(f / "metrics.jsonl").read_text().splitlines() for f in (whole, folder)]
        updates = [[r for r in map(json.loads, f) if r["kind"] == "update"] for f in rows]
        assert updates[0] == updates[1]


def test_a_round_stopped_under_other_settings_begins_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What theta_old gave is of the pairs and settings then: targets that are references now."""

    def changed(run: Settings) -> Settings:
        run.pair.adoption_threshold, run.allow_config_change = 100.0, True
        run.train = dataclasses.replace(run.train, method="dpok")
        return run

    settings.pair.adoption_threshold = -100.0
    real, calls = Trainer.update, iter(range(9))

    def update(self: Trainer, *args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(KeyboardInterrupt):
        train_rounds(small(settings, 1, "stopped"))
    monkeypatch.undo()
    again = train_rounds(changed(small(settings, 1, "stopped")))
    alone = train_rounds(changed(small(settings, 1, "alone")))
    name = "checkpoints/epoch0/pytorch_lora_weights.safetensors"
    a, b = (load_file(folder / name) for folder in (again, alone))
    assert all(a[k].equal(b[k]) for k in a)


def test_resume_from_another_experiment(settings: Settings) -> None:
    """Its policy samples the first round; an older checkpoint of one's own is refused."""
    first = train_rounds(small(settings, 2, "first"))
    chosen = small(settings, 1, "second")
    chosen.resume_from = str(first / "checkpoints" / "epoch1")
    trainer = Trainer(open_session(chosen))
    assert trainer.resume() == 0
    lora = load_file(first / "checkpoints/epoch1/pytorch_lora_weights.safetensors")
    ours = dict(zip(trainer.tuning.names, trainer.tuning.parameters, strict=True))
    assert len(ours) == len(lora)
    a, b = (sum(float(v.detach().abs().sum()) for v in x.values()) for x in (ours, lora))
    assert a == pytest.approx(b, rel=1e-5)
    own = small(settings, 3, "first")
    own.resume_from = str(first / "checkpoints" / "epoch0")
    with pytest.raises(UserError, match="epoch1 is later"):
        train_rounds(own)

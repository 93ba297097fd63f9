"""Train a scorer: a small open_clip model, contrastive against every prompt of the testbed.

All 400 prompts are in every batch, so each picture meets all prompts one word away from its own.
The folder loads with open_clip's own "local-dir:" schema, tokenizer included. `--model second` is
a smaller one, trained on scenes of its own, for measuring with what training never sees.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from testbed.training.clock import Clock
from testbed.training.vae import to_model
from testbed.world.augment import arguments, jitter, with_round_trips
from testbed.world.pool import load
from testbed.world.tokens import LENGTH, write_tokenizer
from testbed.world.words import PROMPTS, parse

MODELS: dict[str, dict[str, Any]] = {
    "scorer": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
        "text_cfg": {"width": 96, "heads": 3, "layers": 2},
    },
    "second": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 6, "head_width": 64},
        "text_cfg": {"width": 48, "heads": 3, "layers": 1},
    },
}
PREPROCESS = {
    "size": [64, 64],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
BATCH = 96


def same_truth() -> Tensor:
    """(400, 400) rows summing to 1: the prompts that say the same thing as prompt i."""
    claims = [parse(prompt).canonical for prompt in PROMPTS]
    same = torch.tensor([[a == b for b in claims] for a in claims]).float()
    return same / same.sum(dim=1, keepdim=True)


def write_folder(model: CLIP, config: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(settings, indent=2))
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors")


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = write_tokenizer(args.out)
    chosen = MODELS[args.model]
    text_cfg = {
        "context_length": LENGTH,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "local",  # any name: open_clip then reads the folder itself
        **chosen["text_cfg"],
    }
    config = {**chosen, "text_cfg": text_cfg}
    model = CLIP(**config)
    write_folder(model, config, args.out)
    text = open_clip.get_tokenizer(f"local-dir:{args.out}")(list(PROMPTS))
    indices, images = load(args.pool)
    images = with_round_trips(AutoencoderKL.from_pretrained(args.vae).eval(), images, 0.5)
    prompts, wanted = torch.from_numpy(indices), same_truth()
    steps = args.epochs * len(images) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    clock = Clock(steps)
    for step in range(1, steps + 1):
        pick = torch.randint(len(images), (BATCH,))
        x = jitter(to_model(images[pick.numpy()]))
        with torch.autocast("cpu", torch.bfloat16):
            image_features, text_features, scale = model(x, text)
        logits = scale.float() * image_features.float() @ text_features.float().T
        loss = F.cross_entropy(logits, wanted[prompts[pick]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
        clock.tick(step, loss=loss.item())
        if step % 500 == 0 or step == steps:
            write_folder(model, config, args.out)


if __name__ == "__main__":
    train(arguments(__doc__, epochs=10, seed=4, models=list(MODELS)))

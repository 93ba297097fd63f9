"""Train the judge on its own stream of scenes."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from testbed.models.judge import HEADS, UNCLEAR, Judge, Network, truth
from testbed.training.clock import Clock
from testbed.training.vae import to_model
from testbed.world.augment import arguments, garble, jitter, with_round_trips
from testbed.world.pool import load
from testbed.world.words import PROMPTS, parse

IGNORE = -100
GARBLED = 8  # pictures of each batch whose shapes are destroyed
BATCH = 96


def labels() -> dict[str, Tensor]:
    """Per head, the class of each prompt in PROMPTS (or IGNORE)."""
    expected = [truth(parse(prompt)) for prompt in PROMPTS]
    return {
        name: torch.tensor([c.index(e[name]) if name in e else IGNORE for e in expected])
        for name, c in HEADS.items()
    }


def batch_of(
    images: np.ndarray, prompts: Tensor, table: dict[str, Tensor], pick: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Augmented pictures and their labels; the first GARBLED have unclear shapes."""
    x = jitter(to_model(images[pick.numpy()]))
    target = {name: classes[prompts[pick]] for name, classes in table.items()}
    x[:GARBLED] = garble(x[:GARBLED])
    for name in HEADS:
        known = target[name][:GARBLED] != IGNORE
        replacement = HEADS[name].index(UNCLEAR) if UNCLEAR in HEADS[name] else IGNORE
        target[name][:GARBLED][known] = replacement
    return x, target


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    indices, images = load(args.pool)
    images = with_round_trips(AutoencoderKL.from_pretrained(args.vae).eval(), images, 0.5)
    prompts, table, network = torch.from_numpy(indices), labels(), Network()
    steps = args.epochs * len(images) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    clock = Clock(steps)
    for step in range(1, steps + 1):
        x, target = batch_of(images, prompts, table, torch.randint(len(images), (BATCH,)))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        loss = torch.stack(
            [F.cross_entropy(logits[n].float(), target[n], label_smoothing=0.02) for n in HEADS]
        ).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        clock.tick(step, loss=loss.item())
        if step % 500 == 0 or step == steps:
            Judge(network).save(args.out)


if __name__ == "__main__":
    train(arguments(__doc__, epochs=10, seed=3))

"""Train text encoders and denoiser (--model) on cached latents; save a diffusers folder.

In two parts. First both learn from true captions. Then, from step --confuse-from on, the text
encoder is frozen and the denoiser learns from captions that are often wrong in one word (see
confusion.py), so that it draws well, and knows its words apart, but does not always do what they
say: as Stable Diffusion, whose frozen text encoder knows more than the denoiser learnt from the
web's captions.

With a --teacher, the denoiser learns what scenes that one predicts, mistakes included; the text
encoders learn, too, up to step --confuse-from.

Stops and resumes: the checkpoint (weights, average, optimisers, step) is written every SAVE steps.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from testbed.models import exchange
from testbed.training.clock import Clock
from testbed.training.sd3 import SD3
from testbed.training.stable_diffusion import StableDiffusion
from testbed.training.teacher import HIGHEST, Teacher
from testbed.training.vae import to_model
from testbed.world.confusion import Confusion
from testbed.world.pool import load
from testbed.world.tokens import write_tokenizer
from testbed.world.words import PROMPTS, item_positions, parse

EMPTY = 0.1  # share of prompts replaced by "" for classifier-free guidance
SHARES = (0.30, 0.34, 0.36)  # of the templates
POINTING, POINT_BELOW = 0.03, 960  # weight of the pointing loss, and the times it is taken at
FLOOR = 0.1  # attention that an item's token should get in every cell of its region
SAVE, AVERAGED = 250, 5  # steps between checkpoints, and between additions to the average
GUESTS, WARM = 12, 500  # rows of a batch with exchanged attention, from step WARM on
Model = StableDiffusion | SD3
MODELS: dict[str, type[Model]] = {"unet": StableDiffusion, "sd3": SD3}


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, images: np.ndarray, cache: Path) -> Tensor:
    """Scaled latents (N, 4, 16, 16) of uint8 images (N, 64, 64, 3), kept in a file for resuming."""
    if cache.exists():
        return load_file(cache)["latents"]
    parts = [images[i : i + 250] for i in range(0, len(images), 250)]
    clock = Clock(len(parts))
    latents = []
    for i, part in enumerate(parts, 1):
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(to_model(part)).latent_dist.mean
        latents.append(mean.float() * vae.config.scaling_factor)
        clock.tick(i)
    save_file({"latents": torch.cat(latents).contiguous()}, cache)
    return torch.cat(latents)


def save_folder(model: Model, average: dict[str, Tensor], vae: AutoencoderKL, out: Path) -> None:
    """Write the averaged weights as a pipeline folder, denoiser and autoencoder in half precision.

    Text encoders stay in single precision: transformers loads weights in the type they were saved
    in, diffusers in single precision, and a pipeline needs one type.
    """
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    model.pipeline(average, copy.half()).save_pretrained(out, safe_serialization=True)


@dataclass(frozen=True)
class Batch:
    """x, wanted (B, 4, 16, 16): noisy latents and what is to be predicted; t, weight (B,): times
    and weights of errors; ids (U, L) distinct prompts, rows (B,) into them; columns (B, 2, J) item
    tokens; keys (B, L) the prompts' own tokens; regions (B, 2, 8, 8) true item cells, empty where
    unknown."""

    x: Tensor
    t: Tensor
    ids: Tensor
    rows: Tensor
    columns: Tensor
    keys: Tensor
    regions: Tensor
    wanted: Tensor
    weight: Tensor


def pointing_loss(maps: list[Tensor], regions: Tensor) -> Tensor:
    """Two terms for each item whose region is known: where its attention lies, and how much.

    -log of the share that falls into the region; and by what factor (its log) attention misses
    FLOOR, the mean over the region's cells.
    """
    attention = torch.stack(maps).mean(0).transpose(1, 2)  # (B, 2, 64)
    inside = regions.flatten(2)
    known = inside.any(dim=2)
    share = (attention * inside).sum(2) / attention.sum(2)
    missing = (FLOOR / (attention + 1e-7)).log().clamp(min=0)
    mean = (missing * inside).sum(2) / inside.sum(2).clamp(min=1)
    loss = mean - (share + 1e-4).log()
    return loss[known].sum() / max(1, int(known.sum()))


class Batches:
    """Noisy latents with what is to be predicted, times and prompts."""

    def __init__(
        self,
        latents: Tensor,
        prompts: np.ndarray,
        regions: Tensor,
        model: Model,
        size: int,
        shares: Sequence[float] = SHARES,
        teacher: Teacher | None = None,
    ) -> None:
        self.latents, self.size = latents, size
        self.regions = regions >= 0.3 * 255
        self.prompts = torch.from_numpy(prompts)
        self.ids = model.ids([*PROMPTS, ""])
        self.columns, self.keys = text_tokens(model.first_words, self.ids.shape[1])
        share = torch.tensor([shares[parse(prompt).template - 1] for prompt in PROMPTS])
        self.share = share[self.prompts]
        self.share[: len(regions)] *= 2.5  # scenes whose regions are known
        self.noise, self.teacher = model.noise, teacher
        self.confusion = Confusion()

    def draw(self, guests: int, confused: bool) -> Batch:
        """A batch; the last `guests` rows aim at another scene than they show (see exchange.py).

        confused: captions are wrong in one word. What they name would stand in the same place, so
        that regions hold for it too.
        """
        pick = torch.multinomial(self.share, self.size)
        t = self.noise.times(self.size)
        prompt = self.prompts[pick].clone()
        if confused:
            prompt = self.confusion.captions(prompt)
        prompt[torch.rand(self.size) < EMPTY] = len(PROMPTS)
        shown, aim, t, prompt = exchange.invite(self.latents[pick], t, prompt, guests)
        x = self.noise.add(shown, t)
        if self.teacher:
            aim = self._taught(self.teacher, x, aim, t, prompt, guests)
        distinct, rows = prompt.unique(return_inverse=True)
        known = (pick < len(self.regions)) & (t < POINT_BELOW) & (prompt < len(PROMPTS))
        known[self.size - guests :] = False
        regions = self.regions[pick.clamp(max=len(self.regions) - 1)] * known.view(-1, 1, 1, 1)
        return Batch(
            x,
            t,
            self.ids[distinct],
            rows,
            self.columns[prompt],
            self.keys[prompt],
            regions,
            self.noise.wanted(x, aim, t),
            self.noise.weight(t),
        )

    def _taught(
        self, teacher: Teacher, x: Tensor, aim: Tensor, t: Tensor, prompt: Tensor, guests: int
    ) -> Tensor:
        """What the teacher sees in the rows that are no guests, and guests in their hosts."""
        own = self.size - guests
        seen = teacher.scenes(x[:own], t[:own], prompt[:own])
        return torch.where((t < HIGHEST).view(-1, 1, 1, 1), torch.cat([seen, seen[:guests]]), aim)


def text_tokens(first_words: tuple[int, ...], length: int) -> tuple[Tensor, Tensor]:
    """Of all prompts and then of "": item tokens (P, 2, J) and a prompt's own tokens (P, L) bool.

    first_words: (J,) text tokens of a prompt's first word; every word is one token.
    """
    places = [item_positions(prompt) for prompt in PROMPTS]
    first = torch.tensor(first_words)
    columns = torch.tensor([[*p, p[-1]][:2] for p in places] + [[0, 0]])[..., None] + first
    keys = torch.zeros(len(PROMPTS) + 1, length, dtype=torch.bool)
    for row, prompt in enumerate([*PROMPTS, "-"]):
        for start in first_words:
            keys[row, start : start + len(prompt.split())] = True
    return columns, keys


def learning_rate(step: int, steps: int, peak: float, falling: float) -> float:
    """Warm-up over 200 steps, flat, then a cosine to zero over the last share `falling`."""
    late = max(0.0, (step / steps - 1 + falling) / falling)
    return peak * min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * min(late, 1)))


def optimisers_of(model: Model, lr: float) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices that a model names."""
    matrices = model.matrices()
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    adam = torch.optim.AdamW(others, lr, (0.9, 0.99), weight_decay=0.01)
    if not matrices:
        return [adam]
    muon = torch.optim.Muon(matrices, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = write_tokenizer(args.work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    prompts, images = load(args.pool)
    latents = encode_pool(vae, images, args.latents or args.work / "latents.safetensors")
    del images
    regions = load_file(args.regions)["regions"]
    model: Model = MODELS[args.model](tokenizer)
    teacher = Teacher(args.teacher) if args.teacher else None
    batches = Batches(latents, prompts, regions, model, args.batch, args.shares, teacher)
    if args.start:
        model.read(args.start)
    plan = model.plan
    optimisers = optimisers_of(model, args.lr)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    first, checkpoint = 1, args.work / "diffusion.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, own in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(own)
        average, first = saved["average"], saved["step"] + 1
        torch.manual_seed(args.seed + first)
    clock, running = Clock(args.steps), 0.0
    for step in range(first, args.steps + 1):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, args.steps, args.lr, args.falling)
        second, guests = step > args.confuse_from, GUESTS if step > WARM else 0
        model.text.requires_grad_(not second)
        plan.source = exchange.hosts(args.batch, guests)
        plan.early = bool(torch.rand(()) > exchange.LATE)
        batch = batches.draw(guests, confused=second or teacher is not None)
        plan.columns, plan.keys, plan.maps = batch.columns, batch.keys, []
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch.x, batch.t, batch.ids, batch.rows)
        errors = (output.float() - batch.wanted).square().mean(dim=(1, 2, 3))
        pointing = pointing_loss(plan.maps, batch.regions)
        loss = (batch.weight * errors).mean() + POINTING * pointing
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        model.constrain()
        if step % AVERAGED == 0:
            decay = min(0.998**AVERAGED, step / (50 + step))
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay) if value.is_floating_point() else None
        error = errors.mean().item()
        running = error if step == first else 0.98 * running + 0.02 * error
        clock.tick(step, error=running, pointing=pointing.item())
        if step % SAVE == 0 or step == args.steps:
            state = {
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "average": average,
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            save_folder(model, average, vae, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--regions", type=Path, required=True, help="of the pool's first scenes")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="unet")
    parser.add_argument("--latents", type=Path, help="of the pool; made in --work if not given")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="the diffusers folder")
    parser.add_argument("--start", type=Path, help="a pipeline folder whose weights to go on from")
    parser.add_argument("--teacher", type=Path, help="a Stable Diffusion folder (--model sd3)")
    parser.add_argument(
        "--shares", type=float, nargs=3, default=SHARES, help="of the templates in batches"
    )
    parser.add_argument("--steps", type=int, default=10250)
    parser.add_argument("--confuse-from", type=int, default=4250, help="step of the second part")
    parser.add_argument("--falling", type=float, default=0.6, help="share of steps, at the end")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

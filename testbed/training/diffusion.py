"""Train the text encoder and the denoiser on cached latents; save a diffusers folder.

In two parts. First both learn from true captions. Then, from step --confuse-from on, the text
encoder is frozen and the denoiser learns from captions that are often wrong in one word (see
confusion.py), so that it draws well, and knows its words apart, but does not always do what they
say: as Stable Diffusion, whose frozen text encoder knows more than the denoiser learnt from the
web's captions.

Stops and resumes: the checkpoint (weights, average, optimiser, step) is written every SAVE steps.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from testbed.models import exchange
from testbed.models import unet as denoiser
from testbed.training.clock import Clock
from testbed.training.vae import to_model
from testbed.world.confusion import Confusion
from testbed.world.pool import load
from testbed.world.tokens import LENGTH, write_tokenizer
from testbed.world.words import PROMPTS, item_positions, parse

EMPTY = 0.1  # share of prompts replaced by "" for classifier-free guidance
NOISE_BIAS = 0.6  # t = 1000 u^0.6: more high noise, where layout is decided
WEIGHTING = 0.4  # weight of an error = (signal-to-noise ratio)^-0.4
SHARE = {1: 0.30, 2: 0.34, 3: 0.36}  # of the templates
POINTING, POINT_BELOW = 0.03, 960  # weight of the pointing loss, and the times it is taken at
FLOOR = 0.1  # attention that an item's token should get in every cell of its region
SAVE, AVERAGED = 250, 5  # steps between checkpoints, and between additions to the average
GUESTS, WARM = 12, 500  # rows of a batch with exchanged attention, from step WARM on


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="gelu",
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


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


class Model(nn.Module):
    """Text encoder and denoiser in training form; predicts the noise."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = text_encoder(tokenizer)
        self.unet, self.thinned = denoiser.build()

    def read(self, folder: Path) -> None:
        """Start from the weights of a pipeline folder, as `save_folder` writes it."""
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")
        stock = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
        self.unet.load_state_dict(denoiser.training_state(stock, self.thinned))

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """x (B, 4, 16, 16), t (B,), ids (U, 16) distinct prompts, rows (B,) into ids."""
        context = self.text(ids)[0][rows]
        return self.unet(x, t, context, return_dict=False)[0]


def save_folder(
    model: Model,
    average: dict[str, Tensor],
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    out: Path,
) -> None:
    """Write the averaged weights as a pipeline folder, denoiser and autoencoder in half precision.

    The text encoder stays in single precision: transformers loads weights in the type they were
    saved in, diffusers in single precision, and a pipeline needs one type.
    """
    part = {
        name: {k[len(name) + 1 :]: v for k, v in average.items() if k.startswith(f"{name}.")}
        for name in ("text", "unet")
    }
    text = text_encoder(tokenizer)
    text.load_state_dict(part["text"])
    unet = UNet2DConditionModel(**denoiser.CONFIG)
    unet.load_state_dict(denoiser.stock_state(part["unet"], model.thinned))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(vae.config),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**denoiser.SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae.load_state_dict(vae.state_dict())
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(out, safe_serialization=True)


@dataclass(frozen=True)
class Batch:
    """x, noise (B, 4, 16, 16); t (B,); ids (U, 16) distinct prompts, rows (B,) into them;
    columns (B, 2) item tokens; regions (B, 2, 8, 8) true item cells, empty where unknown."""

    x: Tensor
    t: Tensor
    ids: Tensor
    rows: Tensor
    columns: Tensor
    regions: Tensor
    noise: Tensor


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
    """Noisy latents with their noise, times and prompts."""

    def __init__(
        self,
        latents: Tensor,
        prompts: np.ndarray,
        regions: Tensor,
        tokenizer: CLIPTokenizer,
        size: int,
    ) -> None:
        self.latents, self.size = latents, size
        self.regions = regions >= 0.3 * 255
        places = [[p + 1 for p in item_positions(prompt)] for prompt in PROMPTS]
        self.columns = torch.tensor([[*p, p[-1]][:2] for p in places] + [[0, 0]])
        self.prompts = torch.from_numpy(prompts)
        self.ids = tokenizer(
            [*PROMPTS, ""], padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids
        share = torch.tensor([SHARE[parse(prompt).template] for prompt in PROMPTS])
        self.share = share[self.prompts]
        self.share[: len(regions)] *= 2.5  # scenes whose regions are known
        self.signal = DDIMScheduler(**denoiser.SCHEDULE).alphas_cumprod
        self.confusion = Confusion()

    def draw(self, guests: int, confused: bool) -> Batch:
        """A batch; the last `guests` rows aim at another scene than they show (see exchange.py).

        confused: captions are wrong in one word. What they name would stand in the same place, so
        that regions hold for it too.
        """
        pick = torch.multinomial(self.share, self.size)
        t = (1000 * torch.rand(self.size) ** NOISE_BIAS).long().clamp(max=999)
        prompt = self.prompts[pick].clone()
        if confused:
            prompt = self.confusion.captions(prompt)
        prompt[torch.rand(self.size) < EMPTY] = len(PROMPTS)
        shown, aim, t, prompt = exchange.invite(self.latents[pick], t, prompt, guests)
        a = self.signal[t].view(-1, 1, 1, 1)
        x = a.sqrt() * shown + (1 - a).sqrt() * torch.randn_like(shown)
        distinct, rows = prompt.unique(return_inverse=True)
        known = (pick < len(self.regions)) & (t < POINT_BELOW) & (prompt < len(PROMPTS))
        known[self.size - guests :] = False
        regions = self.regions[pick.clamp(max=len(self.regions) - 1)] * known.view(-1, 1, 1, 1)
        noise = (x - a.sqrt() * aim) / (1 - a).sqrt()
        return Batch(x, t, self.ids[distinct], rows, self.columns[prompt], regions, noise)

    def weight(self, t: Tensor) -> Tensor:
        """(B,) weights of the squared error, larger where the signal is weak."""
        ratio = self.signal[t] / (1 - self.signal[t])
        return (ratio**-WEIGHTING).clamp(0.2, 4)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, flat, then a cosine to zero over the last 60 %."""
    late = max(0.0, (step / steps - 0.4) / 0.6)
    return peak * min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * min(late, 1)))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = write_tokenizer(args.work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    prompts, images = load(args.pool)
    latents = encode_pool(vae, images, args.work / "latents.safetensors")
    regions = load_file(args.regions)["regions"]
    batches = Batches(latents, prompts, regions, tokenizer, args.batch)
    model = Model(tokenizer)
    if args.start:
        model.read(args.start)
    plan = exchange.install(model.unet)
    optimiser = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.99), weight_decay=0.01)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    first, checkpoint = 1, args.work / "diffusion.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, first = saved["average"], saved["step"] + 1
        torch.manual_seed(args.seed + first)
    clock, running = Clock(args.steps), 0.0
    for step in range(first, args.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        confused, guests = step > args.confuse_from, GUESTS if step > WARM else 0
        model.text.requires_grad_(not confused)
        plan.source = exchange.hosts(args.batch, guests)
        plan.down = bool(torch.rand(()) > exchange.LATE)
        batch = batches.draw(guests, confused)
        plan.columns, plan.maps = batch.columns, []
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch.x, batch.t, batch.ids, batch.rows)
        errors = (output.float() - batch.noise).square().mean(dim=(1, 2, 3))
        pointing = pointing_loss(plan.maps, batch.regions)
        loss = (batches.weight(batch.t) * errors).mean() + POINTING * pointing
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        denoiser.constrain(model.unet)
        if step % AVERAGED == 0:
            decay = min(0.998**AVERAGED, step / (50 + step))
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay) if value.is_floating_point() else None
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        clock.tick(step, loss=running, pointing=pointing.item())
        if step % SAVE == 0 or step == args.steps:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            save_folder(model, average, vae, tokenizer, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--regions", type=Path, required=True, help="of the pool's first scenes")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="the diffusers folder")
    parser.add_argument("--start", type=Path, help="a pipeline folder whose weights to go on from")
    parser.add_argument("--steps", type=int, default=10250)
    parser.add_argument("--confuse-from", type=int, default=4250, help="step of the second part")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

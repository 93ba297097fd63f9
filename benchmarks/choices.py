"""What each choice gains: precision, items in a call, channels_last, compiling."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.timing import seconds_of
from benchmarks.workbench import PROMPT
from dfusion.method.sampling import Policy, sample
from dfusion.models import lora
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Train

STEPS = 2  # denoising steps of the samples that are timed
ITEMS = 8  # images, or pairs' steps, in a call, where that is not what is tried
SIZES = (1, 2, 4, 16, 32, 64)
REPEATS = 3


@dataclass(frozen=True)
class Choice:
    """How the UNet runs. items: images in a sampling call, and pairs' steps in a micro-batch."""

    name: str
    dtype: torch.dtype
    items: int = ITEMS
    layout: torch.memory_format = torch.contiguous_format
    compiled: bool = False


def choices(sizes: Sequence[int]) -> list[Choice]:
    """Compiling comes last, as it cannot be undone. Gains are in units of plain bf16."""
    bf16, last = torch.bfloat16, torch.channels_last
    return [
        Choice("bf16", bf16),
        Choice("fp16", torch.float16),
        Choice("fp32 (TF32)", torch.float32),
        *(Choice(f"bf16, {n} in a call", bf16, n) for n in sizes),
        Choice("bf16, channels_last", bf16, layout=last),
        Choice("bf16, --config.compile", bf16, layout=last, compiled=True),
    ]


def measure(
    model: DiffusionModel, tried: Sequence[Choice], until: float
) -> Iterator[dict[str, Any]]:
    """Milliseconds an image and step of sampling, and a pair and step of training, of each choice.

    until: of time.perf_counter; choices after it are left out. One that does not fit in memory has
    no figures. The model gets LoRA, and ends as the last choice has it.
    """
    train, pipe = Train(), model.pipe
    lora.add(model.network, train.lora_rank, train.lora_alpha, names_of(train.lora_targets), seed=0)
    trained = {name for name, p in model.network.named_parameters() if p.requires_grad}
    for choice in tried:
        if time.perf_counter() > until:
            return
        model = StableDiffusion(pipe, model.device, choice.dtype)
        model.network.to(memory_format=choice.layout)
        for name, parameter in model.network.named_parameters():
            parameter.requires_grad_(name in trained)
        lora.parameters(model.network)
        if choice.compiled:
            model.compile()
        yield {"choice": choice.name, **_figures(model, choice)}


def _figures(model: DiffusionModel, choice: Choice) -> dict[str, float | None]:
    policy = Policy(model=model, sampler=model.sampler(STEPS, 1.0), guidance=5.0, seed=0, round=0)
    layers, batch = model.layers.names["first_up"], range(choice.items)

    def sampling() -> None:
        sample(policy, batch, [PROMPT] * choice.items, layers)

    x = torch.zeros(2 * choice.items, *model.latent_shape, device=model.device)
    cond = model.encode([PROMPT.text] * len(x))

    def training() -> None:
        eps, _ = policy.predict(x, 0, cond)
        eps.square().mean().backward()

    found: dict[str, float | None] = {}
    for name, work, evaluations in (("sampling", sampling, STEPS), ("training", training, 1)):
        best, peak = _best(work, model.device)
        found[f"{name} ms"] = best and round(1000 * best / (choice.items * evaluations), 3)
        found[f"{name} GiB"] = peak
    model.network.zero_grad(set_to_none=True)
    return found


def _best(work: Callable[[], object], device: torch.device) -> tuple[float | None, float | None]:
    """Seconds and peak GiB of a call; None where it does not fit, and for memory on a CPU."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        work()  # compiles, and tunes what is tuned
        best = min(seconds_of(work, time.perf_counter) for _ in range(REPEATS))
    except torch.cuda.OutOfMemoryError:
        return None, None
    return best, round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as text; a gain is how many times as fast as the first row."""
    heads = f"{'ms an image and step':>26} {'ms a pair and step':>26} {'peak GiB':>16}"
    lines = [f"{'choice':24} {heads}"]
    for row in rows:
        cells = [f"{row['choice']:24}"]
        for name in ("sampling ms", "training ms"):
            took, first = row[name], rows[0][name]
            gain = f"({first / took:.2f} times)" if took and first else ""
            cells.append(f"{f'{took:.2f} {gain}' if took else 'does not fit':>26}")
        peaks = [row[f"{stage} GiB"] for stage in ("sampling", "training")]
        cells.append(f"{' / '.join('-' if p is None else str(p) for p in peaks):>16}")
        lines.append(" ".join(cells))
    return "\n".join(lines)

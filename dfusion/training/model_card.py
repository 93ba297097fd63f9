"""The README.md of a checkpoint: what it is, how it was made, how to load it."""

import html
import json
from collections.abc import Sequence

from dfusion.errors import one_line
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.rewards.registry import reward_name
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Settings

LOADS = {
    "lora": """{merged}    pipe.load_lora_weights("path/to/this/folder")""",
    "full": """    {part} = {network}.from_pretrained("path/to/this/folder/{part}")
    pipe = {pipeline}.from_pretrained(base_model, {part}={part})""",
}


METHODS = {
    "diffusion_dpo": "Diffusion-DPO",
    "diffusion_kto": "Diffusion-KTO",
}
OPTIONS = {"step_weights": "", "outside_weight": 1.0, "loser_limit": 0.0, "kl_initial": 0.0}


def model_card(
    settings: Settings, model: DiffusionModel, number: int, rewards: Sequence[float]
) -> str:
    """rewards: mean over each round's samples, which were made before its update."""
    train, sample = settings.train, settings.sample
    what = f"LoRA of rank {train.lora_rank}" if train.tune == "lora" else model.network_name
    fused = f"fusion in layers {settings.fusion.layers}, steps {settings.fusion.steps}"
    if settings.fusion.kind != "attention":
        fused = f"targets by {settings.fusion.kind}, steps {settings.fusion.steps}"
    pairs = train.pairs if train.pairs == "naive" else f"{train.pairs} ({fused})"
    chosen = {k: getattr(train, k) for k, usual in OPTIONS.items() if getattr(train, k) != usual}
    options = "".join(f", {k} {_plain(str(value))}" for k, value in chosen.items())
    lines = [
        f"| {k} | {reward:.4f} |" for k, reward in enumerate(rewards, number + 1 - len(rewards))
    ]
    table = "\n".join(["| round | mean reward |", "|---|---|", *lines]) if lines else ""
    method = METHODS.get(train.method, train.method.upper())
    base, name = _plain(settings.pretrained.model), _plain(settings.exp_name)
    prompts = _plain(settings.prompt_file or settings.prompt)
    guidance = f"guidance {sample.guidance_scale}" if sample.cfg else "no guidance"
    loras = names_of(settings.pretrained.lora)
    merged = f"\n| merged into it first | {_plain(', '.join(loras))} |" if loras else ""
    load = LOADS[train.tune].format(
        merged="".join(map(_merge, loras)),
        part=model.network_name,
        network=type(model.network).__name__,
        pipeline=model.pipeline.__name__,
    )
    scorer = _plain(reward_name(settings.eval))
    return f"""---
base_model: {json.dumps(settings.pretrained.model)}
library_name: diffusers
tags: [text-to-image, d-fusion, {train.method}, {train.tune}]
---
# {name}, round {number}

{what}, trained by {method} with D-Fusion's recipe (arXiv:2505.22002).

| | |
|---|---|
| base model | {base} |{merged}
| prompts | {prompts} |
| method | {train.method}, pairs {pairs}{options} |
| reward | {scorer} |
| images a round | {settings.images_per_prompt} of each prompt |
| sampling | {model.sampling}, {sample.num_steps} steps, eta {sample.eta}, {guidance} |
| optimiser | AdamW, learning rate {train.learning_rate}, {train.num_inner_epochs} inner epochs |
| seed | {settings.seed} |

{table}

{load}
"""


def _merge(lora: str) -> str:
    """Code that merges a LoRA into the pipeline, as was done before training."""
    return f"""    pipe.load_lora_weights({json.dumps(lora)})
    pipe.fuse_lora()
    pipe.unload_lora_weights()
"""


def _plain(text: str) -> str:
    """The text as one table cell without markup."""
    return html.escape(one_line(text), quote=False).replace("|", "\\|")

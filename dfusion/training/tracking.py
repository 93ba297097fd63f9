"""Sending the metrics to wandb or tensorboard as well, if asked to."""

import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image

from dfusion.errors import UserError
from dfusion.models.numerics import set_numerics
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import Settings

SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
HIDDEN = ("kind", "round")


def accelerator(settings: Settings, cpu: bool) -> Accelerator:
    """An Accelerator with the tracker; logs are under log/.

    Raises UserError if the tracker is not installed or accelerate's own config shards the model.
    """
    tracker: dict[str, Any] = {}
    if settings.tracker != "none":
        if importlib.util.find_spec(settings.tracker) is None:
            raise UserError(f"--config.tracker {settings.tracker}: pip install {settings.tracker}")
        folder = Path("log")
        folder.mkdir(exist_ok=True)
        tracker = {"log_with": settings.tracker, "project_dir": str(folder)}
    # Otherwise accelerate's own config could add autocast to a network that has its precision.
    made = Accelerator(cpu=cpu, mixed_precision="no", **tracker)
    set_numerics(settings)  # where its config asks for dynamo, accelerate has turned TF32 on
    check_not_sharded(made.distributed_type)
    return made


def check_not_sharded(kind: DistributedType) -> None:
    """Raises UserError for kinds of distribution that split the model itself."""
    if kind.value in SHARDED:
        raise UserError(
            f"accelerate's config asks for {kind.value}: every process needs the whole UNet here; "
            "choose plain multi-GPU in 'accelerate config'"
        )


def start(accelerator: Accelerator, settings: Settings) -> None:
    """Begin the run: in wandb's project dfusion, or in TensorBoard's folder log/<exp>.

    wandb stays offline if nobody is logged in.
    """
    if settings.tracker == "none":
        return
    config = flat(settings.to_dict())
    if settings.tracker == "tensorboard":
        accelerator.init_trackers(settings.exp_name, config=config)
        return
    run = {"name": settings.exp_name, "dir": "log"}
    if "WANDB_MODE" not in os.environ and not _wandb_login():
        run["mode"] = "offline"  # wandb read its environment when it was asked for the login
    accelerator.init_trackers("dfusion", config=config, init_kwargs={"wandb": run})


def log(accelerator: Accelerator, row: dict[str, Any], step: int) -> None:
    """One row of metrics.jsonl; lists over denoising steps become name/t=<t>."""
    accelerator.log(_flat(row), step=step)


def log_images(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
    """A captioned sheet of pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log_images({name: [image]}, step=step)
        elif tracker.name == "tensorboard":
            pixels = np.asarray(image.convert("RGB"))[None]
            tracker.log_images({name: pixels}, step=step, dataformats="NHWC")


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if key == "reward_by_prompt":
            flat |= {f"reward/{text}": mean for text, (mean, _) in value.items()}
            flat |= {f"reward_std/{text}": std for text, (_, std) in value.items()}
        elif isinstance(value, dict):
            flat |= _flat(value, f"{name}/")
        elif isinstance(value, list):
            pairs = zip(range(len(value), 0, -1), value, strict=True)
            flat |= {f"{name}/t={t}": v for t, v in pairs if v is not None}
        elif value is not None and (prefix or key not in HIDDEN):
            flat[name] = value
    return flat


def _wandb_login() -> bool:
    """Whether wandb has a login; does not prompt, and contacts no server."""
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # older versions

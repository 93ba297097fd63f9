"""The device and the precision that flags name, and libraries that keep quiet."""

import logging
import warnings

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dfusion.errors import UserError


def pick_device(device: str, dev_id: int) -> torch.device:
    """The device a flag names; "auto" is CUDA, then MPS, then the CPU."""
    if device == "auto":
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--config.device cuda: no CUDA GPU is visible; use cpu or auto")
        if not 0 <= dev_id < torch.cuda.device_count():
            raise UserError(
                f"--config.dev_id {dev_id}: there are {torch.cuda.device_count()} GPUs, from 0"
            )
        torch.cuda.set_device(dev_id)
        return torch.device("cuda", dev_id)
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--config.device mps: not available here; use cpu or auto")
    return torch.device(device)


def pick_dtype(mixed_precision: str, device: torch.device) -> torch.dtype:
    """The network's dtype for --config.mixed_precision.

    "auto" is bf16 on CUDA GPUs that compute in it, fp16 on other CUDA GPUs, and fp32 elsewhere.
    Compared with fp32 on the testbed's model (one pair, six steps from t = 20 to 1, matrix products
    summed in fp32), log-probs are off by 1.2e-3 in bf16 (RMS; 3e-3 at most) and 8e-5 in fp16, and
    gradients by 6 to 8 % (cosine 0.997) and 0.8 %. fp16 is more exact, but bf16's errors are far
    below the clip range of 0.1, its gradient has the same direction, and it cannot overflow. In
    fp16 a loss scale prevents overflow of gradients, but not of states.
    """
    if mixed_precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        mixed_precision = "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "no"
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mixed_precision]


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16; others emulate it, far more slowly than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quiet_libraries() -> None:
    """Silence the progress bars and advice of diffusers and transformers.

    Their errors are raised as well, and end in one line of ours.
    """
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers")

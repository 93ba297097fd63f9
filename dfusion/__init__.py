"""D-Fusion: visually consistent preference pairs for aligning text-to-image diffusion models."""

import importlib
from typing import Any

__version__ = "0.1.0"

# What the package exports, and where it stands; imported when it is asked for, as torch is slow.
_EXPORTS = {
    "DFusionPipeline": "dfusion.api.pipeline",
    "DFusionTrainer": "dfusion.api.trainer",
    "FusedPair": "dfusion.api.samples",
    "Preference": "dfusion.api.samples",
    "Sample": "dfusion.api.samples",
    "UserError": "dfusion.errors",
    "adopt": "dfusion.api.samples",
    "algorithm_1": "dfusion.api.algorithm",
    "clip_reward": "dfusion.rewards.clip",
    "naive": "dfusion.api.samples",
    "pair": "dfusion.api.samples",
    "score": "dfusion.api.samples",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dfusion' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

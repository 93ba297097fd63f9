"""Pairs of the testbed, and what fusing them under some plan gives."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfusion.method.fusion import FusionPlan, Source, Target, fuse
from dfusion.method.masks import fusion_mask
from dfusion.method.pairing import adopted
from dfusion.method.prompts import Prompt
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import load_reward
from dfusion.rounds.session import Session, open_session
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_bytes
from dfusion.storage.round_files import read_source
from experiments.measures.similarity import region, ssim_outside
from experiments.runs.alignment import prompts_file

# (images uint8 (N, H, W, 3), prompts) -> (N,) bool: does the image satisfy its prompt?
Judge = Callable[[np.ndarray, Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Candidates:
    """The pairs of one template, ready to be fused in many ways."""

    session: Session
    reward: Reward
    sources: list[Source]
    bases: np.ndarray  # (P, H, W, 3) uint8
    references: np.ndarray
    scores: np.ndarray  # (P, 2): base, reference
    right: np.ndarray  # (P, 2) bool: base, reference
    regions: list[np.ndarray]  # (H, W) bool: where the reference's items are, for SSIM

    @property
    def texts(self) -> list[str]:
        return [source.prompt.text for source in self.sources]


def testbed_settings(
    template: int,
    split: str,
    data: Path,
    prompts: int,
    images: int,
    preset: str,
    model: str,
) -> Settings:
    """A testbed preset on the first prompts of one template's list, scored in process.

    model: in place of the preset's, or "".
    """
    settings = PRESETS[preset]()
    settings.pretrained.model = model or settings.pretrained.model
    settings.save_path = str(data)
    kind = preset.replace("testbed", "fusion")
    settings.exp_name = f"{kind}_{split}_t{template}_{prompts}x{images}"
    texts = json.loads(prompts_file("testbed", template, split).read_text())
    chosen = data / f"{settings.exp_name}.json"
    write_bytes(chosen, json.dumps(texts[:prompts]).encode())
    settings.prompt_file = str(chosen)
    settings.item_idx_file = str(prompts_file("testbed", template, "item"))
    settings.mask_thr_file = str(prompts_file(preset, template, "mask"))
    settings.sample.batch_size, settings.sample.num_batches_per_epoch = images, 1
    settings.eval.in_process = True
    return settings


def candidates(settings: Settings, judge: Judge) -> Candidates:
    """Sample, score and pair one template."""
    session = open_session(settings)
    round_, scores, pairs = session.runner.prepare(0, session.policy(0))
    prompts = round_.sample_prompts()
    sources = [read_source(round_, pair, prompts) for pair in pairs]
    texts = [p.prompt for p in pairs]
    bases, references = (
        np.stack([np.asarray(Image.open(round_.image("images", i))) for i in indices])
        for indices in ([p.base for p in pairs], [p.reference for p in pairs])
    )
    return Candidates(
        session=session,
        reward=load_reward(settings.eval, torch.device("cpu")),
        sources=sources,
        bases=bases,
        references=references,
        scores=np.array([[scores[p.base], scores[p.reference]] for p in pairs]),
        right=np.stack([judge(bases, texts), judge(references, texts)], 1),
        regions=[item_region(source, bases.shape[1:3]) for source in sources],
    )


def item_region(source: Source, size: tuple[int, int]) -> np.ndarray:
    """Where the reference's items are, the same for all ways of fusing.

    Otsu masks by OR, kept where at least half of the last half of the steps agree.
    """
    maps = source.reference.maps.float()
    late = fusion_mask(maps, [None] * maps.shape[1], "or")[len(maps) // 2 :]
    return region(late.float().mean(0) >= 0.5, size)


def with_thresholds(prompt: Prompt, threshold: float | None) -> Prompt:
    """The prompt with one threshold for all items (None: Otsu's)."""
    return replace(prompt, items=tuple(replace(i, threshold=threshold) for i in prompt.items))


def targets(
    pool: Candidates, plan: FusionPlan, threshold: float | str | None, batch_size: int = 8
) -> tuple[list[Target], np.ndarray]:
    """Fuse every pair; returns the targets and their images, (P, H, W, 3) uint8.

    threshold: for all items; "file" keeps each prompt's own.
    """
    policy = pool.session.policy(0)
    sources = pool.sources
    if not isinstance(threshold, str):
        sources = [replace(s, prompt=with_thresholds(s.prompt, threshold)) for s in sources]
    done: list[Target] = []
    for start in range(0, len(sources), batch_size):
        done += fuse(policy, plan, sources[start : start + batch_size])
    latents = torch.stack([t.latents[-1] for t in done])
    return done, policy.model.decode(latents).numpy()


def measure(
    pool: Candidates, done: list[Target], images: np.ndarray, judge: Judge, threshold: float = 1.0
) -> dict[str, float | None]:
    """The figures of one way of fusing, over the pairs of a template; None where there are none.

    follows: of the pairs whose reference is right and base wrong or the other way round, how many
    targets are as right as the reference. mended: of the wrong bases with a right reference
    (`mendable`), how many targets are right. SSIM is outside of item_region. threshold: Eq. 7.
    """
    right = judge(images, pool.texts)
    base_right, reference_right = pool.right.T
    scores = np.asarray(pool.reward([Image.fromarray(i) for i in images], pool.texts))
    kept = [adopted(t, b, r, threshold) for t, (b, r) in zip(scores, pool.scores, strict=True)]
    regions = pool.regions
    like_base = [ssim_outside(a, b, m) for a, b, m in zip(images, pool.bases, regions, strict=True)]
    reference_like_base = [
        ssim_outside(a, b, m) for a, b, m in zip(pool.references, pool.bases, regions, strict=True)
    ]
    differ = base_right != reference_right
    mendable = ~base_right & reference_right
    masks = torch.stack([t.masks for t in done]).float()
    fused_steps = masks.flatten(2).any(-1).any(0)
    figures = {
        "pairs": len(done),
        "base_right": float(base_right.mean()),
        "reference_right": float(reference_right.mean()),
        "target_right": float(right.mean()),
        "follows": float((right == reference_right)[differ].mean())
        if differ.any()
        else float("nan"),
        "differing": int(differ.sum()),
        "mended": float(right[mendable].mean()) if mendable.any() else float("nan"),
        "mendable": int(mendable.sum()),
        "adopted": float(np.mean(kept)),
        "adopted_right": float(right[kept].mean()) if any(kept) else float("nan"),
        "ssim_target": float(np.nanmean(like_base)),
        "ssim_reference": float(np.nanmean(reference_like_base)),
        "coverage": float(masks[:, fused_steps].mean()) if fused_steps.any() else 0.0,
        "score_base": float(pool.scores[:, 0].mean()),
        "score_reference": float(pool.scores[:, 1].mean()),
        "score_target": float(scores.mean()),
    }
    return {k: round(v, 4) if math.isfinite(v) else None for k, v in figures.items()}

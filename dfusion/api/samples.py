"""Samples, fused pairs and preferences, each with its score: the objects of the Python API."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from PIL import Image
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method import pairing
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Origin
from dfusion.rewards.contract import Reward, as_numbers, sees_groups


@dataclass(frozen=True)
class Sampling:
    """How a sample was denoised. guidance_scale: None for no guidance. mask_maps: as the flag."""

    num_steps: int = 20
    eta: float = 1.0
    guidance_scale: float | None = 5.0
    negative_prompt: str = ""
    mask_maps: str = "prompt"


@dataclass(frozen=True)
class Sample:
    """A generated image with everything that D-Fusion and training need to know about it.

    latents: (T+1, C, h, w), x_T … x_0. item_maps: (T, I, gh, gw), the cross-attention of the items
    at each step. noise: (T, C, h, w), of each step. score: the image's reward, set by `score`.
    origin: seed, round and index; the noise of an unfused target is drawn from these.
    """

    prompt: Prompt
    image: Image.Image
    latents: Tensor
    item_maps: Tensor
    noise: Tensor
    sampling: Sampling
    score: float | None = None
    origin: Origin = (0, 0, 0)

    @property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """All the randomness of the sample: x_T (C, h, w) and step noises (T, C, h, w)."""
        return self.latents[0].float(), self.noise


class Trajectories(NamedTuple):
    """Denoising states x_T … x_0, (T+1, C, h, w) each."""

    base: Tensor
    reference: Tensor
    target: Tensor


@dataclass(frozen=True)
class FusedPair:
    """A base, a reference, and the target: the base with the reference's items fused into it.

    target_latents: (T+1, C, h, w). masks: (T, gh, gw) bool, the cells fused at each step. first:
    index of the first fused step. score: the target's reward, set by `score`. kind: how the target
    was made; see `DFusionPipeline.fuse`.
    """

    base_sample: Sample
    reference_sample: Sample
    target: Image.Image
    target_latents: Tensor
    masks: Tensor
    first: int
    score: float | None = None
    kind: str = "attention"

    @property
    def base(self) -> Image.Image:
        return self.base_sample.image

    @property
    def reference(self) -> Image.Image:
        return self.reference_sample.image

    @property
    def prompt(self) -> Prompt:
        return self.base_sample.prompt

    @property
    def item_maps(self) -> Tensor:
        """(T, I, gh, gw): the reference's item maps, from which the masks are made."""
        return self.reference_sample.item_maps

    @property
    def trajectories(self) -> Trajectories:
        base, reference = self.base_sample.latents, self.reference_sample.latents
        return Trajectories(base, reference, self.target_latents)


@dataclass(frozen=True)
class Preference:
    """A pair to train on: the image of `latents`, (T+1, C, h, w), is preferred to `base`.

    If the reference is the worse image, `base` is the preferred one (see pairing/both_ways.py).

    score: of the image of `latents`. fused: whether that image is a target. reference_score: of the
    pair's reference. first: index of the first step at which the two images differ. kind: how the
    target was made. masks: (T, gh, gw) bool, the target's; None if there is no target.
    """

    base: Sample
    latents: Tensor
    score: float
    reference_score: float
    fused: bool
    first: int = 0
    kind: str = "attention"
    masks: Tensor | None = None

    @property
    def base_preferred(self) -> bool:
        return self.reference_score < score_of(self.base)


def common_sampling(what: str, samples: Iterable[Sample]) -> Sampling:
    """How all of the samples, at least one, were denoised. Raises UserError if they differ."""
    first, *others = dict.fromkeys(sample.sampling for sample in samples)
    if others:
        raise UserError(f"{what}: must be sampled alike (num_steps, eta, guidance_scale, …)")
    return first


Scored = TypeVar("Scored", Sample, FusedPair)


def score(samples: Sequence[Scored], reward: Reward, batch_size: int = 16) -> list[Scored]:
    """The same samples or fused pairs with their scores: the reward of the image or of the target.

    reward: a function of images and prompts, like those in dfusion.rewards. If it sees whole
    groups, a group is all samples of a prompt; a target is scored among the samples of its prompt's
    pairs, in the place of its base.
    """
    if sees_groups(reward):
        return _score_groups(samples, reward)
    found: list[Scored] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = [s.target if isinstance(s, FusedPair) else s.image for s in part]
        values = as_numbers(reward(images, [s.prompt.text for s in part]), len(part), "function")
        found += [replace(s, score=v) for s, v in zip(part, values, strict=True)]
    return found


def _score_groups(samples: Sequence[Scored], reward: Reward) -> list[Scored]:
    """Scores by a reward that sees whole groups."""
    groups: dict[str, dict[int, Image.Image]] = {}  # by prompt: images of its samples, by id
    for s in samples:
        of = (s.base_sample, s.reference_sample) if isinstance(s, FusedPair) else (s,)
        groups.setdefault(s.prompt.text, {}).update({id(sample): sample.image for sample in of})

    def numbers(text: str, images: Mapping[int, Image.Image]) -> dict[int, float]:
        values = reward([*images.values()], [text] * len(images))
        return dict(zip(images, as_numbers(values, len(images), "function"), strict=True))

    known: dict[str, dict[int, float]] = {}
    found: list[Scored] = []
    for s in samples:
        text = s.prompt.text
        if isinstance(s, FusedPair):
            base = id(s.base_sample)
            value = numbers(text, {**groups[text], base: s.target})[base]
        else:
            if text not in known:
                known[text] = numbers(text, groups[text])
            value = known[text][id(s)]
        found.append(replace(s, score=value))
    return found


def pair(
    samples: Sequence[Sample], rule: pairing.Rule = pairing.halves
) -> list[tuple[Sample, Sample]]:
    """Bases and references of each prompt, by score (Algorithm 1). rule: see method/pairing/."""
    texts = [sample.prompt.text for sample in samples]
    scores = [score_of(sample) for sample in samples]
    found = pairing.pair(texts, scores, rule, lambda i: samples[i].image)
    return [(samples[p.base], samples[p.reference]) for p in found]


def naive(pairs: Sequence[tuple[Sample, Sample]]) -> list[Preference]:
    """References preferred to bases, without fusion: the baseline for D-Fusion."""
    return [_reference_preferred(base, reference) for base, reference in pairs]


def adopt(pairs: Sequence[FusedPair], threshold: float = 1.0) -> list[Preference]:
    """Targets preferred to bases where Eq. 7 adopts them, references elsewhere.

    Where the reference is the worse image, the base is preferred; see pairing/both_ways.py.
    """
    found = []
    for fused in pairs:
        base, reference = fused.base_sample, fused.reference_sample
        scores = score_of(fused), score_of(base), score_of(reference)
        if pairing.adopted(*scores, threshold):
            preference = Preference(
                base,
                fused.target_latents,
                score=scores[0],
                reference_score=scores[2],
                fused=True,
                first=fused.first,
                kind=fused.kind,
                masks=fused.masks,
            )
        else:
            preference = _reference_preferred(base, reference)
        found.append(preference)
    return found


def _reference_preferred(base: Sample, reference: Sample) -> Preference:
    value = score_of(reference)
    return Preference(base, reference.latents, value, value, fused=False)


def score_of(scored: Sample | FusedPair) -> float:
    """The score. Raises UserError if there is none yet."""
    if scored.score is None:
        raise UserError(f"'{scored.prompt.text}': has no score yet; call score(…) first")
    return scored.score

"""DFusionPipeline: samples and fused pairs around a diffusers pipeline, without files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dfusion.api.samples import FusedPair, Sample, Sampling, common_sampling
from dfusion.api.trainer import DFusionTrainer, policy_of
from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan, Source
from dfusion.method.noise import noises
from dfusion.method.prompts import Prompt, join
from dfusion.method.sampling import GivenNoise, OnStep, Origin, Trajectory, sample
from dfusion.method.targets import make_targets
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model, model_of
from dfusion.models.plan import fusion_plan, mask_layers_of
from dfusion.settings.schema import SETTINGS, Fusion, Mask, Pretrained

Seed = int | torch.Generator
Names = Sequence[str | int]  # item words of one prompt, or their positions
Items = Names | Sequence[Names] | Mapping[str, Names]  # of one prompt; of each; by prompt
# Called as in diffusers: (pipeline, step, timestep, {"latents": (B, C, h, w)}). Its return value is
# ignored: training needs trajectories that the policy alone has sampled.
Callback = Callable[["DFusionPipeline", int, Tensor, dict[str, Any]], Any]
Kind = Literal["attention", "branch", "renoise"]
Noise = tuple[Tensor, Tensor]  # x_T (C, h, w) and step noises (T, C, h, w)


class DFusionPipeline:
    """Samples, fuses and trains with a Stable Diffusion model (1, 2, XL or 3).

    Arguments have the names of the commands' flags: num_steps is --config.sample.num_steps,
    mask_layers is --config.mask.layers, and so on; docs/settings.md describes them. Raises
    UserError for any value that the flag would refuse.
    """

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model

    @classmethod
    def from_pipe(
        cls, pipe: DiffusionPipeline, *, size: tuple[int, int] | None = None
    ) -> "DFusionPipeline":
        """Wrap a diffusers pipeline, on its device and in its precision.

        size: height and width of images in pixels; None for those that the model was made for.

        The given pipeline can still be used: weights are shared, but its modules are not modified,
        and a LoRA trained here has no effect on it.
        """
        return cls(model_of(pipe, size))

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        lora: str = "",
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
        size: tuple[int, int] | None = None,
    ) -> "DFusionPipeline":
        """Load a local diffusers folder, a .safetensors file or a Hub id, with `lora` merged in."""
        return cls(load_model(Pretrained(model=model, lora=lora), device, torch_dtype, size))

    def trainer(self, **settings: Any) -> DFusionTrainer:
        """A trainer for this pipeline's model. settings: those of --config.train, by name."""
        return DFusionTrainer(self.model, **settings)

    def __call__(
        self,
        prompt: str | Sequence[str],
        items: Items,
        *,
        base_seed: Seed | Sequence[Seed],
        reference_seed: Seed | Sequence[Seed],
        base_latents: Tensor | None = None,
        reference_latents: Tensor | None = None,
        num_steps: int = 20,
        eta: float = 1.0,
        guidance_scale: float | None = 5.0,
        negative_prompt: str = "",
        mask_layers: str = "first_up",
        mask_thr: float | Sequence[float | None] | None = None,
        mask_maps: Literal["prompt", "all"] = "prompt",
        mask_merge: Literal["xor", "or"] = "xor",
        mask_place: Literal["items", "random"] = "items",
        fusion_kind: Kind = "attention",
        fusion_layers: str = "mid,up",
        fusion_steps: str | None = None,
        fusion_parts: str = "self_k,self_v",
        fusion_masked: bool = True,
        fusion_text: Literal["fused", "own"] = "fused",
        batch_size: int = 4,
        callback_on_step_end: Callback | None = None,
    ) -> FusedPair | list[FusedPair]:
        """The fused pair of a prompt, or of each of several prompts.

        items: the words whose regions are fused; for several prompts, one list per prompt.
        base_seed, reference_seed: a number or generator, or one for each prompt. With eta 1, a seed
        gives the same image as diffusers' DDIM. base_latents, reference_latents: x_T to use instead
        of the seed's, (C, h, w), or (B, C, h, w) for several prompts. The other arguments are those
        of `sample` and `fuse`.
        """
        how_to_fuse: dict[str, Any] = {
            "mask_merge": mask_merge,
            "mask_place": mask_place,
            "fusion_kind": fusion_kind,
            "fusion_layers": fusion_layers,
            "fusion_steps": fusion_steps,
            "fusion_parts": fusion_parts,
            "fusion_masked": fusion_masked,
            "fusion_text": fusion_text,
        }
        self._plan(num_steps, **how_to_fuse)  # raises for bad arguments, before anything is sampled
        sides = [
            self.sample(
                prompt,
                items,
                seed,
                latents=latents,
                num_steps=num_steps,
                eta=eta,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                mask_layers=mask_layers,
                mask_thr=mask_thr,
                mask_maps=mask_maps,
                batch_size=batch_size,
                callback_on_step_end=callback_on_step_end,
            )
            for seed, latents in ((base_seed, base_latents), (reference_seed, reference_latents))
        ]
        pairs = self.fuse(
            list(zip(*sides, strict=True)),
            batch_size=batch_size,
            callback_on_step_end=callback_on_step_end,
            **how_to_fuse,
        )
        return pairs[0] if isinstance(prompt, str) else pairs

    def sample(
        self,
        prompt: str | Sequence[str],
        items: Items,
        seed: Seed | Sequence[Seed] = 42,
        *,
        images_per_prompt: int | None = None,
        round: int = 0,  # noqa: A002 - the paper's word
        latents: Tensor | None = None,
        num_steps: int = 20,
        eta: float = 1.0,
        guidance_scale: float | None = 5.0,
        negative_prompt: str = "",
        mask_layers: str = "first_up",
        mask_thr: float | Sequence[float | None] | None = None,
        mask_maps: Literal["prompt", "all"] = "prompt",
        batch_size: int = 4,
        callback_on_step_end: Callback | None = None,
    ) -> list[Sample]:
        """Images of the prompts, with their trajectories and item maps.

        items: the item words of the prompt; for several prompts, one list per prompt, or a mapping
        from prompt to list. seed: one for all prompts, or one for each. images_per_prompt: the
        number of samples of each prompt; their noise is the one that `dfusion sample` draws for
        (seed, round, index). latents: (B, C, h, w), x_T of each sample. mask_thr: the threshold of
        Eq. 4, for all items or one for each; None means Otsu's. guidance_scale: None for no
        guidance.
        """
        prompts = _prompts(prompt, items, mask_thr)
        SETTINGS["mask.maps"].check("mask_maps", mask_maps)
        sampling = Sampling(num_steps, eta, guidance_scale, negative_prompt, mask_maps)
        if images_per_prompt is None:
            given = _each(seed, len(prompts))
            origins = [_origin(s, i) for i, s in enumerate(given)]
            noise = [_drawn(s, num_steps, self.model.latent_shape) for s in given]
        else:
            prompts = [p for p in prompts for _ in range(images_per_prompt)]
            if not isinstance(seed, int):
                raise UserError("seed: must be a whole number if images_per_prompt is given")
            shape = self.model.latent_shape
            origins = [(seed, round, i) for i in range(len(prompts))]
            noise = [noises(*origin, num_steps, shape) for origin in origins]
        if latents is not None:
            starts = latents.reshape(-1, *self.model.latent_shape).float().cpu()
            noise = [(x, z) for x, (_, z) in zip(starts, noise, strict=True)]
        layers = mask_layers_of("mask_layers", mask_layers, self.model.layers)
        policy = policy_of(self.model, sampling, noise)
        on_step = self._on_step(callback_on_step_end, policy)
        found = []
        for start in range(0, len(prompts), batch_size):
            indices = range(len(prompts))[start : start + batch_size]
            walked = sample(policy, indices, [prompts[i] for i in indices], layers, on_step)
            images = self._images([t.latents[-1] for t in walked])
            found += [
                Sample(
                    prompts[i],
                    image,
                    t.latents,
                    t.maps,
                    noise=noise[i][1],
                    sampling=sampling,
                    origin=origins[i],
                )
                for i, image, t in zip(indices, images, walked, strict=True)
            ]
        return found

    def fuse(
        self,
        pairs: Sequence[tuple[Sample, Sample]],
        *,
        fusion_kind: Kind = "attention",
        fusion_layers: str = "mid,up",
        fusion_steps: str | None = None,
        fusion_parts: str = "self_k,self_v",
        fusion_masked: bool = True,
        fusion_text: Literal["fused", "own"] = "fused",
        mask_merge: Literal["xor", "or"] = "xor",
        mask_place: Literal["items", "random"] = "items",
        batch_size: int = 2,
        callback_on_step_end: Callback | None = None,
    ) -> list[FusedPair]:
        """Denoise each base again with its reference's self-attention inside the mask (Eq. 5).

        pairs: (base, reference), from `sample`, all sampled with the same arguments. fusion_steps:
        written as in the flag, e.g. "18-1"; None fuses all but the first two steps, as in the
        paper. fusion_kind: "branch" or "renoise" for targets without fusion; their noise depends on
        the base's seed, round and index.
        """
        if not pairs:
            return []
        sampling = common_sampling("pairs", (sample for both in pairs for sample in both))
        plan = self._plan(
            sampling.num_steps,
            mask_merge,
            mask_place,
            fusion_kind,
            fusion_layers,
            fusion_steps,
            fusion_parts,
            fusion_masked,
            fusion_text,
        )
        first = plan.first(sampling.num_steps)
        bases = [base for base, _ in pairs]
        given, origins = [base.drawn for base in bases], [base.origin for base in bases]
        policy = policy_of(self.model, sampling, given, origins)
        on_step = self._on_step(callback_on_step_end, policy)
        sources = [
            Source(n, base.prompt, _trajectory(base), _trajectory(reference))
            for n, (base, reference) in enumerate(pairs)
        ]
        found = []
        for start in range(0, len(pairs), batch_size):
            part = slice(start, start + batch_size)
            made = make_targets(policy, plan, sources[part], on_step)
            images = self._images([target.latents[-1] for target in made])
            found += [
                FusedPair(
                    base,
                    reference,
                    target=image,
                    target_latents=target.latents,
                    masks=target.masks,
                    first=first,
                    kind=fusion_kind,
                )
                for (base, reference), image, target in zip(pairs[part], images, made, strict=True)
            ]
        return found

    def _plan(
        self,
        num_steps: int,
        mask_merge: Literal["xor", "or"],
        mask_place: Literal["items", "random"],
        fusion_kind: Kind,
        fusion_layers: str,
        fusion_steps: str | None,
        fusion_parts: str,
        fusion_masked: bool,
        fusion_text: Literal["fused", "own"],
    ) -> FusionPlan:
        if fusion_steps is None:
            fusion_steps = f"{num_steps - 2}-1" if num_steps > 2 else ""
        fusion = Fusion(
            fusion_kind, fusion_layers, fusion_steps, fusion_parts, fusion_masked, fusion_text
        )
        mask = Mask(merge=mask_merge, place=mask_place)
        given = {
            "mask.merge": mask_merge,
            "mask.place": mask_place,
            "fusion.kind": fusion_kind,
            "fusion.parts": fusion_parts,
            "fusion.text": fusion_text,
        }
        for name, value in given.items():
            SETTINGS[name].check(name.replace(".", "_"), value)
        return fusion_plan(fusion, mask, num_steps, self.model.layers, flag="{}_{}")

    def _images(self, states: list[Tensor]) -> list[Image.Image]:
        pixels = self.model.decode(torch.stack(states))
        return [Image.fromarray(picture.numpy()) for picture in pixels]

    def _on_step(self, callback: Callback | None, policy: GivenNoise) -> OnStep:
        def told(i: int, x: Tensor) -> None:
            if callback is not None:
                callback(self, i, policy.sampler.timesteps[i], {"latents": x})

        return told


def _prompts(
    prompt: str | Sequence[str],
    items: Items,
    thresholds: float | Sequence[float | None] | None,
) -> list[Prompt]:
    """Prompts with their items. Raises UserError if a prompt has no items or lacks one of them."""
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not isinstance(items, Mapping):
        lists = cast("list[Names]", [items] if isinstance(prompt, str) else items)
        if len(lists) != len(texts):
            raise UserError(
                f"items: {len(lists)} lists for {len(texts)} prompts; give one for each"
            )
        items = dict(zip(texts, lists, strict=True))
        for text, names in zip(texts, lists, strict=True):
            if names != items[text]:
                raise UserError(f"items: two different lists for the prompt '{text}'; give one")
    each = dict.fromkeys(texts, thresholds) if isinstance(thresholds, Sequence) else thresholds
    return list(join(texts, items, each, "items"))


def _each(seed: Seed | Sequence[Seed], count: int) -> list[Seed]:
    """A seed for each of `count` samples; a single generator is used for all in turn."""
    if isinstance(seed, int | torch.Generator):
        return [seed] * count
    if len(seed) != count:
        raise UserError(f"seed: {len(seed)} for {count} prompts; give one for each, or one for all")
    return list(seed)


def _origin(seed: Seed, index: int) -> Origin:
    """A sample's `Sample.origin`. Samples of one generator differ by their index."""
    return (seed, 0, 0) if isinstance(seed, int) else (seed.initial_seed(), 0, index)


def _drawn(seed: Seed, steps: int, shape: tuple[int, ...]) -> Noise:
    """The noise that diffusers' pipelines draw from a generator: x_T, then each step's."""
    rng = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    x_T = torch.randn(shape, generator=rng, device=rng.device)
    z = torch.stack([torch.randn(shape, generator=rng, device=rng.device) for _ in range(steps)])
    return x_T.cpu(), z.cpu()


def _trajectory(sample: Sample) -> Trajectory:
    return Trajectory(sample.latents, sample.item_maps)

"""Sampling that keeps every denoising state and the items' cross-attention maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfusion.method.denoiser import Cond, Denoiser
from dfusion.method.masks import item_maps
from dfusion.method.noise import OTHER, noises
from dfusion.method.prompts import Prompt
from dfusion.method.sampler import Sampler
from diffusers_patched import AttentionControl, Record

Origin = tuple[int, int, int]  # seed, round, index
STORE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trajectory:
    """One denoised sample.

    latents: (T+1, C, h, w), x_T … x_0, in the stored dtype: exactly the states sampled.
    maps: (T, I, gh, gw) float32, the items' maps at each step.
    """

    latents: Tensor
    maps: Tensor


@dataclass(frozen=True)
class Policy:
    """A model and how to sample it; the same for all samples and targets of a round.

    guidance: scale, or None for no guidance. negative: the prompt that guidance leads away from.
    store_dtype: the dtype that states are rounded to. maps: in joint attention, whether item maps
    are shares of the attention to the "prompt" or of "all".
    """

    model: Denoiser
    sampler: Sampler
    guidance: float | None
    seed: int
    round: int
    store_dtype: torch.dtype = torch.float32
    negative: str = ""
    maps: str = "prompt"

    def predict(
        self,
        x: Tensor,
        i: int | Tensor,
        cond: Cond,
        control: AttentionControl | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's guided output at step i, (B, C, h, w), and the recorded maps.

        x: (B, C, h, w). i: step index, one for all or (B,) long. network: called in place of the
        model's own.
        """
        timestep = self.sampler.timesteps[i]
        return self.model.predict(x, timestep, cond, self.guidance, self.negative, control, network)

    @property
    def doubled(self) -> bool:
        """Whether a network call has unconditional rows, before the others."""
        return self.model.doubles(self.guidance)

    def noise(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x_T (B, C, h, w), already rounded, and step noises (B, T, C, h, w), on the device."""
        drawn = [self.drawn(i) for i in indices]
        x_T, z = (torch.stack(part).to(self.model.device) for part in zip(*drawn, strict=True))
        return self.rounded(x_T), z

    def drawn(self, index: int) -> tuple[Tensor, Tensor]:
        """x_T (C, h, w) and step noises (T, C, h, w) of one sample, on the CPU."""
        return noises(self.seed, self.round, index, len(self.sampler), self.model.latent_shape)

    def other_noise(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fresh noise, not the samples' own: (B, C, h, w) and, for each step, (B, T, C, h, w)."""
        size = len(self.sampler), self.model.latent_shape
        drawn = [noises(*self.origin(i), *size, OTHER) for i in indices]
        first, z = (torch.stack(part).to(self.model.device) for part in zip(*drawn, strict=True))
        return first, z

    def origin(self, index: int) -> Origin:
        """What the noise of a sample is drawn from."""
        return self.seed, self.round, index

    def map_keys(self, texts: Sequence[str]) -> Tensor | None:
        """The keys that item maps are shares of, (B, L) bool; None for all."""
        return self.model.map_keys(texts) if self.maps == "prompt" else None

    def identity(self) -> dict[str, object]:
        """Everything that a sample depends on besides its prompt and index."""
        size = self.model.asked_size
        return {
            "seed": self.seed,
            "round": self.round,
            "weights": self.model.fingerprint(),
            "precision": str(self.model.dtype).removeprefix("torch."),
            "timesteps": self.sampler.timesteps.tolist(),
            "sigmas": [round(sigma, 6) for sigma in self.sampler.std.tolist()],
            "guidance": self.guidance,
            "size": [*size] if size else None,
            "maps": self.maps,
            "states": str(self.store_dtype).removeprefix("torch."),
        }

    def rounded(self, x: Tensor) -> Tensor:
        """The state as stored, of any shape: the next step and log-probs are computed from it."""
        return x.to(self.store_dtype).float()


@dataclass(frozen=True)
class GivenNoise(Policy):
    """A policy whose noises are given instead of drawn from (seed, round, index).

    given: x_T (C, h, w) and step noises (T, C, h, w) of sample 0, 1, … origins: what other noise of
    each is drawn from.
    """

    given: tuple[tuple[Tensor, Tensor], ...] = ()
    origins: tuple[Origin, ...] = ()

    def drawn(self, index: int) -> tuple[Tensor, Tensor]:  # (C, h, w), (T, C, h, w)
        return self.given[index]

    def origin(self, index: int) -> Origin:
        return self.origins[index]


# Called after each denoising step, with its index and the new states, (B, C, h, w).
OnStep = Callable[[int, Tensor], None]


def denoise(
    policy: Policy,
    x: Tensor,  # (B, C, h, w)
    z: Tensor,  # (B, T, C, h, w)
    cond: Cond,
    control: AttentionControl | None = None,
    steps: range | None = None,
    predict: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The one denoising loop: yields (x_{t-1}, recorded maps) step by step.

    predict(x, i) replaces the plain guided prediction; fusion uses this.
    """

    def plain(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
        return policy.predict(x, i, cond, control)

    for i in steps if steps is not None else range(len(policy.sampler)):
        output, maps = (predict or plain)(x, i)
        mean, std = policy.sampler.transition(x, output, i)
        x = policy.rounded(mean + std.reshape(-1, 1, 1, 1) * z[:, i])
        yield x, maps


@torch.no_grad()
def sample(
    policy: Policy,
    indices: Sequence[int],
    prompts: Sequence[Prompt],
    mask_layers: frozenset[int],
    on_step: OnStep = lambda i, x: None,
) -> list[Trajectory]:
    """Denoise one batch; prompts may differ. indices: the samples' numbers in the round."""
    model = policy.model
    items = [model.columns(prompt) for prompt in prompts]
    columns, groups = pack(items)
    texts = [prompt.text for prompt in prompts]
    record = Record(
        layers=mask_layers,
        columns=columns.to(model.device),
        first_row=len(prompts) if policy.doubled else 0,
        keys=policy.map_keys(texts),
    )
    x, z = policy.noise(indices)
    cond = model.encode(texts)
    states, maps = [x], []
    walk = denoise(policy, x, z, cond, AttentionControl(record=record))
    for i, (state, step_maps) in enumerate(walk):
        assert step_maps is not None  # a recording control returns maps
        on_step(i, state)
        states.append(state)
        maps.append(step_maps)
    latents = torch.stack(states, 1).to(policy.store_dtype).cpu()
    token_maps = torch.stack(maps, 1).cpu()  # (B, T, J, gh, gw)
    return [
        Trajectory(latents[b], item_maps(token_maps[b], groups[b])) for b in range(len(prompts))
    ]


def pack(items: list[list[list[list[int]]]]) -> tuple[Tensor, list[list[list[list[int]]]]]:
    """Token columns of a batch, padded with -1, and each item's positions among them.

    items: [sample][item][occurrence] -> columns. Returns the columns, (B, J) long, and the indices
    into J, nested as `items` is.
    """
    flat = [[c for item in sample for span in item for c in span] for sample in items]
    width = max(len(columns) for columns in flat)
    columns = torch.tensor([f + [-1] * (width - len(f)) for f in flat])
    groups = []
    for sample in items:
        places = iter(range(width))
        groups.append([[[next(places) for _ in span] for span in item] for item in sample])
    return columns, groups

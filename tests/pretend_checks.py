"""What tests/models/test_gpu.py runs in a process of its own: the library on a pretend GPU."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.inversion import invert
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, sample
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.settings.schema import Settings
from dfusion.training.trainer import Trainer, train_rounds
from tests.conftest import make_pipeline, small
from tests.pretend_gpu import GPU, CudaError, OnGpu, PretendGpu


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with PretendGpu() as made:
        yield made


REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "adding": lambda g, c: c + g,
    "joining": lambda g, c: torch.cat([g, c]),
    "products": lambda g, c: g @ c,
    "a number from the GPU": lambda g, c: c * g.sum(),
    "an index on the GPU": lambda g, c: c[torch.zeros(2, dtype=torch.long, device="cuda")],
    "gathering": lambda g, c: g.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    "a CPU generator": lambda g, c: torch.randn(3, generator=torch.Generator(), device="cuda"),
    "half states": lambda g, c: F.group_norm(g[None].half(), 1, torch.ones(3, device="cuda")),
}
WAITS: dict[str, tuple[Callable[[Tensor, Tensor], Any], int]] = {
    "item": (lambda g, c: g.sum().item(), 1),
    "a condition": (lambda g, c: bool(g.any()), 1),
    "to the CPU": (lambda g, c: g.cpu().numpy(), 1),
    "to the GPU": (lambda g, c: c.to("cuda") + g, 1),
    "without blocking": (lambda g, c: c.to(g.device, non_blocking=True) + g, 0),
    "a new tensor": (lambda g, c: torch.tensor([1.0, 2, 3], device="cuda") + g, 1),
    "a boolean index": (lambda g, c: g[g > 0], 1),
    "a CPU index": (lambda g, c: g[torch.tensor([0])], 1),
    "a list": (lambda g, c: g[[0, 2]], 1),
    "none": (lambda g, c: (g * c.sum()).half()[1].masked_fill(g[0] > 0, 1.0), 0),
    "a module": (lambda g, c: nn.LayerNorm(3, device="cuda")(g), 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(gpu: PretendGpu, name: str) -> None:
    with pytest.raises(CudaError):
        REFUSED[name](torch.ones(3, 3, device="cuda"), torch.ones(3, 3))


@pytest.mark.parametrize("name", WAITS)
def test_waits(gpu: PretendGpu, name: str) -> None:
    work, expected = WAITS[name]
    g, c = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    work(g, c)
    assert len(gpu.waits) == expected, gpu.waits
    assert isinstance(g, OnGpu) and g.device == GPU and g.is_cuda


def policy_on_gpu(folder: Path, steps: int) -> Policy:
    model = StableDiffusion(make_pipeline(folder), "cuda", torch.float16)
    return Policy(model=model, sampler=model.sampler(steps, 1.0), guidance=5.0, seed=3, round=0)


def sample_fuse_and_invert(policy: Policy, prompt: Prompt) -> None:
    base, reference = (sample(policy, [n], [prompt], frozenset({3})) for n in (0, 1))
    plan = FusionPlan(policy.model.layers.parse("mid,up"), frozenset(range(1, 4)))
    (target,) = fuse(policy, plan, [Source(0, prompt, base[0], reference[0])])
    policy.model.decode(target.latents[-1:])
    invert(policy, target.latents[-1:], [prompt.text])


def waits_of_steps(gpu: PretendGpu, folder: Path, work: Callable[[Policy], object]) -> list[str]:
    """The waits of two denoising steps: what a call of three waits for more than one of one."""
    found = []
    for steps in (1, 3):
        policy = policy_on_gpu(folder, steps)
        gpu.waits.clear()
        work(policy)
        found.append(Counter(gpu.waits))
    return list((found[1] - found[0]).elements())


def test_no_step_waits(gpu: PretendGpu, tmp_path: Path, prompts: list[Prompt]) -> None:
    """Sampling, fusing, decoding and inverting wait at their ends, whatever the steps."""
    waits = waits_of_steps(gpu, tmp_path, lambda p: sample_fuse_and_invert(p, prompts[1]))
    assert waits == []


def look_at_values(policy: Policy, x: Tensor) -> Tensor:
    return x if x.abs().max().item() < 1e9 else x.clamp(-1e9, 1e9)


def noise_on_the_cpu(policy: Policy, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape = policy.model.latent_shape
    return torch.ones(1, *shape, device="cuda"), torch.ones(1, len(policy.sampler), *shape)


def noise_on_the_gpu(policy: Policy, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    rng, shape = torch.Generator().manual_seed(0), (1, *policy.model.latent_shape)
    x_T = torch.randn(shape, generator=rng, device=policy.model.device)
    return x_T, x_T[:, None].expand(-1, len(policy.sampler), -1, -1, -1)


@pytest.mark.parametrize("bug", [noise_on_the_cpu, noise_on_the_gpu])
def test_planted_noise_is_refused(
    gpu: PretendGpu,
    tmp_path: Path,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    bug: Callable,
) -> None:
    monkeypatch.setattr(Policy, "noise", bug)
    with pytest.raises(CudaError, match="on the CPU|CPU generator"):
        sample(policy_on_gpu(tmp_path, 1), [0], prompts[1:], frozenset({3}))


def test_planted_float_norms_are_refused(
    gpu: PretendGpu, tmp_path: Path, prompts: list[Prompt]
) -> None:
    policy = policy_on_gpu(tmp_path, 1)
    for module in policy.model.network.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float()
    with pytest.raises(CudaError, match="one dtype"):
        sample(policy, [0], prompts[1:], frozenset({3}))


def test_a_planted_wait_is_seen(
    gpu: PretendGpu, tmp_path: Path, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "rounded", look_at_values)
    prompt, layers = prompts[1:], frozenset({3})
    waits = waits_of_steps(gpu, tmp_path, lambda policy: sample(policy, [0], prompt, layers))
    assert len(waits) == 2 and all("pretend_checks.py" in line for line in waits)


MOST_WAITS = 1  # of an optimiser step, whatever its micro-batches
RUNS: dict[str, dict[str, Any]] = {
    "dpo-lora-fp16": {"mixed_precision": "fp16"},
    "ddpo-lora-auto": {
        "mixed_precision": "auto",
        "train.method": "ddpo",
        "sample.images_per_call": "auto",
        "fusion.batch_size": "auto",
    },
    "masked-dpo": {
        "mixed_precision": "fp16",
        "train.step_weights": "equal",
        "train.outside_weight": 0.0,
        "train.loser_limit": 0.5,
        "pair.adoption": "all",
    },
    "fdfo-on-renoised": {
        "mixed_precision": "no",
        "train.method": "fdfo",
        "fusion.kind": "renoise",
        "pair.adoption": "all",
    },
    "dpok-full": {
        "mixed_precision": "no",
        "train.method": "dpok",
        "train.tune": "full",
        "train.pairs": "inversion",
        "train.kl_initial": 0.1,
        "pair.adoption": "all",
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_rounds_of_training(
    gpu: PretendGpu,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    run: str,
) -> None:
    """Sampling, CLIP's scores, fusing, adoption, training, a checkpoint; waits of each update."""
    waits: list[list[str]] = []
    update = Trainer.update

    def counted(*args: Any) -> dict[str, Any]:
        before = len(gpu.waits)
        row = update(*args)
        waits.append(gpu.waits[before:])
        return row

    monkeypatch.setattr(Trainer, "update", counted)
    chosen = small(settings, 1, "gpu")
    chosen.device, chosen.prompt_file, chosen.prompt = "cuda", "", "the dog"
    chosen.item_idx_file, chosen.item_idx, chosen.train.compare_images = "", "dog", 0
    chosen.sample.num_steps, chosen.sample.num_batches_per_epoch, chosen.fusion.steps = 2, 1, "2-1"
    chosen.eval.reward, chosen.eval.pretrained = "clip", ""
    chosen.eval.model = "local-dir:testbed/weights/scorer"
    for flag, value in RUNS[run].items():
        group, _, name = flag.rpartition(".")
        setattr(getattr(chosen, group) if group else chosen, name, value)
    chosen.train.batch_size = 1  # two micro-batches an update
    train_rounds(chosen)
    picked = capsys.readouterr().out.count("Precision of the UNet: bf16 (auto)")
    assert picked == (chosen.mixed_precision == "auto")
    assert len(waits) == 2 and all(len(lines) <= MOST_WAITS for lines in waits), waits

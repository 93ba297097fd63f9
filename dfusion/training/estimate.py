"""What a run will take on this machine: UNet evaluations, hours, memory and disk.

The number of evaluations follows from the settings. An evaluation is one guided sample: two rows of
a UNet call, or one row without guidance. A backward pass counts as one more. The hours are
extrapolated from a few calls with the run's batch shapes, with LoRA attached as in training.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from dfusion.method.fusion import FusionPlan, fusion_control
from dfusion.method.pairing import per_prompt
from dfusion.method.sampling import STORE_DTYPES
from dfusion.models.batching import guess
from dfusion.models.devices import pick_device, pick_dtype, quiet_libraries
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.models.numerics import set_numerics
from dfusion.models.plan import plan_of, sampler_of
from dfusion.models.trainable import tune
from dfusion.progress import clock
from dfusion.rewards.registry import HUMAN, check_rewards, load_reward, watch_of
from dfusion.settings.check import check
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Eval, Settings
from dfusion.settings.steps import first_fused, fused_indices
from dfusion.training import optimiser
from dfusion.training.metrics import peak_memory
from dfusion.training.objective import objective_of
from diffusers_patched import AttentionControl, Record

CALLS = 2  # timed calls of each kind, after a warm-up call
CHECKED = 4  # steps whose log-probs are compared with the sampler's before each round's training


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run. rounds: the number asked for. first: index of the first fused step."""

    rounds: int
    images: int
    pairs: int
    steps: int
    first: int
    fused: int

    @classmethod
    def of(cls, settings: Settings, prompts: int) -> "Sizes":
        """Sizes of a run on `prompts` prompts; images, pairs and steps are of one round."""
        total = settings.sample.num_steps
        return cls(
            rounds=settings.train.num_epochs - settings.train.begin_epoch,
            images=prompts * settings.images_per_prompt,
            pairs=prompts * per_prompt(settings.images_per_prompt, settings.pair.rule),
            steps=total,
            first=first_fused(settings.fusion.steps, total),
            fused=len(fused_indices(settings.fusion.steps, total)),
        )


@dataclass(frozen=True)
class Estimate:
    """evaluations, seconds: of the whole run, by stage. times: what was measured.

    memory_gib: peak memory. disk_gib: states on disk. noisy: see `evaluations`.
    """

    evaluations: dict[str, float]
    seconds: dict[str, float]
    memory_gib: float
    disk_gib: float
    times: "Times"
    noisy: list[bool]

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def __str__(self) -> str:
        lines = [
            f"  {stage:10} {self.evaluations.get(stage, 0):16,.0f} {clock(seconds):>10}"
            for stage, seconds in self.seconds.items()
        ]
        total = sum(self.evaluations.values())
        return "\n".join(
            [
                f"  {'stage':10} {'UNet evaluations':>16} {'h:mm:ss':>10}",
                *lines,
                f"  {'total':10} {total:16,.0f} {clock(self.hours * 3600):>10}",
                f"  memory {self.memory_gib:.1f} GiB, trajectories on disk {self.disk_gib:.1f} GiB",
            ]
        )


def evaluations(
    settings: Settings, prompts: int, adopted: float = 1.0, noisy: Sequence[bool] | None = None
) -> dict[str, float]:
    """UNet evaluations of all rounds of run_train.py, by stage.

    prompts: their number. adopted: share of targets that pass Eq. 7. The fewer pass, the longer DPO
    trains, because a reference shares no steps with its base. noisy: which of the model's steps
    have noise; None for DDIM's, all of which have it unless the settings say otherwise.
    """
    sizes, train = Sizes.of(settings, prompts), settings.train
    targets = sizes.pairs if train.pairs != "naive" else 0
    walked = sizes.steps - sizes.first  # target steps; the reference adds one per fused step
    beside = sizes.fused if settings.fusion.kind == "attention" else 0
    kept = adopted * targets
    rows = 0.5 if settings.sample.cfg else 1.0  # inversion uses no guidance
    shown = prompts * train.compare_images * sizes.steps
    return {
        "sampling": float(sizes.rounds * sizes.images * sizes.steps),
        "fusing": float(sizes.rounds * targets * (walked + beside)),
        "inverting": sizes.rounds * kept * sizes.steps * rows * (train.pairs == "inversion"),
        "training": sizes.rounds * _training(settings, sizes, kept, noisy or _noisy(settings)),
        "comparing": float(_comparisons(settings) * shown),
    }


def _noisy(settings: Settings) -> list[bool]:
    """The steps of DDIM that have noise."""
    steps = settings.sample.num_steps
    fused = fused_indices(settings.fusion.steps, steps)
    return [settings.sample.noise == "all" or i in fused for i in range(steps)]


def _training(settings: Settings, sizes: Sizes, kept: float, noisy: Sequence[bool]) -> float:
    """Evaluations of one round's training. kept: number of pairs with an adopted target."""
    train, objective = settings.train, objective_of(settings.train)
    weighs = objective.step_weights.weighs
    weighed = [(n or objective.forward) and weighs(i, sizes.steps) for i, n in enumerate(noisy)]
    whole = sum(weighed)
    parted = sum(weighed[sizes.first :]) if train.pairs != "inversion" else whole
    begins_later = objective.pairwise or (
        settings.fusion.kind == "renoise" and not objective.forward
    )
    steps = kept * (parted if begins_later else whole) + (sizes.pairs - kept) * whole
    drawn = train.timestep_fraction
    met = 1 - (1 - drawn) ** train.num_inner_epochs  # share of a pair's steps drawn at least once
    passes = 2.0 * train.num_inner_epochs * drawn  # forward and backward
    passes += train.num_inner_epochs * drawn * objective.loss.whole_update
    passes += met if objective.needs_initial else 0
    first = -(-sizes.pairs // train.updates_per_inner_epoch) / sizes.pairs
    passes += (
        met - drawn * first
    )  # theta_old's log-probs of all steps that the first update leaves out
    # The check of the sampler, and the norm of the predicted noise beside the initial model's.
    looked_at = 1 + 2 * (train.tune == "lora" or objective.needs_initial)
    rows = 0.5 if objective.forward and settings.sample.cfg else 1.0  # which uses no guidance
    return 2 * (rows * steps * passes + looked_at * min(CHECKED, sizes.pairs * sum(noisy)))


def _comparisons(settings: Settings) -> int:
    """How often comparison images are sampled."""
    train = settings.train
    return sum(map(train.compares_after, range(train.begin_epoch, train.num_epochs + 1)))


@dataclass(frozen=True)
class Times:
    """Seconds per evaluation (plain, in a fused call, in training) or per image (the others).

    watching: of --config.eval.watch's score.
    """

    plain: float
    fused: float
    trained: float
    decoding: float
    scoring: float
    watching: float = 0.0


def seconds(
    settings: Settings,
    prompts: int,
    times: Times,
    adopted: float = 1.0,
    noisy: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Seconds of all rounds of run_train.py, by stage, on a machine with these times.

    The watch scores no targets. The other arguments are those of `evaluations`.
    """
    counts, sizes = evaluations(settings, prompts, adopted, noisy), Sizes.of(settings, prompts)
    shown = _comparisons(settings) * prompts * settings.train.compare_images
    sampled = sizes.rounds * sizes.images
    by_attention = settings.fusion.kind == "attention"
    fused = sizes.rounds * sizes.pairs if counts["fusing"] else 0
    return {
        "sampling": counts["sampling"] * times.plain + sampled * times.decoding,
        "fusing": counts["fusing"] * (times.fused if by_attention else times.plain)
        + fused * times.decoding,
        "inverting": counts["inverting"] * times.plain,
        "training": counts["training"] * times.trained,
        "comparing": counts["comparing"] * times.plain + shown * times.decoding,
        "scoring": (sampled + fused + shown) * times.scoring + (sampled + shown) * times.watching,
    }


def estimate(settings: Settings, adopted: float = 1.0) -> Estimate:
    """Estimate a run of run_train.py on one process; loads its models and writes nothing.

    Raises UserError for bad input.
    """
    check(settings)
    check_rewards(replace(settings.eval, in_process=True))
    prompts = len(load_prompts(settings))
    device = pick_device(settings.device, settings.dev_id)
    quiet_libraries()
    set_numerics(settings)
    dtype = pick_dtype(settings.mixed_precision, device)
    model = load_model(settings.pretrained, device, dtype, settings.size)
    if settings.compile:
        model.compile()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    noisy = sampler_of(settings, model).trainable.tolist()
    times = measure(settings, model)
    return Estimate(
        evaluations(settings, prompts, adopted, noisy),
        seconds(settings, prompts, times, adopted, noisy),
        peak_memory(),
        disk_gib(settings, prompts, model.latent_shape),
        times,
        noisy,
    )


def measure(settings: Settings, model: DiffusionModel) -> Times:
    """Time calls of the shapes that a run of these settings makes."""
    plan, mask_layers = plan_of(settings, model.layers)
    train = _training_call(settings, model)  # before the others: it attaches LoRA
    batch, pairs = _in_a_call(settings), guess(settings.fusion.batch_size)
    latents = torch.zeros(batch, *model.latent_shape)
    watch = watch_of(settings.eval)
    return Times(
        plain=_timed(lambda: _sampling_call(settings, model, mask_layers)) / batch,
        fused=_timed(lambda: _fused_call(settings, model, plan, mask_layers)) / (2 * pairs),
        trained=_timed(train) / (4 * guess(settings.train.batch_size)),
        decoding=_timed(lambda: model.decode(latents)) / batch,
        scoring=_scoring(settings.eval, settings.prompt, model),
        watching=_scoring(watch, settings.prompt, model) if watch else 0.0,
    )


def _in_a_call(settings: Settings) -> int:
    """Samples in one UNet call."""
    return guess(settings.sample.images_per_call) or settings.sample.batch_size


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call, on average."""
    work()
    _wait()
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    _wait()
    return (time.perf_counter() - started) / CALLS


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _guided(
    settings: Settings, model: DiffusionModel, samples: int, control: AttentionControl | None
) -> Tensor:
    """Guided noise of `samples` samples, from states of plain noise."""
    rng = torch.Generator().manual_seed(settings.seed)
    x = torch.randn((samples, *model.latent_shape), generator=rng).to(model.device)
    cond = model.encode([settings.prompt] * samples)
    t = torch.full((samples,), 501, device=model.device)
    return model.predict(x, t, cond, settings.guidance, control=control)[0]


@torch.no_grad()
def _sampling_call(settings: Settings, model: DiffusionModel, mask_layers: frozenset[int]) -> None:
    samples = _in_a_call(settings)
    columns = torch.ones((samples, 2), dtype=torch.long, device=model.device)
    first = samples if model.doubles(settings.guidance) else 0
    own = settings.mask.maps == "prompt"
    keys = model.map_keys([settings.prompt] * samples) if own else None
    record = Record(mask_layers, columns, first, keys)
    _guided(settings, model, samples, AttentionControl(record=record))


@torch.no_grad()
def _fused_call(
    settings: Settings, model: DiffusionModel, plan: FusionPlan, mask_layers: frozenset[int]
) -> None:
    pairs, grid = guess(settings.fusion.batch_size), model.layers.grids[min(mask_layers)]
    mask = torch.ones((pairs, *grid), dtype=torch.bool, device=model.device)
    _guided(
        settings, model, 2 * pairs, fusion_control(plan, mask, model.doubles(settings.guidance))
    )


def _training_call(settings: Settings, model: DiffusionModel) -> Callable[[], None]:
    """Forward and backward of a micro-batch; the first call also creates the optimiser's state."""
    train = settings.train
    tuning = tune(model, train, settings.seed, objective_of(train).needs_initial)
    if train.gradient_checkpointing:
        model.network.enable_gradient_checkpointing()
    adam = optimiser.make(tuning.parameters, train, model.device)

    def work() -> None:
        _guided(settings, model, 2 * guess(train.batch_size), None).square().mean().backward()
        if not adam.state:
            adam.step()

    return work


def _scoring(by: Eval, prompt: str, model: DiffusionModel) -> float:
    """Seconds of one image's score; none for people's. by: names the reward."""
    if by.reward == HUMAN:
        return 0.0
    reward, batch = load_reward(by, model.device), by.batch_size
    pixels = model.decode(torch.zeros(1, *model.latent_shape))[0].numpy()
    images, texts = [Image.fromarray(pixels)] * batch, [prompt] * batch
    return _timed(lambda: reward(images, texts)) / batch


def disk_gib(settings: Settings, prompts: int, latent_shape: tuple[int, int, int]) -> float:
    """GiB of states on disk at most: of samples, targets and, if asked for, their inversions.

    If a round's states are dropped, this happens after the round has been trained on.
    """
    sizes = Sizes.of(settings, prompts)
    number = STORE_DTYPES[settings.sample.store_dtype].itemsize
    state = math.prod(latent_shape) * number
    fused = {"naive": 0, "dfusion": 1, "inversion": 2}[settings.train.pairs] * sizes.pairs
    most = {"all": sizes.rounds, "last": 2, "none": 1}[settings.keep_trajectories]
    rounds = min(most, sizes.rounds)
    return rounds * (sizes.images + fused) * (sizes.steps + 1) * state / 2**30


def announce(settings: Settings) -> Estimate:
    """Estimate a run and print it."""
    found = estimate(settings)
    prompts = len(load_prompts(settings))
    most = sum(evaluations(settings, prompts, 0.0, found.noisy).values())
    rounds = Sizes.of(settings, prompts).rounds
    print(f"rounds {rounds}, prompts {prompts}, every target adopted:\n{found}")
    least = sum(found.evaluations.values())
    if most > least:
        print(f"  up to {most / least - 1:.0%} more evaluations if no target is adopted")
    if settings.eval.reward == HUMAN:
        print("  the time that people take to score images is not counted")
    return found

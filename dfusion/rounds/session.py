"""The library calls behind run_sample.py and run_eval.py."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from dfusion.errors import UserError
from dfusion.method.prompts import Prompt
from dfusion.method.sampler import Sampler
from dfusion.method.sampling import STORE_DTYPES, Policy
from dfusion.models.devices import cpu_has_bf16, pick_device, pick_dtype, quiet_libraries
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.models.numerics import set_numerics
from dfusion.models.plan import plan_of, sampler_of
from dfusion.report import page
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import asked_for, check_rewards, load_reward, watch_of
from dfusion.rounds import sharing
from dfusion.rounds.runner import RoundRunner
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.scoring import heartbeat
from dfusion.rounds.waiting import World
from dfusion.settings.check import check_names, check_sampling, check_scoring
from dfusion.settings.plain_values import flat, settings_of
from dfusion.settings.prompt_files import item_flag
from dfusion.settings.schema import AUTO, FREE, RENEW, Eval, Settings
from dfusion.storage import last_error
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json, sweep, write_json
from dfusion.storage.lock import Lock, run_lock

PRECISIONS: dict[torch.dtype, Literal["no", "fp16", "bf16"]] = {
    torch.float32: "no",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
SLOW = (
    "This processor emulates bf16, which is many times slower than fp32: "
    "--config.mixed_precision no is faster here"
)


@dataclass(frozen=True)
class Session:
    """What a run has loaded before its first round."""

    settings: Settings
    experiment: Experiment
    runner: RoundRunner
    model: DiffusionModel
    sampler: Sampler

    def policy(self, number: int) -> Policy:
        """The policy that samples round `number`."""
        return policy_of(self.settings, self.model, self.sampler, number)


def resolved(settings: Settings, device: torch.device | None = None) -> Settings:
    """The settings, with mixed_precision "auto" replaced by what it means on this device."""
    dtype = pick_dtype(
        settings.mixed_precision, device or pick_device(settings.device, settings.dev_id)
    )
    return replace(settings, mixed_precision=PRECISIONS[dtype])


def policy_of(settings: Settings, model: DiffusionModel, sampler: Sampler, number: int) -> Policy:
    """The policy that samples round `number`, as the settings say."""
    sample = settings.sample
    return Policy(
        model=model,
        sampler=sampler,
        guidance=settings.guidance,
        seed=settings.seed,
        round=number,
        store_dtype=STORE_DTYPES[sample.store_dtype],
        maps=settings.mask.maps,
    )


def open_session(settings: Settings) -> Session:
    """A session that has written config.json but holds no lock."""
    session = load_session(settings, check_sampling(settings))
    _write_config(session)
    return session


def load_session(settings: Settings, prompts: tuple[Prompt, ...]) -> Session:
    """Load the models of a run. Writes nothing: `begun` does, once everything is accepted.

    settings: already checked, with their prompts. Raises UserError for problems that only the model
    or the files on disk can show, and if another run holds the experiment.
    """
    (name,) = check_names(settings)
    check_rewards(settings.eval)
    experiment = Experiment(Path(settings.save_path) / name)
    state = PartialState(cpu=settings.device == "cpu")
    world = World(state.process_index, state.num_processes)
    device = pick_device(settings.device, settings.dev_id) if world.size == 1 else state.device
    asked, settings = settings.mixed_precision, resolved(settings, device)
    dtype = pick_dtype(settings.mixed_precision, device)
    if world.rank == 0 and (lock := run_lock(experiment.folder)).taken():
        raise _taken(experiment, lock)
    _check_same(settings, experiment)
    sharing.check(settings, prompts)

    quiet_libraries()
    set_numerics(settings)
    model = load_model(settings.pretrained, device, dtype, settings.size)
    if settings.compile:
        model.compile()
    plan, mask_layers = plan_of(settings, model.layers)
    try:
        for prompt in prompts:
            model.columns(prompt)  # raises for an item the text encoder does not read
    except UserError as error:
        raise UserError(f"{item_flag(settings)}: {error}") from error
    sampler = sampler_of(settings, model)
    reward = watch = None
    if settings.eval.in_process:
        reward, watching = load_reward(settings.eval, device), watch_of(settings.eval)
        watch = load_reward(watching, device) if watching else None
    runner = RoundRunner(settings, experiment, prompts, plan, mask_layers, world, reward, watch)
    if asked == AUTO and device.type == "cuda":
        runner.say(f"Precision of the UNet: {settings.mixed_precision} (auto)")
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu_has_bf16():
        runner.say(SLOW)
    return Session(settings, experiment, runner, model, sampler)


@contextmanager
def begun(session: Session, numbers: Sequence[int]) -> Iterator[None]:
    """Hold the experiment's lock, write config.json, and record an error raised in the block.

    numbers: the accepted rounds that the block will make. If there are none, changed settings have
    no effect, and config.json is kept.
    """
    settings, experiment = session.settings, session.experiment
    first = settings.train.begin_epoch
    session.runner.check_samples_from(first, session.policy(first))
    with claimed(experiment, session.runner.world.rank):
        _check_same(settings, experiment)  # again: another run may have come and gone
        changed = changes(settings, experiment)
        if numbers or not changed:
            _write_config(session)
        else:
            session.runner.say(f"All rounds are done; without effect: {', '.join(changed)}")
        if session.runner.world.rank == 0:
            last_error.clear(experiment.folder)
        try:
            yield
        except Exception as error:
            last_error.keep(experiment.folder, error)
            raise


@contextmanager
def claimed(experiment: Experiment, rank: int) -> Iterator[None]:
    """Hold the experiment's lock, for all processes of a run. UserError if another has it."""
    if rank:
        yield
        return
    lock = run_lock(experiment.folder)
    if not lock.acquire():
        raise _taken(experiment, lock)
    try:
        yield
    finally:
        lock.release()


def _taken(experiment: Experiment, lock: Lock) -> UserError:
    return UserError(
        f"--config.exp_name {experiment.folder.name}: {lock.owner()}, is at work on this "
        "experiment; wait for it, stop it, or choose another name"
    )


def _write_config(session: Session) -> None:
    """Process 0 writes config.json; the others wait for it."""
    file = session.experiment.config_file
    if session.runner.world.rank == 0:
        sweep(file.parent)
        sharing.sweep(file.parent)
        write_json(file, {"settings": session.settings.to_dict()})
    while not file.exists():  # process 0 may still be loading the scorer
        time.sleep(0.2)


def sample_rounds(settings: Settings) -> Path:
    """Algorithm 1 up to training, for every round asked for; returns the experiment's folder.

    Raises UserError for bad input, and if another run holds the experiment.
    """
    session = load_session(settings, check_sampling(settings))
    asked = range(settings.train.begin_epoch, settings.train.num_epochs)
    numbers = [k for k in asked if session.experiment.round(k).states_kept]
    session.runner.check(numbers, session.policy)
    with begun(session, numbers):
        for number in asked:
            if number in numbers:
                _sample_round(session, number)
            else:
                say = f"Round {number}: done; its trajectories were not kept"
                session.runner.say(say)
    return session.experiment.folder


def _sample_round(session: Session, number: int) -> None:
    round_ = session.runner.run(number, session.policy(number))
    if session.runner.world.rank == 0:
        folder = session.experiment.folder
        rows = round_.adoption() or []
        kept = sum(row["adopted"] for row in rows)
        page.write(folder)
        session.runner.say(
            f"  made {len(round_.sample_prompts())} images, {len(rows)} pairs; "
            f"{kept} targets adopted\n  look at {folder / 'index.html'}"
        )


def score(settings: Settings) -> int:
    """Watch and score experiments; returns how many images were scored.

    Each experiment gets the reward of its own config.json. If settings.eval names one, experiments
    with another reward are skipped.
    """
    names = check_scoring(settings)
    device = pick_device(settings.device, settings.dev_id)
    data, only = Path(settings.save_path), asked_for(settings.eval)
    quiet_libraries()

    def load(named: Eval) -> Reward:
        return load_reward(named, device)

    with heartbeat(data, names, only):  # from the start: models may take minutes to load
        try:
            scorer = Scorer(data, names, load, only, settings.eval.batch_size)
            if only is not None:
                scorer.prepare(settings)
            what = ", ".join(names) or "every experiment"
            how = only or "the reward of its config.json"
            print(f"Scoring {what} in {data} by {how}; Ctrl-C stops.", flush=True)
            total = scorer.watch(settings.eval.poll_seconds, settings.eval.once)
        except KeyboardInterrupt:  # how scoring usually ends
            raise KeyboardInterrupt("The scorer stopped; all scores so far are kept.") from None
    print(f"Scored {total} images; scores are in {data}/<experiment>/epoch*/eval/.", flush=True)
    return total


def changes(settings: Settings, experiment: Experiment) -> list[str]:
    """Changes from the experiment's config.json that affect its files, as "name (old -> new)".

    settings: from `resolved`. Raises UserError for a damaged config.json.
    """
    file = experiment.config_file
    if not file.exists():
        return []
    before = settings_of(read_json(file, RENEW).get("settings"), str(file)).to_dict()
    before = _what_matters(before, experiment)
    now = _what_matters(settings.to_dict(), experiment)
    return [
        f"{key} ({before.get(key)} -> {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _check_same(settings: Settings, experiment: Experiment) -> None:
    """Refuse to mix two configs in one experiment."""
    each = settings.train.compare_images
    for round_ in experiment.comparisons().values():
        manifest = round_.manifest() or {"samples": (), "prompts": ()}
        have = len(manifest["samples"]) // max(1, len(manifest["prompts"]))
        if each and have and each != have:
            raise UserError(
                f"--config.train.compare_images {each}: {round_.folder} has {have} of each prompt, "
                f"and comparisons have the same noise; ask for {have}, for 0 to make no more, or "
                "choose another --config.exp_name"
            )
    changed = [] if settings.allow_config_change else changes(settings, experiment)
    if changed:
        raise UserError(
            f"{experiment.config_file}: this experiment was begun with another config: "
            f"{', '.join(changed)}; choose another --config.exp_name, or pass "
            "--config.allow_config_change"
        )


def _what_matters(settings: dict[str, Any], experiment: Experiment) -> dict[str, object]:
    """The settings that the experiment's files depend on; train.* only if a checkpoint exists."""
    flags = flat(settings)
    # Batches may be cut differently as long as each prompt gets the same number of images.
    images = flags.pop("sample.batch_size", 0), flags.pop("sample.num_batches_per_epoch", 0)
    trained = any(experiment.folder.glob("checkpoints/*/state.json"))
    kept = {
        key: value
        for key, value in flags.items()
        if key not in FREE and (trained or not key.startswith("train."))
    }
    return {**kept, "images per prompt": images[0] * images[1]}

"""The library calls behind run_sample.py and run_eval.py."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from dfusion import report
from dfusion.ddim import DDIM
from dfusion.errors import UserError
from dfusion.files import read_json, write_json
from dfusion.inputs import check, check_names, load_prompts, plan_of
from dfusion.models import DiffusionModel, pick_device, pick_dtype
from dfusion.rewards import load_reward, reward_name
from dfusion.rounds import RoundRunner, World
from dfusion.sampling import STORE_DTYPES, Policy
from dfusion.scoring import watch
from dfusion.settings import Settings
from dfusion.store import Experiment

# Settings that change how a run goes, not what it makes.
FREE = ("save_path", "exp_name", "device", "dev_id", "allow_config_change", "train")
FREE_EVAL = ("batch_size", "poll_seconds", "once", "in_process")


@dataclass(frozen=True)
class Session:
    """What run_sample.py has ready before its first round."""

    settings: Settings
    experiment: Experiment
    runner: RoundRunner
    model: DiffusionModel
    ddim: DDIM

    def policy(self, number: int) -> Policy:
        """How the samples of round `number` are made."""
        sample = self.settings.sample
        return Policy(
            model=self.model,
            ddim=self.ddim,
            guidance=sample.guidance_scale if sample.cfg else None,
            seed=self.settings.seed,
            round=number,
            store_dtype=STORE_DTYPES[sample.store_dtype],
        )


def open_session(settings: Settings) -> Session:
    """Check everything, load the models, write config.json.

    Raises UserError for bad input, before a model loads where that is possible.
    """
    check(settings)
    (name,) = check_names(settings)
    prompts = load_prompts(settings)
    experiment = Experiment(Path(settings.save_path) / name)
    _check_same(settings, experiment)

    state = PartialState(cpu=settings.device == "cpu")
    world = World(state.process_index, state.num_processes)
    device = pick_device(settings.device, settings.dev_id) if world.size == 1 else state.device
    torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32
    model = DiffusionModel.load(
        settings.pretrained, device, pick_dtype(settings.mixed_precision, device)
    )
    plan, mask_layers = plan_of(settings, model.layers)
    for prompt in prompts:
        model.columns(prompt)  # raises for an item the text encoder does not read
    ddim = model.sampler(settings.sample.num_steps, settings.sample.eta)
    reward = None
    if settings.eval.in_process and world.rank == 0:
        reward = load_reward(settings.eval, device)
    if world.rank == 0:
        write_json(experiment.config_file, {"settings": settings.to_dict()})
    runner = RoundRunner(settings, experiment, prompts, plan, mask_layers, world, reward)
    return Session(settings, experiment, runner, model, ddim)


def sample_rounds(settings: Settings) -> Path:
    """Algorithm 1 up to training, for every round asked for; returns the experiment's folder."""
    session = open_session(settings)
    folder = session.experiment.folder
    for number in range(settings.train.begin_epoch, settings.train.num_epochs):
        round_ = session.runner.run(number, session.policy(number))
        if session.runner.world.rank == 0:
            rows = round_.adoption() or []
            kept = sum(row["adopted"] for row in rows)
            report.write(folder)
            session.runner.say(
                f"  made {len(round_.sample_prompts())} images, {len(rows)} pairs; "
                f"{kept} targets adopted\n  look at {folder / 'index.html'}"
            )
    return folder


def score(settings: Settings) -> int:
    """Watch and score experiments; returns how many images were scored."""
    check(settings)
    names = check_names(settings, several=True)
    device = pick_device(settings.device, settings.dev_id)
    reward = load_reward(settings.eval, device)
    data = Path(settings.save_path)
    what = ", ".join(names) or "every experiment"
    print(f"Scoring {what} in {data} by {reward_name(settings.eval)}; Ctrl-C ends.", flush=True)
    total = watch(
        data,
        names,
        reward,
        reward_name(settings.eval),
        settings.eval.batch_size,
        settings.eval.poll_seconds,
        settings.eval.once,
    )
    print(f"Scored {total} images; scores are in {data}/<experiment>/epoch*/eval/.", flush=True)
    return total


def _check_same(settings: Settings, experiment: Experiment) -> None:
    """Refuse to mix two configs in one experiment."""
    if settings.allow_config_change or not experiment.config_file.exists():
        return
    before = _what_matters(read_json(experiment.config_file)["settings"])
    now = _what_matters(settings.to_dict())
    changed = [
        f"{key} ({before.get(key)} -> {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{experiment.config_file}: this experiment was begun with another config: "
            f"{', '.join(changed)}; choose another --config.exp_name, or pass "
            "--config.allow_config_change"
        )


def _what_matters(settings: dict) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if key in FREE:
            continue
        if isinstance(value, dict):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    for key in FREE_EVAL:
        flat.pop(f"eval.{key}", None)
    # Batches may be cut differently as long as each prompt gets as many images.
    flat["images per prompt"] = flat.pop("sample.batch_size") * flat.pop(  # type: ignore[operator]
        "sample.num_batches_per_epoch"
    )
    flat.pop("fusion.batch_size")
    return flat

"""Every experiment of the paper, one after the other; stop it and start it again at will.

    python -m experiments.all --preset testbed
    python -m experiments.all --preset paper --model path/to/sd21-base --list --hours

Each is a command of its own, goes on where it was stopped, and does nothing twice. The testbed's
are cut to a night on two cores: DPO with and without D-Fusion, template 1, goes to the end on every
seed, the other curves two rounds on the first; --full takes every curve to the end on every seed.
Table 1, Fig. 4, learning rates and what is changed one at a time are of one seed. --list prints the
commands with the UNet evaluations they take; --hours measures this machine and adds the hours. The
time left is that of the training left.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dfusion.errors import ends_in_one_line
from dfusion.progress import clock
from dfusion.settings.presets import PRESETS
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Settings
from dfusion.training.estimate import Times, estimate, evaluations, seconds
from experiments.pairs import chosen_pair
from experiments.runs import alignment, generalisation, sweep


@dataclass(frozen=True)
class Curve:
    """A line of Fig. 5, 7 or 11. brief: rounds in the testbed's night; None: all, on every seed."""

    recipe: str
    template: int = 1
    brief: int | None = 2

    def flags(self, seed: int) -> list[str]:
        return [
            f"--recipe={self.recipe}",
            f"--template={self.template}",
            f"--seed={seed}",
        ]


CURVES = [
    *(Curve(f"dpo_{pairs}", brief=None) for pairs in ("naive", "dfusion")),
    *(Curve(f"dpo_{pairs}", t) for t in (2, 3) for pairs in ("naive", "dfusion")),
    *(Curve(f"diffusion_dpo_{pairs}", t) for t in (1, 2, 3) for pairs in ("naive", "dfusion")),
    *(Curve(f"{method}_{pairs}") for method in ("ddpo", "dpok") for pairs in ("naive", "dfusion")),
    Curve("dpo_inversion"),
]
RUN = "experiments.runs.alignment"
# Ways in which each fuses its pair; both endpoints of the pair are walked.
PICTURES = {"attention_control": 10, "steps_layers": 30, "cross_maps": 0}


@dataclass(frozen=True)
class Stage:
    """A command, by module and flags. Of training: its settings, and the file that it ends with.

    kept: whether later commands sample from what it trained, or only read its figures. drawn: UNet
    evaluations, at most, of a command that only samples and fuses; drawn_before: whether it has.
    """

    module: str
    flags: tuple[str, ...]
    settings: Settings | None = None
    result: Path | None = None
    kept: bool = False
    drawn: int = 0
    drawn_before: bool = False

    @property
    def evaluations(self) -> float:
        """UNet evaluations."""
        if self.settings is None:
            return self.drawn
        return sum(evaluations(self.settings, len(load_prompts(self.settings))).values())

    def hours(self, times: Times) -> float:
        """Hours on a machine with these times."""
        if self.settings is None:
            return self.drawn * times.fused / 3600
        prompts = len(load_prompts(self.settings))
        return sum(seconds(self.settings, prompts, times).values()) / 3600

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        if self.settings and self.result:
            return alignment.finished(self.settings, self.result, self.kept)
        return self.drawn_before

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.flags]

    def __str__(self) -> str:
        return shlex.join(["python", "-m", self.module, *self.flags])


def chosen(args: argparse.Namespace) -> list[str]:
    """The flags that commands share: preset, and model where one is given."""
    return [f"--preset={args.preset}", *([f"--model={args.model}"] if args.model else [])]


def pictures(args: argparse.Namespace) -> list[Stage]:
    """Fig. 8 to 10, of one pair."""
    asked = chosen_pair.parser(None).parse_args(chosen(args))
    steps = PRESETS[args.preset]().sample.num_steps
    return [
        Stage(
            module=f"experiments.pairs.{name}",
            flags=tuple(chosen(args)),
            drawn=(asked.images + 2 * plans) * steps,
            drawn_before=chosen_pair.drawn_before(name, asked),
        )
        for name, plans in PICTURES.items()
    ]


def grids(args: argparse.Namespace) -> list[Stage]:
    """What can be measured where the truth is known: ways to fuse, and masks."""
    if args.preset != "testbed":
        return []
    return [
        Stage("experiments.pairs.fusion_grid", ()),
        Stage("experiments.pairs.fusion_plot", ()),
        Stage("experiments.pairs.fusion_grid", ("--final",)),
        Stage("experiments.pairs.mask_quality", ()),
    ]


def training(args: argparse.Namespace) -> list[Stage]:
    """Fig. 5, 7 and 11: every method and template."""
    stages = []
    for seed in args.seeds:
        for curve in CURVES:
            brief = None if args.full or args.preset != "testbed" else curve.brief
            if brief and seed != args.seeds[0]:
                continue
            rounds = [f"--rounds={brief}"] if brief else []
            stages.append(_run([*chosen(args), *curve.flags(seed), *rounds], kept=True))
    return stages


def _run(flags: list[str], kept: bool = False) -> Stage:
    """One run of experiments.runs.alignment."""
    run = alignment.arguments(flags)
    return Stage(RUN, tuple(flags), alignment.settings_of(run), alignment.result_of(run), kept)


def tried(args: argparse.Namespace) -> list[Stage]:
    """What the testbed's learning rates are chosen from."""
    if args.preset != "testbed":
        return []
    return swept("rates", args)


def unseen(args: argparse.Namespace) -> list[Stage]:
    """Fig. 4 and Table 1, of the first seed's runs."""
    preset, steps = f"--preset={args.preset}", PRESETS[args.preset]().sample.num_steps

    def names(template: int) -> str:
        runs = (f"dpo_{pairs}_t{template}_s{args.seeds[0]}" for pairs in ("naive", "dfusion"))
        return f"--names={','.join(runs)}"

    stages = []
    for t in (1, 2, 3):
        count = len(json.loads(alignment.prompts_file(args.preset, t, "test").read_text()))
        flags = (preset, f"--template={t}", names(t))
        stages.append(Stage("experiments.runs.before_after", flags))
        drawn = 3 * generalisation.images_of(args.preset, count) * count * steps  # three models
        stages.append(Stage("experiments.runs.generalisation", flags, drawn=drawn))
    return stages


def choices(args: argparse.Namespace) -> list[Stage]:
    """What the paper leaves open, and the table of it."""
    return swept("ablations", args)


def swept(name: str, args: argparse.Namespace) -> list[Stage]:
    """The runs of a sweep, of the first seed, and their table."""
    flags = [name, *chosen(args), f"--seed={args.seeds[0]}"]
    runs = [_run(run) for run in sweep.runs_of(sweep.arguments(flags)).values()]
    return [*runs, Stage("experiments.runs.sweep", tuple(flags))]


def stages(args: argparse.Namespace) -> list[Stage]:
    """All of them, in order; a run that two of them need is in it once."""
    preset = (f"--preset={args.preset}",)
    plots = [Stage(f"experiments.runs.{name}", preset) for name in ("alignment_plot", "parts")]
    every = [
        *pictures(args),
        *grids(args),
        *training(args),
        *tried(args),
        *plots,
        *unseen(args),
        *choices(args),
    ]
    once: dict[Path | str, Stage] = {}
    for stage in every:
        once.setdefault(stage.result or str(stage), stage)
    return list(once.values())


def run(wanted: list[Stage]) -> None:
    """Run what is missing; training, which takes nearly all of the time, tells how long is left."""
    left = sum(stage.evaluations for stage in wanted if stage.settings and not stage.done)
    spent = made = 0.0
    for number, stage in enumerate(wanted, 1):
        if stage.done:
            continue
        guess = f", about {clock(left * spent / made)} left" if made else ""
        print(f"== {number}/{len(wanted)}{guess}: {stage}", flush=True)
        started = time.monotonic()
        subprocess.run(stage.command, check=True)
        if stage.settings:
            spent, made = spent + time.monotonic() - started, made + stage.evaluations
            left -= stage.evaluations
    print(f"Results are in {alignment.RESULTS}")


def show(wanted: list[Stage], measured: bool) -> None:
    """Print the commands with what each takes. Raises UserError where the model does not load."""
    first = next(stage.settings for stage in wanted if stage.settings)
    found = estimate(first) if measured else None
    for stage in wanted:
        cost = f"{stage.evaluations:14,.0f}" if stage.evaluations else f"{'':14}"
        if found:
            cost += f"{stage.hours(found.times):9.2f} h" if stage.evaluations else f"{'':11}"
        print(f"{cost}  {'done ' if stage.done else '     '}{stage}")
    print(f"{sum(s.evaluations for s in wanted):14,.0f} UNet evaluations in all")
    if found:
        total = sum(stage.hours(found.times) for stage in wanted)
        print(f"{total:14,.1f} hours on this machine, {found.memory_gib:.1f} GiB of memory")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    parser.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--full", action="store_true", help="every curve, on every seed")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    parser.add_argument("--hours", action="store_true", help="with --list: measure first")
    return parser.parse_args(given)


@ends_in_one_line()
def main() -> None:
    args = arguments()
    wanted = stages(args)
    try:
        if args.list:
            show(wanted, args.hours)
        else:
            run(wanted)
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None


if __name__ == "__main__":
    main()

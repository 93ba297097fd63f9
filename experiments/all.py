"""Every experiment of the paper, one after the other; stop it and start it again at will.

    python -m experiments.all --preset testbed
    python -m experiments.all --preset paper --model path/to/sd21-base --list --hours

Each is a command of its own, goes on where it was stopped, and does nothing twice. --list prints
them with the UNet evaluations they take; --hours measures this machine and adds the hours. The time
left is that of the evaluations left.
"""

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dfusion.errors import ends_in_one_line
from dfusion.estimate import Times, estimate, evaluations, seconds
from dfusion.inputs import load_prompts
from dfusion.progress import clock
from dfusion.settings import Settings
from experiments import ablations, alignment

METHODS = [
    *(("dpo", "naive", template) for template in (1, 2, 3)),
    *(("dpo", "dfusion", template) for template in (1, 2, 3)),
    *((method, pairs, 1) for method in ("ddpo", "dpok") for pairs in ("naive", "dfusion")),
    ("dpo", "inversion", 1),
]
RUN = "experiments.alignment"


@dataclass(frozen=True)
class Stage:
    """A command, by module and flags. Of training: its settings, and the file that it ends with."""

    module: str
    flags: tuple[str, ...]
    settings: Settings | None = None
    result: Path | None = None

    @property
    def evaluations(self) -> float:
        """UNet evaluations of training; the other commands take few."""
        if self.settings is None:
            return 0.0
        return sum(evaluations(self.settings, len(load_prompts(self.settings))).values())

    def hours(self, times: Times) -> float:
        """Hours of training on a machine with these times."""
        if self.settings is None:
            return 0.0
        prompts = len(load_prompts(self.settings))
        return sum(seconds(self.settings, prompts, times).values()) / 3600

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.flags]

    def __str__(self) -> str:
        return shlex.join(["python", "-m", self.module, *self.flags])


def chosen(args: argparse.Namespace) -> list[str]:
    """The flags that commands share: preset, and model where one is given."""
    return [f"--preset={args.preset}", *([f"--model={args.model}"] if args.model else [])]


def training(args: argparse.Namespace) -> list[Stage]:
    """Fig. 5, 7 and 11: every method, template and seed."""
    stages = []
    for seed in args.seeds:
        for method, pairs, template in METHODS:
            flags = [f"--method={method}", f"--pairs={pairs}", f"--template={template}"]
            stages.append(_run([*chosen(args), *flags, f"--seed={seed}"]))
    return stages


def _run(flags: list[str]) -> Stage:
    """One run of experiments.alignment."""
    run = alignment.arguments(flags)
    return Stage(RUN, tuple(flags), alignment.settings_of(run), alignment.result_of(run))


def choices(args: argparse.Namespace) -> list[Stage]:
    """What the paper leaves open, and the table of it."""
    asked = ablations.arguments(chosen(args))
    runs = [_run(ablations.flags_of(name, asked)) for name in ablations.CHOICES]
    return [*runs, Stage("experiments.ablations", tuple(chosen(args)))]


def stages(args: argparse.Namespace) -> list[Stage]:
    """All of them, in order."""
    preset = f"--preset={args.preset}"
    figures = [
        Stage(f"experiments.{name}", tuple(chosen(args)))
        for name in ("attention_control", "steps_layers", "cross_maps")
    ]
    grids = [
        Stage("experiments.fusion_grid", ()),
        Stage("experiments.fusion_plot", ()),
        Stage("experiments.fusion_grid", ("--final",)),
    ]
    unseen = []
    for t in (1, 2, 3):
        names = ",".join(f"dpo_{pairs}_t{t}_s{args.seeds[0]}" for pairs in ("naive", "dfusion"))
        flags = (preset, f"--template={t}", f"--names={names}")
        unseen.append(Stage("experiments.generalisation", flags))
    curves = Stage("experiments.alignment_plot", (preset,))
    measured = grids if args.preset == "testbed" else []
    return [*figures, *measured, *training(args), curves, *unseen, *choices(args)]


def run(wanted: list[Stage]) -> None:
    """Run what is missing; training, which takes nearly all of the time, tells how long is left."""
    left = sum(stage.evaluations for stage in wanted if not _done(stage))
    spent = made = 0.0
    for number, stage in enumerate(wanted, 1):
        if _done(stage):
            continue
        guess = f", about {clock(left * spent / made)} left" if made else ""
        print(f"== {number}/{len(wanted)}{guess}: {stage}", flush=True)
        started = time.monotonic()
        subprocess.run(stage.command, check=True)
        if stage.evaluations:
            spent, made = spent + time.monotonic() - started, made + stage.evaluations
            left -= stage.evaluations
    print(f"Results are in {alignment.RESULTS}")


def show(wanted: list[Stage], measured: bool) -> None:
    """Print the commands with what each takes. Raises UserError where the model does not load."""
    first = next(stage.settings for stage in wanted if stage.settings)
    found = estimate(first) if measured else None
    for stage in wanted:
        cost = f"{stage.evaluations:14,.0f}" if stage.settings else f"{'':14}"
        if found:
            cost += f"{stage.hours(found.times):9.2f} h" if stage.settings else f"{'':11}"
        print(f"{cost}  {'done ' if _done(stage) else '     '}{stage}")
    print(f"{sum(s.evaluations for s in wanted):14,.0f} UNet evaluations of training in all")
    if found:
        total = sum(stage.hours(found.times) for stage in wanted)
        print(f"{total:14,.1f} hours on this machine, {found.memory_gib:.1f} GiB of memory")


def _done(stage: Stage) -> bool:
    return stage.result is not None and stage.result.exists()


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    parser.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
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

"""Runs of `alignment` side by side: make what is missing, tell what each gained."""

import argparse
import subprocess
import sys
from typing import Any

from experiments.measures.intervals import Gain, gain_if_any
from experiments.pairs.dots import TITLES
from experiments.runs import alignment

MEASURED = {"score": "scores", "right": "right", "second": "second_scores"}  # of every image


def parser(rounds: dict[str, int]) -> argparse.ArgumentParser:
    """The flags that all runs of a comparison share. rounds: by preset, where no flag says."""
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    made.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    told = ", ".join(f"{preset}: {count}" for preset, count in rounds.items())
    made.add_argument("--rounds", type=int, help=told)
    made.add_argument("--seed", type=int, default=42)
    return made


def shared_flags(args: argparse.Namespace) -> list[str]:
    """What `parser` understood, as flags of experiments.runs.alignment."""
    flags = [f"--preset={args.preset}", f"--seed={args.seed}", f"--rounds={args.rounds}"]
    return flags + ([f"--model={args.model}"] if args.model else [])


def figures_after(flags: list[str], rounds: int) -> dict[str, Any] | None:
    """Figures of the run that these flags of `alignment` make; None where there is none
    with its settings, or none after so many rounds."""
    run = alignment.arguments(flags)
    figures = alignment.figures_of(alignment.settings_of(run), alignment.result_of(run))
    compared = figures["same_noise"] if figures else ()
    return figures if any(row["rounds"] == rounds for row in compared) else None


def make(runs: dict[str, list[str]], rounds: int) -> None:
    """Make every run that is missing. Ends the program where one fails."""
    for label, flags in runs.items():
        if figures_after(flags, rounds) is None:
            command = [sys.executable, "-m", "experiments.runs.alignment", *flags]
            if code := subprocess.run(command).returncode:
                raise SystemExit(code)
            if figures_after(flags, rounds) is None:
                raise SystemExit(
                    f"--rounds {rounds}: the run '{label}' went further before and has no "
                    f"comparison there; give rounds that it has"
                )


def there(runs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """The figures of those runs that have any, by label."""
    found = {label: figures_after(flags, rounds) for label, flags in runs.items()}
    return {label: figures for label, figures in found.items() if figures}


def gains_of(figures: dict[str, Any], count: int) -> dict[str, Gain]:
    """What a run gained in `count` rounds on the model before training."""
    compared = {row["rounds"]: row for row in figures["same_noise"]}
    first, last = compared[0], compared[count]
    return {key: gain_if_any(last[name], first[name]) for key, name in MEASURED.items()}


def leads_of(figures: dict[str, Any], other: dict[str, Any], count: int) -> dict[str, Gain]:
    """How much more a run gained in `count` rounds than another with the same noise before."""
    one, two = (
        next(row for row in run["same_noise"] if row["rounds"] == count) for run in (figures, other)
    )
    return {key: gain_if_any(one[name], two[name]) for key, name in MEASURED.items()}


def table(rows: dict[str, dict[str, Gain]]) -> list[str]:
    """A heading and a line for each row: its gains."""
    lines = [" ".join(f"{key:>16}" for key in TITLES)]
    for row in rows.values():
        found = [row[key] for key in TITLES]
        texts = [f"{gain[0]:+.3f} ± {gain[1]:.3f}" if gain else "" for gain in found]
        lines.append(" ".join(f"{text:>16}" for text in texts))
    return lines

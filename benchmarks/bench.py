"""How close each stage is to its bare network calls, and how much faster than a plain baseline.

    python -m benchmarks.bench --model testbed
    python -m benchmarks.bench --model sd21 --device cuda --dtype fp16 --pairs 8 --steps 20

Everything of a stage is timed in turns, in one process; figures are medians of ratios.
"""

import argparse
import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import bare, models, stages
from benchmarks.machine import describe
from benchmarks.stages import Stage
from benchmarks.table3 import RoundCount
from benchmarks.timing import matrix_rate, race
from benchmarks.workbench import make_round, open_workbench, settings_of, size_of, train_round
from dfusion.models.devices import quiet_libraries
from dfusion.rounds.session import Session
from dfusion.storage.files import write_json
from dfusion.training.metrics import peak_memory
from dfusion.training.trainer import Trainer

RESULTS = Path("benchmarks/results")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
STAGES = ("sampling", "fusion", "scoring", "sampling_lora", "training")
TUNED = {"sampling_lora", "training"}  # need LoRA; without them no training is counted
CLOCK_HELP = "processor: time spent computing, on a CPU that other jobs use too"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one run. Work files go to `folder`."""
    device = torch.device(options.device)
    model = models.make(options.model, device, DTYPES[options.dtype])
    if options.compile:
        _compile(model.network)
    settings = settings_of(model, options.pairs, options.batch_size, options.steps, folder)
    session = open_workbench(model, settings)
    made = make_round(session)
    seconds = session.runner.stopwatch.take()
    rate = matrix_rate(device, DTYPES[options.dtype], CLOCKS[options.clock])
    found, count = _stages(session, options, made)
    peaks = [gib for stage in found.values() for gib in stage.race.peak_gib.values()]
    return {
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "machine": describe(device),
        "matrix_gflops": round(rate / 1e9, 1),
        "stages": {name: figures(stage, rate) for name, stage in found.items()},
        "round_seconds": seconds,
        "evaluations": vars(count),
        "evaluations_table3": vars(count.scaled(size_of(session))),
        "peak_memory_gib": max([peak_memory(), *peaks]),
    }


def _stages(
    session: Session, options: argparse.Namespace, made: RoundCount
) -> tuple[dict[str, Stage], RoundCount]:
    """The stages asked for, and what the round took; LoRA comes after plain sampling."""
    found: dict[str, Stage] = {}
    counted = "" if options.compile else "bare"  # counting would undo the compiling
    in_turns = functools.partial(
        race, repeats=options.repeats, clock=CLOCKS[options.clock], counted=counted
    )
    stock = _stock(session, options.compile)
    if "sampling" in options.stages:
        found["sampling"] = stages.sampling(session, stock, in_turns)
    if "fusion" in options.stages:
        found["fusion"] = stages.fusion(session, stock, in_turns)
    if "scoring" in options.stages:
        found["scoring"] = stages.scoring(session, models.scorer(options.model), in_turns)
    if not TUNED & set(options.stages):
        return found, made
    tuned = bare.with_lora(_stock(session, options.compile), session.settings.train)
    trainer = Trainer(session)
    trained = train_round(trainer)
    if "sampling_lora" in options.stages:
        found["sampling_lora"] = stages.sampling(session, stock, in_turns)
    if "training" in options.stages:
        found["training"] = stages.training(trainer, tuned, in_turns)
    return found, replace(made, training=trained.training, checks=trained.checks)


def _stock(session: Session, compiled: bool) -> Any:
    unet = bare.stock_unet(session.model)
    if compiled:
        _compile(unet)
    return unet


def _compile(unet: Any) -> None:
    """Compile the transformer blocks; each layer, control and batch shape is compiled anew."""
    torch._dynamo.config.recompile_limit = 256
    unet.compile_repeated_blocks()


def figures(stage: Stage, rate: float) -> dict[str, Any]:
    """A stage as plain numbers, rounded. rate: of matrix products, operations a second."""
    race = stage.race
    ratios = race.ratios("ours", "bare")
    plain: dict[str, Any] = {
        "ratio_to_bare": round(race.ratio("ours", "bare"), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "seconds": {name: round(race.median(name), 4) for name in race.seconds},
        "peak_memory_gib": race.peak_gib,
        "evaluations": stage.evaluations,
    }
    if race.flops:  # of the bare calls: what else ours does counts as time lost
        plain["share_of_matrix_rate"] = round(race.flops / race.median("ours") / rate, 3)
    if "baseline" in race.seconds:
        plain["faster_than_baseline"] = round(race.ratio("baseline", "ours"), 3)
        plain["difference_from_baseline"] = stage.difference
    return plain


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    columns = f"{'ratio to bare':>22} {'ours':>9} {'bare':>9} {'of rate':>8} {'x baseline':>11}"
    lines = [f"{'stage':14} {columns}  agrees"]
    lines += [_line(name, row) for name, row in result["stages"].items()]
    whole = result["evaluations_table3"]
    parts = ", ".join(f"{name} {count:,.0f}" for name, count in whole.items())
    total = sum(whole.values())
    lines.append(f"UNet evaluations of a Table 3 round: {total:,.0f} ({parts})")
    rate = f"matrix products run at {result['matrix_gflops']:,.0f} GFLOP/s"
    lines.append(f"peak memory {result['peak_memory_gib']:.2f} GiB; {rate}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    low, high = row["ratio_range"]
    ratio = f"{row['ratio_to_bare']:6.3f} ({low:.3f} … {high:.3f})"
    seconds = row["seconds"]
    line = f"{name:14} {ratio:>22} {seconds['ours']:8.3f}s {seconds['bare']:8.3f}s"
    line += f" {row['share_of_matrix_rate']:8.0%}" if "share_of_matrix_rate" in row else " " * 9
    if "faster_than_baseline" in row:
        line += f" {row['faster_than_baseline']:11.2f}  to {row['difference_from_baseline']:.0e}"
    if "ours" in row["peak_memory_gib"]:
        line += f"  {row['peak_memory_gib']['ours']:.1f} GiB"
    return line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--model", choices=models.NAMES, default="testbed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of the round")
    parser.add_argument("--batch-size", type=int, default=2, help="pairs in a UNet call")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps T")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help=CLOCK_HELP)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=0, help="0: as torch finds them")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet's blocks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.pairs % options.batch_size:
        parser.error("--pairs must be a multiple of --batch-size")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write <out>/<model>_<device>.json."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    path = options.out / f"{options.model}_{options.device}.json"
    write_json(path, result)
    print(table(result))
    print(f"written to {path}")


if __name__ == "__main__":
    main()

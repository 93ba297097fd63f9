"""All that a GPU should be asked first, in one command of at most ten minutes.

    python -m benchmarks.gpu

Stable Diffusion 2.1-base's size, random weights. First how close each stage is to its bare calls,
the share of the card's matrix rate, and peak memory; then what each choice gains.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import bench, choices, models
from dfusion.models.devices import quiet_libraries
from dfusion.storage.files import write_json

# Of the stages: 4 pairs in a call, 16 rows.
ROUND = "--pairs=8 --batch-size=4 --steps=4 --repeats=3 --dtype=bf16"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=models.NAMES, default="sd21")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7, help="no choice is begun after that")
    parser.add_argument("--sizes", type=int, nargs="*", default=choices.SIZES, help="in a call")
    parser.add_argument("--round", default=ROUND, help="options of benchmarks.bench")
    parser.add_argument("--no-compile", action="store_true", help="leave compiling out")
    parser.add_argument("--out", type=Path, default=bench.RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print as it goes, and write <out>/<model>_<device>.json and …_choices.json."""
    until = time.perf_counter()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    until += 60 * options.minutes
    where = [f"--model={options.model}", f"--device={options.device}", f"--out={options.out}"]
    bench.main([*where, *options.round.split()])
    quiet_libraries()
    model = models.make(options.model, torch.device(options.device), torch.bfloat16)
    tried = [c for c in choices.choices(options.sizes) if not (c.compiled and options.no_compile)]
    rows = []
    for row in choices.measure(model, tried, until):
        rows.append(row)
        print(choices.table([rows[0], row]).splitlines()[-1], flush=True)
    print(choices.table(rows))
    for choice in tried[len(rows) :]:
        print(f"{choice.name}: left out after {options.minutes:g} minutes")
    path = options.out / f"{options.model}_{options.device}_choices.json"
    write_json(path, {"choices": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()

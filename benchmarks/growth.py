"""How the cost of a round grows with its images and steps: time linear, memory constant.

    python -m benchmarks.growth [--model testbed] [--pairs 8 32 128] [--steps 4 8]

Every size is a round of its own in a fresh process (sampling, fusion, one pass of training), so
that its peak memory is its own. The first number of steps goes with all pairs, the others with the
fewest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import models
from benchmarks.workbench import make_round, open_workbench, settings_of, train_round
from dfusion.models.devices import quiet_libraries
from dfusion.training.metrics import peak_memory
from dfusion.training.trainer import Trainer

BATCH = 4  # pairs in a call


def measure(name: str, pairs: int, steps: int) -> dict[str, float]:
    """A round in this process: UNet evaluations, processor seconds, peak memory in GiB."""
    quiet_libraries()
    model = models.make(name, torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(model, pairs, BATCH, steps, Path(folder))
        settings.train.num_inner_epochs = 1
        session = open_workbench(model, settings)
        started = time.process_time()
        made = make_round(session)
        trained = train_round(Trainer(session))
        seconds = time.process_time() - started
    evaluations = made.sampling + made.fusion + trained.training
    return {"evaluations": evaluations, "seconds": seconds, "peak_gib": peak_memory()}


def apart(name: str, pairs: int, steps: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    size = ["--model", name, "--pairs", str(pairs), "--steps", str(steps), "--here"]
    command = [sys.executable, "-m", "benchmarks.growth", *size]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("testbed", "tiny"), default="testbed")
    parser.add_argument("--pairs", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--here", action="store_true", help="one size, in this process, as JSON")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.model, args.pairs[0], args.steps[0])))
        return
    sizes = [(pairs, args.steps[0]) for pairs in args.pairs]
    sizes += [(min(args.pairs), steps) for steps in args.steps[1:]]
    print("images  steps  evaluations  seconds  ms an evaluation  peak GiB")
    for pairs, steps in sizes:
        found = apart(args.model, pairs, steps)
        each = 1000 * found["seconds"] / found["evaluations"]
        print(
            f"{2 * pairs:6d} {steps:6d} {found['evaluations']:12,.0f} {found['seconds']:8.1f} "
            f"{each:17.2f} {found['peak_gib']:9.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Reproduce the testbed from nothing: scenes, autoencoder, denoiser, judge, scorer, figures.

python -m testbed.training.train all --work /tmp/testbed       # about three hours on 2 cores
python -m testbed.training.train judge --work /tmp/testbed     # one stage
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from testbed.figures.policy import WEIGHTS

SEEDS = {"pool": 1, "pool_judge": 3, "pool_scorer": 4, "pool_second": 5}
COUNTS = {"pool": 40000, "pool_judge": 16000, "pool_scorer": 16000, "pool_second": 16000}

EXTRA = ("sd3",)  # not among "all"


def commands(work: Path, weights: Path) -> dict[str, list[list[str]]]:
    """Stage name to the commands that it runs, in order."""

    def pool(name: str) -> list[str]:
        return ["world.pool", "--seed", str(SEEDS[name]), "--count", str(COUNTS[name]),
                "--out", f"{work}/{name}.npz"]  # fmt: skip

    vae = ["--vae", f"{work}/vae"]
    denoiser = ["training.diffusion", "--pool", f"{work}/pool.npz", *vae,
                "--regions", f"{work}/regions.safetensors"]  # fmt: skip

    def reader(name: str, out: Path) -> list[str]:
        return [f"training.{name}", "--pool", f"{work}/pool_{name}.npz", *vae, "--out", str(out)]

    return {
        "scenes": [
            *(pool(name) for name in SEEDS),
            ["world.regions", "--seed", str(SEEDS["pool"]), "--count", "20000",
             "--out", f"{work}/regions.safetensors"],
        ],
        "vae": [["training.vae", "--pool", f"{work}/pool.npz", "--out", f"{work}/vae"]],
        "diffusion": [[*denoiser, "--work", str(work), "--out", f"{weights}/diffusion"]],
        "sd3": [[*denoiser, "--model", "sd3", "--start", f"{weights}/diffusion",
                 "--teacher", f"{weights}/diffusion", "--steps", "7300", "--falling", "0.32",
                 "--confuse-from", "1500", "--shares", "0.26", "0.30", "0.44",
                 "--latents", f"{work}/latents.safetensors", "--work", f"{work}/sd3",
                 "--out", f"{weights}/sd3"],
                ["figures.thresholds", "--model", f"{weights}/sd3"]],
        "judge": [reader("judge", weights / "judge" / "model.safetensors")],
        "scorer": [reader("scorer", weights / "scorer")],
        "second": [["training.scorer", "--model", "second", *vae,
                    "--pool", f"{work}/pool_second.npz", "--epochs", "15", "--seed", "5",
                    "--out", f"{weights}/second"]],
        "prompts": [["world.prompt_lists"],
                    ["figures.thresholds", "--model", f"{weights}/diffusion"]],
        "figures": [["figures.evaluate", "--weights", str(weights)],
                    ["figures.validity", "--weights", str(weights)]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["all", *commands(Path(), Path())])
    parser.add_argument("--work", type=Path, required=True, help="scenes and checkpoints")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    stages = commands(args.work, args.weights)
    every = [stage for stage in stages if stage not in EXTRA]
    for stage in every if args.stage == "all" else [args.stage]:
        for module, *flags in stages[stage]:
            print(f"== {stage}: {module} {' '.join(flags)}", flush=True)
            subprocess.run([sys.executable, "-m", f"testbed.{module}", *flags], check=True)


if __name__ == "__main__":
    main()

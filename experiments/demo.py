"""make demo: the two-process loop on the embedded model, trained for a few rounds on three prompts.

It ends with what the judge, whom training never asks, says of images before and after.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from dfusion.storage.experiment import Experiment
from experiments.measures.measure import Meters
from experiments.runs.alignment import measured
from experiments.runs.before_after import row, sheet, shown
from testbed.models.judge import Judge

FLAGS = [
    "--config=config/config.py:testbed",
    "--config.exp_name=demo",
    "--config.prompt_file=config/prompt/demo.json",
    "--config.item_idx_file=config/prompt/demo_item.json",
    "--config.mask_thr_file=config/prompt/demo_mask.json",
    "--config.sample.batch_size=16",
    "--config.fusion.steps=20-11",  # by then the embedded model has decided what is where
    "--config.train.method=fdfo",
    "--config.train.learning_rate=3e-3",
    "--config.train.updates_per_inner_epoch=6",
    "--config.train.num_epochs=4",
    "--config.train.compare_images=16",
    "--config.train.compare_every=4",
]


def compared(folder: Path, judge: Judge) -> tuple[str, Path]:
    """What the judge says of the images before and after training, which have the same noise, and
    a picture of the first of them."""
    found = sorted(Experiment(folder).comparisons().items())
    meters = Meters(judge=judge, second=None)
    before, after = (measured(found[n][1], meters) for n in (0, -1))
    share = f"{before['judge']:.0%} of {before['images']} images before, {after['judge']:.0%} after"
    rows = {f"after {k} rounds" if k else "before": row(round_, judge) for k, round_ in found}
    path = folder / "before_after.png"
    sheet(rows, list(shown(found[0][1]))).save(path)
    return f"Right, by the judge: {share}", path


def main() -> int:
    started = time.monotonic()
    # Two processes of many threads each would hold each other up on a few cores.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    scorer = subprocess.Popen([sys.executable, "run_eval.py", *FLAGS], env=one_thread)
    trainer = subprocess.Popen([sys.executable, "run_train.py", *FLAGS])
    try:
        while trainer.poll() is None and scorer.poll() is None:
            time.sleep(0.2)
    finally:
        for process in (scorer, trainer):
            if process.poll() is None:
                process.terminate()
                process.wait()
    if trainer.returncode == 0:
        folder = Path("data/demo").resolve()
        said, picture = compared(folder, Judge.load())
        print(f"\n{said}; see {picture}")
        print(f"Done in {time.monotonic() - started:.0f} s. Open {folder / 'index.html'}")
    else:
        print("\nStopped. To begin anew: rm -r data/demo", file=sys.stderr)
    return trainer.returncode


if __name__ == "__main__":
    sys.exit(main())

"""make demo: the two-process loop on the embedded model: two rounds, trained on, a few prompts."""

import os
import subprocess
import sys
import time
from pathlib import Path

FLAGS = [
    "--config=config/config.py:testbed",
    "--config.exp_name=demo",
    "--config.prompt_file=config/prompt/demo.json",
    "--config.item_idx_file=config/prompt/demo_item.json",
    "--config.mask_thr_file=config/prompt/demo_mask.json",
    "--config.sample.batch_size=8",
    "--config.train.num_epochs=2",
    "--config.train.updates_per_inner_epoch=2",  # of the few pairs there are: so few steps
    "--config.train.learning_rate=2e-3",  # are seen only if they are long
    "--config.train.compare_images=2",
]


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
        page = Path("data/demo/index.html").resolve()
        print(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")
    else:
        print("\nStopped. To begin anew: rm -r data/demo", file=sys.stderr)
    return trainer.returncode


if __name__ == "__main__":
    sys.exit(main())

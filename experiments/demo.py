"""make demo: the two-process loop on the embedded model, one round on a handful of prompts."""

import subprocess
import sys
import time
from pathlib import Path

FLAGS = [
    "--config=config/config.py:testbed",
    "--config.exp_name=demo",
    "--config.prompt_file=config/prompt/demo.json",
    "--config.item_idx_file=config/prompt/demo_item.json",
]


def main() -> int:
    started = time.monotonic()
    scorer = subprocess.Popen([sys.executable, "run_eval.py", *FLAGS])
    try:
        code = subprocess.call([sys.executable, "run_sample.py", *FLAGS])
    finally:
        scorer.terminate()
        scorer.wait()
    if code == 0:
        page = Path("data/demo/index.html").resolve()
        print(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")
    return code


if __name__ == "__main__":
    sys.exit(main())

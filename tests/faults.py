"""Kill a run at file-system operations, run it again, and compare with an undisturbed run.

    python -m tests.faults --points 120

Each point is a process of its own that ends by SIGKILL just before its nth operation that changes
something under the experiment's folder (opening a file for writing, renaming, deleting, making a
folder); n is spread evenly over all operations of sampling, scoring, fusing, training and
reporting, two rounds long. Then the same command runs to its end, and images, scores, pairs,
trajectories and the final LoRA must be those of a run that nobody killed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dfusion.settings import Settings
from dfusion.training import train_rounds
from tests.conftest import make_pipeline, make_settings

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
PASSING = ("seconds", "peak_memory_gib")  # differ from run to run
NAMING = ("config.json", "index.html", "pairs.png", "README.md")  # have the name in them


class Killer:
    """Counts changes under a folder; kills this process before number `at` (0: never)."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.count = str(folder), at, 0
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if not (writes or event in CHANGES) or not str(args[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def child(work: Callable[[], int]) -> int | None:
    """Run `work` in a forked process; what it returned, or None if it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.write(write, str(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("the run failed instead of going on; see above")
    return int(text)


def run(settings: Settings, kill_at: int = 0) -> int | None:
    """Train; how many changes it made, or None if it was killed."""

    def work() -> int:
        killer = Killer(Path(settings.save_path) / settings.exp_name, kill_at)
        train_rounds(settings)
        return killer.count

    return child(work)


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a finished run must have, by relative path; bytes, or parsed metrics."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k not in PASSING} for row in rows]
        elif path.suffix == ".safetensors":  # its header has no fixed order
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.name not in NAMING:
            found[name] = path.read_bytes()
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def make(folder: Path) -> Settings:
    """Two rounds on the tiny model, with everything on that writes files."""
    make_pipeline(folder).save_pretrained(folder / "model")
    settings = make_settings(folder, folder / "model")
    settings.train = replace(settings.train, num_epochs=2, compare_every=1, batch_size=8)
    return settings


def survey(folder: Path, points: int, say: Callable[[str], object]) -> list[str]:
    """Kill at `points` operations, spread evenly; returns what went wrong."""
    torch.set_num_threads(1)
    settings = make(folder)
    whole = replace(settings, exp_name="whole")
    total = run(whole)
    assert total is not None
    expected = contents(folder / "data" / "whole")
    failed = []
    for n in range(points):
        at = 1 + n * total // points
        broken = replace(settings, exp_name=f"killed{at}")
        if run(broken, at) is not None:
            failed.append(f"operation {at}: the run ended before it")
        run(broken)
        wrong = difference(expected, contents(folder / "data" / broken.exp_name))
        if wrong:
            failed.append(f"operation {at}: {', '.join(wrong[:5])} differ")
        shutil.rmtree(folder / "data" / broken.exp_name)
        say(f"{n + 1}/{points} killed before operation {at} of {total}: {wrong[:3] or 'the same'}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=120)
    args = parser.parse_args()
    os.fsync = lambda descriptor: None  # guards against power cuts, which no kill is
    with tempfile.TemporaryDirectory() as name:
        failed = survey(Path(name), args.points, lambda text: print(text, flush=True))
    print("\n".join(failed))
    print(f"{args.points - len(failed)} of {args.points} kill points survived.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

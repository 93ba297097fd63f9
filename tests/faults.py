"""Kill runs at file-system operations, run them again, and compare with undisturbed runs.

    python -m tests.faults --points 120
    python -m tests.faults --points 120 --part 2/4     (parts of one survey add up)

Each point is a process of its own that ends by SIGKILL just before its nth operation that changes
something under the experiment's folder (opening a file for writing, renaming, linking, deleting,
making a folder); n is spread evenly over all operations of four jobs:

train      two rounds: sampling, scoring in the run, fusing, training LoRA, comparing, reporting,
           dropping the first round's trajectories
inversion  one round with targets' trajectories inverted, all of the UNet trained
shared     one round over the samples and targets of that one
scorer     a scorer of its own, over an experiment that is sampled and has no scores

Then the same command runs to its end, and the files of images, scores, pairs, trajectories and the
final weights must have the bytes of a run that nobody killed. The points are counted by the stage
they fall in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfusion.rounds.session import sample_rounds, score
from dfusion.settings.schema import Settings
from dfusion.training.trainer import train_rounds
from tests.conftest import make_pipeline, make_settings

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}
STAGES = {  # of the paths that have this in them
    "compare/": "comparing",
    "trajectories": "sampling",
    "/images/": "sampling",
    "manifest": "sampling",
    "/eval": "scoring",
    "scorer": "scoring",
    "dropped": "dropping",
    "pairs.json": "pairing",
    "inversions": "inverting",
    **dict.fromkeys(("targets", "_images", "masks"), "fusing"),
    "adoption": "adopting",
    "checkpoints": "training",
    "metrics": "training",
    **dict.fromkeys(("index.html", "pairs.png"), "reporting"),
}
PASSING = ("seconds", "peak_memory_gib")  # differ from run to run
NAMING = ("config.json", "index.html", "pairs.png", "README.md")  # have the name in them


class Killer:
    """Counts changes under a folder; kills this process before number `at` (0: never)."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at = str(folder), at
        self.changed: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if not (writes or event in CHANGES):
            return
        changed = str(args[1 if event == "os.link" else 0])
        if not changed.startswith(self.folder):
            return
        self.changed.append(changed[len(self.folder) :])
        if len(self.changed) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def child(work: Callable[[], str]) -> str | None:
    """Run `work` in a forked process; what it returned, or None if it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            with os.fdopen(write, "w") as pipe:
                pipe.write(work())
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
    return text


def run(job: Job, settings: Settings, kill_at: int = 0) -> list[str] | None:
    """Do the job; the files it changed, one a change, or None if it was killed."""

    def work() -> str:
        killer = Killer(Path(settings.save_path) / settings.exp_name, kill_at)
        job.do(settings)
        return "\n".join(killer.changed)

    text = child(work)
    return None if text is None else text.splitlines()


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a finished run must have, by relative path; bytes, or parsed metrics."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k not in PASSING} for row in rows]
        elif path.name not in NAMING:
            found[name] = path.read_bytes()
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def stage_of(path: str) -> str:
    """The stage that changes a file of an experiment."""
    for part, stage in STAGES.items():
        if part in path:
            return stage
    return "the experiment's own files"


def make(folder: Path) -> Settings:
    """Two rounds on the tiny model, with everything on that writes files."""
    make_pipeline(folder).save_pretrained(folder / "model")
    settings = make_settings(folder, folder / "model")
    settings.train = replace(settings.train, num_epochs=2, compare_every=1, batch_size=8)
    return replace(settings, keep_trajectories="last")


def inverted(settings: Settings) -> Settings:
    """One round; every target is adopted, inverted, and all of the UNet trained."""
    train = replace(
        settings.train, num_epochs=1, pairs="inversion", tune="full", learning_rate=1e-4
    )
    return replace(settings, train=train, pair=replace(settings.pair, adoption="all"))


def shared(settings: Settings) -> Settings:
    """One round, taken over from the inversion that nobody killed, up to training."""
    run = inverted(settings)
    source = str(Path(settings.save_path) / "inversion-whole")
    train = replace(run.train, pairs="dfusion", tune="lora")
    return replace(run, train=train, samples_from=source)


def scored_apart(settings: Settings) -> Settings:
    return replace(settings, eval=replace(settings.eval, once=True, batch_size=1))


def sampled_only(settings: Settings) -> None:
    """An experiment that waits for a scorer."""
    folder = sample_rounds(settings)
    for path in folder.glob("epoch*/eval/*.json"):
        path.unlink()


@dataclass(frozen=True)
class Job:
    """What is killed. prepare: what is there before it, made without being killed."""

    do: Callable[[Settings], object]
    of: Callable[[Settings], Settings]
    prepare: Callable[[Settings], object] | None = None


JOBS = {
    "train": Job(train_rounds, lambda settings: settings),
    "inversion": Job(train_rounds, inverted),
    "shared": Job(train_rounds, shared),
    "scorer": Job(score, scored_apart, sampled_only),
}


class Survey:
    """One job in `folder`, done once undisturbed."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.job = name, JOBS[name]
        self.settings = self.job.of(settings)
        self.data = Path(settings.save_path)
        whole = self.prepared(f"{name}-whole")
        changed = run(self.job, whole)
        assert changed is not None
        self.changed = changed
        self.expected = contents(self.data / whole.exp_name)

    def prepared(self, name: str) -> Settings:
        """The job's settings under another name, with what is to be there before it."""
        settings, before = replace(self.settings, exp_name=name), self.data / f"{self.name}-before"
        if self.job.prepare:
            if not before.exists():
                child(lambda: str(self.job.prepare(replace(settings, exp_name=before.name))))
            shutil.copytree(before, self.data / name)
        return settings

    def kill(self, at: int) -> str:
        """Kill before operation `at` (from 1) and go on; what differs then, or nothing."""
        broken = self.prepared(f"{self.name}-killed{at}")
        folder = self.data / broken.exp_name
        if run(self.job, broken, at) is not None:
            return "the run ended before it"
        run(self.job, broken)
        wrong = difference(self.expected, contents(folder))
        shutil.rmtree(folder)
        return f"{', '.join(wrong[:5])} differ" if wrong else ""


def survey(folder: Path, points: int, part: int, parts: int, say: Callable[[str], object]) -> int:
    """Kill at `points` operations over all jobs, or at this part's; returns how many failed."""
    torch.set_num_threads(1)
    settings = make(folder)
    surveys = [Survey(name, settings) for name in JOBS]
    places = [(s, at) for s in surveys for at in range(1, len(s.changed) + 1)]
    chosen = [places[n * len(places) // points] for n in range(points)][part - 1 :: parts]
    survived: Counter[str] = Counter()
    for n, (one, at) in enumerate(chosen, 1):
        wrong = one.kill(at)
        path = one.changed[at - 1]
        survived[stage_of(path)] += not wrong
        say(
            f"{n}/{len(chosen)} {one.name}, operation {at} of {len(one.changed)}, {path}: "
            f"{wrong or 'the same'}"
        )
    for stage, count in sorted(survived.items()):
        say(f"{count:4d} survived in {stage}")
    say(f"{survived.total()} of {len(chosen)} kill points survived.")
    return len(chosen) - survived.total()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=120)
    parser.add_argument("--part", default="1/1", help="this part of the points, e.g. 2/4")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    os.fsync = lambda descriptor: None  # guards against power cuts, which no kill is
    with tempfile.TemporaryDirectory() as name:
        return bool(
            survey(Path(name), args.points, part, parts, lambda text: print(text, flush=True))
        )


if __name__ == "__main__":
    sys.exit(main())

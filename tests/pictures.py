"""Take the pictures in docs/pictures/ anew: `python -m tests.pictures`, after `make demo`.

Every tab in windows of 1400 and of 400 pixels, of the demo's experiment and of a folder of 25 runs
with images of 512 pixels. The figures of those 25 are invented, their pictures are the demo's.
"""

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dfusion.storage.experiment import Experiment
from dfusion.storage.lock import run_lock
from tests.many_runs import make
from tests.view.browsing import ARGUMENTS, CHROMIUM, playwright, serving

FOLDER = Path(__file__).parents[1] / "docs/pictures"
WIDTHS = {1400: 900, 400: 800}
COUNT, SIZE = 25, 512
MANY = "dpo_dfusion_00_s42"  # the run of many whose pairs are shown
BUSY = "dpo_dfusion_06_s42"
# Name of the picture, and the address in the app.
DEMO_VIEWS = {
    "runs": "runs",
    "run": "runs?open=demo",
    "pairs": "pairs?exp=demo&round=epoch0",
    "pair": "pairs?exp=demo&round=epoch0&pair=0",
    "compare": "compare?exp=demo",
    "thresholds": "thresholds?exp=demo&round=epoch0",
    "rate": "rate",
}
MANY_VIEWS = {
    "runs": "runs?sort=score&down=1",
    "curves": "runs?sort=score&down=1",
    "pairs": f"pairs?exp={MANY}&round=epoch0",
    "compare": f"compare?exp={MANY}",
    "rate": "rate",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("data/demo"), help="made by `make demo`")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--dark", action="store_true", help="in dark mode")
    args = parser.parse_args()
    if not (args.demo / "epoch0/adoption.json").exists():
        print(f"error: {args.demo}: not there or not finished; run `make demo`", file=sys.stderr)
        return 2
    folder = Path(tempfile.gettempdir()) / "dfusion_pictures"  # some pages show where they write
    shutil.rmtree(folder, ignore_errors=True)
    demo, many = folder / "demo", folder / "many"
    shutil.copytree(args.demo, demo / "demo")
    make(many, COUNT, args.demo / "epoch0", SIZE)
    _set_to_work(many / BUSY)
    for name, data, views in (("demo", demo, DEMO_VIEWS), ("many", many, MANY_VIEWS)):
        for picture, path in _take(data, views, args.dark):
            args.out.mkdir(parents=True, exist_ok=True)
            _save(picture, args.out / f"{name}_{path}.png")
    shutil.rmtree(folder)
    return 0


def _set_to_work(folder: Path) -> None:
    """Let a run's last round look as if it were being fused by this process."""
    experiment = Experiment(folder)
    number = max(experiment.rounds())
    round_ = experiment.round(number)
    (round_.folder / "adoption.json").unlink()
    (folder / f"checkpoints/epoch{number}/state.json").unlink()
    round_.write_scores("target_images", "clip", {0: 0.7})
    round_.image("target_images", 3).unlink()
    now = time.time()
    for i in range(3):  # the links to other runs' files are cut: their times stay
        path = round_.image("target_images", i)
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        os.utime(path, (now - 40 * (3 - i), now - 40 * (3 - i)))
    assert run_lock(folder).acquire()
    note = {"process": os.getpid(), "host": socket.gethostname(), "since": ""}
    (folder / ".run.lock.json").write_text(json.dumps(note))


def _take(data: Path, views: dict[str, str], dark: bool) -> Iterator[tuple[bytes, str]]:
    """Every view in every width: the picture, and its name."""
    scheme = "dark" if dark else "light"
    with serving(data, ["--control"]) as address, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for width, height in WIDTHS.items():
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector(".tab")
            for name, path in views.items():
                page.goto(f"{address}#/{path}")
                page.wait_for_selector(f".tab.{path.split('?')[0]}")
                _settle(page)
                if name == "curves":
                    page.evaluate("document.querySelector('.curves').scrollIntoView()")
                yield page.screenshot(), f"{name}_{width}"
        browser.close()


def _settle(page: Any) -> None:
    """Wait until what is in the window has loaded."""
    page.wait_for_timeout(800)
    page.wait_for_function(
        "() => [...document.images].every((i) => i.complete || "
        "i.getBoundingClientRect().top > innerHeight)"
    )
    page.wait_for_timeout(300)


def _save(picture: bytes, path: Path) -> None:
    """As a PNG of 256 colours, a third of the size."""
    aside = path.with_suffix(".full.png")
    aside.write_bytes(picture)
    with Image.open(aside) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    aside.unlink()
    print(path)


if __name__ == "__main__":
    sys.exit(main())

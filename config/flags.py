"""From the command line to one library call; shared by the run_*.py scripts."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dfusion.errors import UserError, one_line
from dfusion.settings import Settings, settings_of

# What a disk, a mount or permissions can do to a run.
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EFBIG, errno.ESTALE, errno.ENAMETOOLONG),
}
# Older diffusers on torch 2.8 warn of this as they are imported where there is no GPU.
warnings.filterwarnings("ignore", message="User provided device_type of 'cuda'")
GO_ON = "Stopped. Run the same command again to go on."


def main(verb: Callable[[Settings], object]) -> None:
    """Parse --config and call `verb`. Bad input ends with one line and exit code 2."""
    default = os.path.join(os.path.dirname(__file__), "config.py")
    with _one_line():  # the default's overrides are parsed when the flag is defined
        config = config_flags.DEFINE_config_file("config", default, "File of settings, or :preset.")
    app.run(lambda argv: _run(verb, config.value, argv), flags_parser=_parse)


def _run(verb: Callable[[Settings], object], config: ConfigDict, argv: list[str]) -> None:
    if len(argv) > 1:
        _fail(f"'{argv[1]}' is no flag; flags look like --config.exp_name test")
    logging.set_verbosity(logging.WARNING)  # open_clip tells the root logger all it does
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        settings = settings_of(config.to_dict(), "--config")
        verb(settings)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = error.filename or config.save_path
        _fail(f"{where}: {error.strerror}; once that is mended, the same command goes on", 1)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else f"\n{GO_ON}", flush=True)
        sys.exit(130)


def _parse(argv: list[str]) -> list[str]:
    with _one_line():
        return flags.FLAGS(argv)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # absl and ml_collections raise what they met, of any kind
        text = str(error)
        if "Traceback" in text:  # a preset's own error, wrapped with its traceback
            text = text.strip().splitlines()[-1]
        text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split()).strip("'\"")
        _fail(f"{text}; --help lists the flags")


def _fail(text: str, code: int = 2) -> NoReturn:
    print(f"error: {one_line(text)}", file=sys.stderr)
    sys.exit(code)

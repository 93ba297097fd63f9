"""From the command line to one library call; shared by the run_*.py scripts."""

import difflib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dfusion.commands.help import help_text
from dfusion.errors import UserError, one_line
from dfusion.settings.plain_values import settings_of
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import SETTINGS, Settings

# Errors caused by disks, mounts and permissions: reported in one line, without a traceback.
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EFBIG, errno.ESTALE, errno.ENAMETOOLONG),
}
# Older diffusers on torch 2.8 warn of this as they are imported where there is no GPU.
warnings.filterwarnings("ignore", message="User provided device_type of 'cuda'")
HELP = ("help", "helpfull", "helpshort", "h", "?")
FILE = os.path.join(os.path.dirname(__file__), "config.py")  # of the presets
GO_ON = "Stopped. Run the same command again to continue."


def main(
    about: str, verb: Callable[[Settings], object], check: Callable[[Settings], object]
) -> None:
    """Parse --config, `check` it and call `verb`. Bad input ends with one line and exit code 2.

    `verb` does the slow imports, so that wrong flags are refused at once.
    """
    wanted = [word for word in sys.argv if word.lstrip("-") in HELP and word.startswith("-")]
    sys.argv = _with_preset_files(sys.argv)
    argv = [word for word in sys.argv if word not in wanted]
    _check_names(argv[1:])
    with _one_line():  # the default's overrides are parsed when the flag is defined
        config = config_flags.DEFINE_config_file("config", FILE, "A preset, or a file of settings.")
    if wanted:
        _parse(argv)
        with _one_line():
            settings = settings_of(config.value.to_dict(), "--config")
        print(help_text(about, settings.to_dict()))
        return
    app.run(lambda rest: _run(verb, check, config.value, rest), flags_parser=_parse)


def _run(
    verb: Callable[[Settings], object],
    check: Callable[[Settings], object],
    config: ConfigDict,
    argv: list[str],
) -> None:
    if len(argv) > 1:
        _fail(_no_flag(argv[1], before=sys.argv[len(sys.argv) - len(argv)]))
    logging.set_verbosity(logging.WARNING)  # open_clip logs everything it does
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends a run as Ctrl-C does
    with _one_line():  # raises if the file of settings does not exist
        values = config.to_dict()
    try:
        settings = settings_of(values, "--config")
        check(settings)
        verb(settings)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = error.filename or config.save_path
        _fail(f"{where}: {error.strerror}; once that is fixed, the same command continues", 1)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else f"\n{GO_ON}", flush=True)
        sys.exit(130)


def _with_preset_files(argv: list[str]) -> list[str]:
    """The arguments with `--config NAME` replaced by the file and name of the preset."""
    named = list(argv)
    for n, word in enumerate(argv):
        flag, equals, name = word.partition("=")
        if flag.lstrip("-") == "config" and flag.startswith("-"):
            if equals and name in PRESETS:
                named[n] = f"--config={FILE}:{name}"
            elif n + 1 < len(argv) and argv[n + 1] in PRESETS:
                named[n + 1] = f"{FILE}:{argv[n + 1]}"
    return named


def _parse(argv: list[str]) -> list[str]:
    with _one_line():
        return flags.FLAGS(argv)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # absl and ml_collections raise errors of any kind
        _fail(_plain(str(error)))


def _plain(text: str) -> str:
    """A message of absl or ml_collections, in our words where we have some."""
    if "Traceback" in text:  # a preset's own error, wrapped with its traceback
        return text.strip().splitlines()[-1].removeprefix("ValueError: ")
    if "Failed loading config file" in text:
        last = text.strip().splitlines()[-1].strip()
        return f"--config: {last}; give a file, or one of the presets {', '.join(PRESETS)}"
    if "before a value for --config" in text:
        return "--config NAME: must come before the settings that change it, --config.exp_name …"
    bad = re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)
    if bad and bad[1] in SETTINGS:
        return f"--config.{bad[1]} {bad[2]}: must be {SETTINGS[bad[1]].type_in_words}"
    return f"{' '.join(text.split())}; --help lists the flags"


def _check_names(words: list[str]) -> None:
    """Refuse unknown settings; the message of ml_collections is not clear."""
    for word in words:
        flag = word.partition("=")[0]
        name = flag.lstrip("-").removeprefix("no").removeprefix("config.")
        if re.match(r"--?(no)?config\.", flag) and name not in SETTINGS:
            last = name.rpartition(".")[2]
            near = [k for k in SETTINGS if k.startswith(f"{name}.") or k.rpartition(".")[2] == last]
            near = near or difflib.get_close_matches(name, SETTINGS, 2)
            hint = f"did you mean --config.{', --config.'.join(near)}? " if near else ""
            _fail(f"{flag}: there is no such setting; {hint}--help lists all")


def _no_flag(word: str, before: str) -> str:
    """The message for a word that is neither a flag nor a flag's value."""
    setting = SETTINGS.get(before.lstrip("-").removeprefix("config."))
    if setting and setting.kind is bool:
        return f"{before} {word}: write {before}={word}"
    return f"'{word}' is not a flag; flags look like --config.exp_name test"


def _fail(text: str, code: int = 2) -> NoReturn:
    print(f"error: {one_line(text)}", file=sys.stderr)
    sys.exit(code)

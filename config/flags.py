"""From the command line to one library call; shared by the run_*.py scripts."""

import os
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from dfusion.errors import UserError
from dfusion.settings import Settings


def main(verb: Callable[[Settings], object]) -> None:
    """Parse --config and call `verb`. Bad input ends with one line and exit code 2."""
    default = os.path.join(os.path.dirname(__file__), "config.py")
    config = config_flags.DEFINE_config_file("config", default, "Settings, or config.py:preset.")

    def run(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"'{argv[1]}' is no flag; flags look like --config.exp_name test")
        try:
            verb(Settings.of(config.value.to_dict()))
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("\nStopped. Run the same command again to go on.", flush=True)
            sys.exit(130)

    app.run(run, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        text = " ".join(str(error).split())
        _fail(f"{text}; --help lists the flags")
        raise


def _fail(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)

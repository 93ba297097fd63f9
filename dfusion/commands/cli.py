"""The command `dfusion`: one word, then that command's own flags."""

import importlib
import sys

COMMANDS = {
    "sample": "sample a round, wait for its scores, pair and fuse",
    "eval": "score images as they appear",
    "train": "sample, fuse and train, round after round",
    "view": "look at runs, pairs and thresholds in the browser, and rate images",
    "verify": "check an experiment's files",
    "report": "write an experiment's page again",
    "estimate": "time, memory and disk of a run, before it starts",
}


def main() -> int | None:
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in ("-h", "--help", "help")
        lines = [f"  dfusion {name:<10}{about}" for name, about in COMMANDS.items()]
        if words and not asked:
            lines.insert(0, f"error: there is no command '{words[0]}'; there are")
        print(
            "\n".join([*lines, "Each lists its flags with --help."]),
            file=sys.stderr if not asked else sys.stdout,
        )
        return 0 if asked else 2
    sys.argv = [f"dfusion {words[0]}", *words[1:]]
    return importlib.import_module(f"dfusion.commands.{words[0]}").main()

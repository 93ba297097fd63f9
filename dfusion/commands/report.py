"""Write an experiment's page and contact sheet again: dfusion report data/<exp>"""

import sys
from pathlib import Path

from dfusion.errors import UserError


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: dfusion report data/<exp>", file=sys.stderr)
        return 2
    from dfusion.report import page

    try:
        print(*page.write(Path(sys.argv[1])), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

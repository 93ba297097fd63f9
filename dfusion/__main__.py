"""python -m dfusion: the command `dfusion` from a checkout."""

import sys

from dfusion.commands.cli import main

sys.exit(main())

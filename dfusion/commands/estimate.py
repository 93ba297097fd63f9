"""What a run will take on this machine, before it starts.

    dfusion estimate --config paper --config.prompt_file ...

The flags are those of `dfusion train`. For `dfusion sample`, see the lines on sampling and fusing.
"""

from dfusion.commands import flags
from dfusion.settings.check import check
from dfusion.settings.schema import Settings


def announce(settings: Settings) -> None:
    from dfusion.training import estimate

    estimate.announce(settings)


def main() -> None:
    flags.main(__doc__, announce, check)

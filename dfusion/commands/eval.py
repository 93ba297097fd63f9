"""Score the images of experiments as they appear; run it beside run_sample.py.

dfusion eval --config.exp_name test
"""

from dfusion.commands import flags
from dfusion.settings.check import check_scoring
from dfusion.settings.schema import Settings


def score(settings: Settings) -> None:
    from dfusion.rounds import session

    session.score(settings)


def main() -> None:
    flags.main(__doc__, score, check_scoring)

"""Sample a round, wait for its scores, fuse: D-Fusion up to training.

    dfusion sample --config.exp_name test --config.pretrained.model path/to/diffusion ...

The scores come from run_eval.py in another terminal, or with --config.eval.in_process from here.
"""

from dfusion.commands import flags
from dfusion.settings.check import check_sampling
from dfusion.settings.schema import Settings


def sample(settings: Settings) -> None:
    from dfusion.rounds import session

    session.sample_rounds(settings)


def main() -> None:
    flags.main(__doc__, sample, check_sampling)

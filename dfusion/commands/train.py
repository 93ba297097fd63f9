"""Train a LoRA by DPO or another loss, sampling and fusing each round with the policy so far.

    dfusion train --config.exp_name test --config.train.num_epochs 40 ...

The scores come from run_eval.py in another terminal, or with --config.eval.in_process from here.
"""

from dfusion.commands import flags
from dfusion.settings.check import check_training
from dfusion.settings.schema import Settings


def train(settings: Settings) -> None:
    from dfusion.training import trainer

    trainer.train_rounds(settings)


def main() -> None:
    flags.main(__doc__, train, check_training)

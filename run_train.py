"""Train a LoRA by DPO, DDPO or DPOK, sampling and fusing each round with the policy so far.

    python3 run_train.py --config.exp_name test --config.train.num_epochs 40 ...

The scores come from run_eval.py in another terminal, or with --config.eval.in_process from here.
"""

from config.flags import main
from dfusion.inputs import check_training
from dfusion.settings import Settings


def train(settings: Settings) -> None:
    from dfusion import training  # slow: once the flags are accepted

    training.train_rounds(settings)


if __name__ == "__main__":
    main(train, check_training)

"""Sample a round, wait for its scores, fuse: D-Fusion up to training.

    python3 run_sample.py --config.exp_name test --config.pretrained.model path/to/diffusion ...

The scores come from run_eval.py in another terminal, or with --config.eval.in_process from here.
"""

from config.flags import main
from dfusion.inputs import check_sampling
from dfusion.settings import Settings


def sample(settings: Settings) -> None:
    from dfusion import runs  # slow: once the flags are accepted

    runs.sample_rounds(settings)


if __name__ == "__main__":
    main(sample, check_sampling)

"""What a run will take on this machine, before it starts.

    python -m benchmarks.estimate --config config/config.py:paper --config.prompt_file ...

The flags are those of run_train.py. For run_sample.py read the lines of sampling and fusing.
"""

from config.flags import main
from dfusion.inputs import check
from dfusion.settings import Settings


def announce(settings: Settings) -> None:
    from dfusion import estimate  # slow: once the flags are accepted

    estimate.announce(settings)


if __name__ == "__main__":
    main(announce, check)

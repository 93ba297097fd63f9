"""Score the images of experiments as they appear; run it beside run_sample.py.

python3 run_eval.py --config.exp_name test
"""

from config.flags import main
from dfusion.inputs import check_scoring
from dfusion.settings import Settings


def score(settings: Settings) -> None:
    from dfusion import runs  # slow: once the flags are accepted

    runs.score(settings)


if __name__ == "__main__":
    main(score, check_scoring)

"""Score the images of experiments as they appear; run it beside run_sample.py.

python3 run_eval.py --config.exp_name test
"""

from config.flags import main

if __name__ == "__main__":
    from dfusion.runs import score

    main(score)

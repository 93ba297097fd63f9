"""Sample a round, wait for its scores, fuse: D-Fusion up to training.

    python3 run_sample.py --config.exp_name test --config.pretrained.model path/to/diffusion ...

The scores come from run_eval.py in another terminal, or with --config.eval.in_process from here.
"""

from config.flags import main

if __name__ == "__main__":
    from dfusion.runs import sample_rounds

    main(sample_rounds)

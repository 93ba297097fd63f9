"""What a run will take on this machine, before it starts.

    python -m benchmarks.estimate --config config/config.py:paper --config.prompt_file ...

The flags are those of run_train.py. For run_sample.py read the lines of sampling and fusing.
"""

from config.flags import main

if __name__ == "__main__":
    from dfusion.estimate import announce

    main(announce)

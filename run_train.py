"""The same as `dfusion train`, from a checkout: python3 run_train.py --help."""

from dfusion.commands.train import main

if __name__ == "__main__":
    main()

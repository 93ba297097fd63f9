"""The same as `dfusion sample`, from a checkout: python3 run_sample.py --help."""

from dfusion.commands.sample import main

if __name__ == "__main__":
    main()

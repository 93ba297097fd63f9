"""The same as `dfusion eval`, from a checkout: python3 run_eval.py --help."""

from dfusion.commands.eval import main

if __name__ == "__main__":
    main()

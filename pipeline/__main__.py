"""`python -m pipeline`: the command without its script, for launchers that take a module."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main(prog_name="gen")

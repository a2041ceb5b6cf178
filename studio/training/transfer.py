"""Train a folder that an earlier version packed: its scripts name this module."""

from studio.training.transfer_run import main

if __name__ == "__main__":
    raise SystemExit(main())

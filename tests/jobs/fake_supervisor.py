"""The real supervisor, in its own process, with runners that need no torch."""

import sys
from pathlib import Path

from jobs import supervisor

if __name__ == "__main__":
    supervisor.main(command=(sys.executable, str(Path(__file__).with_name("fake_runner.py"))))

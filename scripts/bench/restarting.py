"""A bare supervisor, as a peer: starts a command, and starts it again when it exits.

usage: restarting.py COMMAND...
"""

import signal
import subprocess
import sys
from typing import NoReturn


class Ended(Exception):
    """SIGTERM came."""


def end(number: int, frame: object) -> NoReturn:
    raise Ended


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    child = None
    try:
        while True:
            child = subprocess.Popen(sys.argv[1:])
            child.wait()
    except Ended:
        if child is not None:
            child.terminate()
            child.wait()


if __name__ == "__main__":
    main()

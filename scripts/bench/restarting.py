"""A bare supervisor, as a peer: starts a command, and starts it again when it exits.

usage: restarting.py COMMAND...
"""

import signal
import subprocess
import sys


def main() -> None:
    child = None

    def end(number: int, frame: object) -> None:
        if child is not None:
            child.terminate()
            child.wait()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        child = subprocess.Popen(sys.argv[1:])
        child.wait()


if __name__ == "__main__":
    main()

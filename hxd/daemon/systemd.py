"""What the daemon tells systemd: one datagram per message to NOTIFY_SOCKET (sd_notify(3)).

Silent outside systemd. A lost message is not an error of the daemon's: it is logged.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("hxd.systemd")


def notify(*assignments: str) -> None:
    """For example `notify("READY=1", "STATUS=serving 2 models")`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall("\n".join(assignments).encode())
    except OSError as error:
        log.warning("systemd can't be told %s: %s", assignments[0], error)


def watchdog_interval() -> float | None:
    """Seconds between watchdog messages, half of what systemd allows; None if it asks for none."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed) / 2_000_000 if allowed.isdecimal() and for_us else None

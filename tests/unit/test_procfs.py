"""What the kernel tells of a process, against real ones that are killed, stopped and fed."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hxd.daemon.supervise.procfs import Look, Proc, available, oom_kills

MIB = 1 << 20
# Does what it is told, line by line, and says when it is done.
CHILD = """
import os, sys, threading
kept = []
print("up", flush=True)
for line in sys.stdin:
    match line.split():
        case ["touch", count]:
            kept.append(bytearray(b"x") * int(count))
        case ["map", file]:
            import mmap
            with open(file, "rb") as opened:
                kept.append(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            kept.append(sum(kept[-1][::4096]))
        case ["threads", count]:
            for _ in range(int(count)):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        case ["name", name]:
            with open("/proc/self/comm", "w") as comm:
                comm.write(name.replace("_", " "))
        case ["exit", status]:
            os._exit(int(status))
    print("done", flush=True)
"""


class Child:
    """A process under watch, of which nobody has taken the exit status yet."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        self.proc = Proc(self.pid)
        assert self._line() == b"up\n"

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def tell(self, what: str) -> None:
        """Until it is done, or gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(what.encode() + b"\n")
        self._process.stdin.flush()
        self._line()

    def end(self, number: signal.Signals) -> None:
        """Until the kernel says that it has ended; its status stays there to be looked at."""
        self._process.send_signal(number)
        self.ended()

    def ended(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self.proc.close()


@contextmanager
def spawned() -> Iterator[Child]:
    child = Child()
    try:
        yield child
    finally:
        child.close()


@pytest.fixture
def child() -> Iterator[Child]:
    with spawned() as child:
        yield child


def test_a_process_that_runs_is_neither_ending_nor_stopped(child: Child) -> None:
    assert child.proc.look() == Look(exiting=False, stopped=False, status=0)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda number: number.name
)
def test_a_process_that_was_killed_says_by_what_before_it_is_reaped(
    child: Child, number: signal.Signals
) -> None:
    child.end(number)
    look = child.proc.look()
    assert look is not None
    assert (look.exiting, look.stopped) == (True, False)
    assert os.waitstatus_to_exitcode(look.status & 0x7F) == -number
    assert child.reap() == -number


@pytest.mark.parametrize("status", [0, 3, 255])
def test_a_process_that_exits_says_with_what_before_it_is_reaped(child: Child, status: int) -> None:
    child.tell(f"exit {status}")
    child.ended()
    look = child.proc.look()
    assert look is not None
    assert (look.exiting, os.waitstatus_to_exitcode(look.status)) == (True, status)
    assert child.reap() == status


def test_a_death_is_seen_by_the_time_that_the_process_has_ended_and_stays_seen(
    child: Child,
) -> None:
    watch = os.pidfd_open(child.pid)
    child.tell(f"touch {64 * MIB}")
    os.kill(child.pid, signal.SIGKILL)
    looks = []
    while not select.select([watch], [], [], 0)[0]:
        looks.append(child.proc.look())
    os.close(watch)
    seen = [look.exiting for look in looks if look is not None]
    assert seen == sorted(seen)
    last = child.proc.look()
    assert last is not None
    assert (last.exiting, last.status) == (True, signal.SIGKILL)


def test_a_stop_is_seen_until_the_process_goes_on(child: Child) -> None:
    for _ in range(3):
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert child.proc.look() == Look(exiting=False, stopped=True, status=0)
        os.kill(child.pid, signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        look = child.proc.look()
        assert look is not None
        assert not look.stopped


def test_a_stopped_process_that_is_killed_is_dead_and_no_longer_stopped(child: Child) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    child.end(signal.SIGKILL)
    assert child.proc.look() == Look(exiting=True, stopped=False, status=signal.SIGKILL)


@pytest.mark.parametrize("name", ["a_b_c", ")_R_1", "(((", "Z)"])
def test_no_name_of_a_process_makes_it_look_dead(child: Child, name: str) -> None:
    child.tell(f"name {name}")
    assert child.proc.look() == Look(exiting=False, stopped=False, status=0)


READERS: list[Callable[[Proc], object]] = [Proc.look, Proc.private, Proc.waited]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_process_that_is_gone_gives_nothing(child: Child, read: Callable[[Proc], object]) -> None:
    assert read(child.proc) is not None
    child.end(signal.SIGKILL)
    child.reap()
    assert read(child.proc) is None
    with_no_files = Proc(child.pid)
    assert read(with_no_files) is None
    with_no_files.close()


def test_a_closed_one_gives_nothing_and_may_be_closed_again(child: Child) -> None:
    child.proc.close()
    child.proc.close()
    assert (child.proc.look(), child.proc.private()) == (None, None)


def test_a_later_process_with_the_same_number_is_another_one(child: Child) -> None:
    """Not acted out: a number comes again after all the others. The files are what it rests on."""
    child.end(signal.SIGKILL)
    child.reap()
    with spawned() as other:
        child.proc._pid = other.pid
        assert (child.proc.look(), child.proc.private()) == (None, None)


def test_memory_that_a_process_touches_is_its_own(child: Child) -> None:
    before = child.proc.private()
    child.tell(f"touch {64 * MIB}")
    after = child.proc.private()
    assert before is not None
    assert after is not None
    assert 64 * MIB <= after - before < 70 * MIB


def test_a_file_that_a_process_has_mapped_is_not_its_own(child: Child, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w" * (64 * MIB))
    before = child.proc.private()
    child.tell(f"map {file}")
    after = child.proc.private()
    assert before is not None
    assert after is not None
    assert after - before < 8 * MIB


def test_a_dead_process_has_no_memory(child: Child) -> None:
    child.end(signal.SIGKILL)
    assert child.proc.private() in (0, None)


def test_time_without_a_core_is_counted_for_each_thread_and_only_grows(child: Child) -> None:
    seen = [child.proc.waited()]
    for _ in range(3):
        child.tell("threads 4")
        child.tell(f"touch {8 * MIB}")
        seen.append(child.proc.waited())
    times = [found for found in seen if found is not None]
    assert len(times) == len(seen)
    assert len(times[-1]) > len(times[0])
    for before, after in itertools.pairwise(times):
        assert all(0.0 <= before[id] <= after[id] < 60.0 for id in before.keys() & after.keys())


def test_what_the_box_tells_of_memory_is_plausible() -> None:
    assert 0 < available() <= 1 << 50
    assert oom_kills() >= 0

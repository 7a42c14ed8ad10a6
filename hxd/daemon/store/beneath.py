"""Opens files below one folder, and never anything else.

Protects against: symbolic links planted anywhere below the folder (also between a check and the
open), `..`, devices and pipes in place of files. Does not protect against whoever may write the
files themselves: digests do, and only as far as the manifest that lists them is right.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePath

from hxd.daemon.store.faults import Corrupt

# The same number on every architecture that has had it from the start (Linux 5.6); Python 3.11 has
# no wrapper.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
# O_NONBLOCK: opening a planted pipe must not wait for its writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# An old kernel, or a sandbox that does not know the call.
_NO_CALL = frozenset({errno.ENOSYS, errno.EPERM})
# A link somewhere on the way, or a file where a folder should be.
_ASTRAY = frozenset({errno.ELOOP, errno.EXDEV, errno.ENOTDIR})


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Beneath:
    """The root itself may be reached through links: its path is the operator's word."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: Path) -> int:
        """A descriptor of the regular file `path`, which lies below the root.

        Raises `FileNotFoundError`, `Corrupt` for what is no file or is reached through a link, and
        `OSError`."""
        return self._open(path, openat2)

    def open_stepwise(self, path: Path) -> int:
        """The same without the system call that newer kernels have."""
        return self._open(path, _walk)

    def read(self, path: Path, limit: int) -> bytes:
        """At most `limit` bytes and one more, so that the caller sees an excess."""
        with os.fdopen(self.open(path), "rb") as file:
            return file.read(limit + 1)

    def _open(self, path: Path, how: Callable[[int, PurePath], int]) -> int:
        below = path.relative_to(self.root)
        if not below.parts or ".." in below.parts:
            raise Corrupt(f"{path} is not a file below {self.root}")
        base = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = how(base, below)
        except OSError as error:
            if error.errno in _ASTRAY:
                raise Corrupt(
                    f"{path}: a symbolic link or a file stands where the store has a folder or "
                    "file of its own; it is not followed. Run hxctl model doctor"
                ) from None
            raise
        finally:
            os.close(base)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Corrupt(f"{path} is not a file. Run hxctl model doctor")
        return descriptor


def openat2(base: int, below: PurePath) -> int:
    how = _OpenHow(_FLAGS, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    descriptor: int = _libc().syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(base),
        ctypes.c_char_p(os.fsencode(below)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor >= 0:
        return descriptor
    number = ctypes.get_errno()
    if number in _NO_CALL:
        return _walk(base, below)
    raise OSError(number, os.strerror(number), str(below))


def _walk(base: int, below: PurePath) -> int:
    """One component at a time; each folder is held open while the next is looked up in it."""
    folder = os.dup(base)
    try:
        for part in below.parts[:-1]:
            deeper = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return os.open(below.name, _FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

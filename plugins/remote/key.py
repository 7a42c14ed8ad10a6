"""The operator's key for the remote server.

Protects: the key stands in no config file, in no message and in no `repr`; a file that everybody
may read is refused. Does not protect: the memory and the environment of the worker, which belong to
the service user; a key sent over plain http can be read on its way.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

MAX_KEY = 16 << 10  # bytes; tokens of some providers are whole signed documents
HIDDEN = "[key]"


class Key:
    """`renew` reads it again, so that a key can be changed while the worker runs."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._value = read()
        self._known = {self._value}

    def __repr__(self) -> str:
        return "Key()"

    def header(self) -> str:
        return f"Bearer {self._value}"

    def renew(self) -> bool:
        """Whether there is another key now. One that can't be read any more stays what it was."""
        try:
            value = self._read()
        except ValueError:
            return False
        changed = value != self._value
        self._value = value
        self._known.add(value)
        return changed

    def hide(self, text: str) -> str:
        """`text` without the key, or one that it was before."""
        for value in self._known:
            text = text.replace(value, HIDDEN)
        return text


def find(key_env: str | None, key_file: str | None, environment: Mapping[str, str]) -> Key | None:
    """The key that the options name, None when they name none. Raises `ValueError`."""
    if key_env is not None:
        return Key(lambda: from_environment(key_env, environment))
    if key_file is not None:
        path = locate(key_file, environment)
        return Key(lambda: from_file(path))
    return None


def from_environment(name: str, environment: Mapping[str, str]) -> str:
    if name not in environment:
        raise ValueError(
            f"option key_env: the worker has no environment variable {name}; set it for the "
            f'service, and write environment = ["{name}"] in the table of this model'
        )
    return _checked(environment[name], f"option key_env: the value of {name}")


def locate(name: str, environment: Mapping[str, str]) -> Path:
    """A relative name is a credential that systemd has loaded for the service."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ValueError(
            f"option key_file: {name!r} is the name of a systemd credential, and none are loaded "
            "(CREDENTIALS_DIRECTORY is not set); write LoadCredential= in the unit, or the whole "
            "path of a file"
        )
    if ".." in path.parts:
        raise ValueError(f"option key_file: {name!r} leads out of the credentials' folder")
    return Path(folder) / path


def from_file(path: Path) -> str:
    where = f"option key_file: {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(f"{where}: can't be read: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{where}: not a file")
        # The group may: ACLs, which systemd uses for credentials, show there.
        if mode & stat.S_IRWXO:
            raise ValueError(f"{where}: everybody may read it; chmod o= {path}")
        data = os.read(descriptor, MAX_KEY + 1)
    except OSError as error:
        raise ValueError(f"{where}: can't be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_KEY:
        raise ValueError(f"{where}: larger than {MAX_KEY} bytes; that is no key")
    try:
        return _checked(data.decode("ascii"), where)
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not a key: it has characters that are not ASCII") from None


def _checked(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise ValueError(f"{where}: empty")
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"{where}: not a key: it has spaces or line ends in it")
    return key

"""The folder of a model: opens its files, and reads its JSON within bounds.

Protects against: names that lead out of the folder, links that do, devices and pipes in place of
files, JSON without end or depth, numbers that are none. Does not protect against whoever changes
the folder meanwhile: what is made of it has a digest of its own.

The Hub's cache has links instead of files: `snapshots/REVISION/NAME` to `blobs/DIGEST` beside
`snapshots`. Those are followed, and no others that leave the folder.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from hxd.hookspecs import NotConvertible

MAX_CONFIG = 4 << 20
_CACHE = ("snapshots", "blobs")


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve(strict=True)
        self._allowed = [self.root]
        repository = self.root.parent.parent
        if self.root.parent.name == _CACHE[0] and (repository / _CACHE[1]).is_dir():
            self._allowed.append(repository / _CACHE[1])

    def below(self, name: str) -> Folder:
        """A folder in it, which may have links to the same places."""
        plain = name == Path(name).name and name not in ("", "..") and name.isprintable()
        if not plain or (self.root / name).is_symlink():
            raise NotConvertible(f"{name[:200]!r} is not the name of a folder in the folder")
        try:
            inside = Folder(self.root / name)
        except OSError:
            raise NotConvertible(f"{name} is missing; download it again") from None
        inside._allowed += self._allowed[1:]
        return inside

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def open(self, name: str) -> int:
        """A descriptor of a regular file. Raises `NotConvertible` and `FileNotFoundError`."""
        if name != Path(name).name or name in ("", "..") or not name.isprintable():
            raise NotConvertible(f"{name[:200]!r} is not the name of a file in the folder")
        try:
            path = (self.root / name).resolve()
        except RuntimeError:
            raise NotConvertible(f"{name} is a link to itself") from None
        if not any(path.parent == folder for folder in self._allowed):
            raise NotConvertible(f"{name} is a link that leads out of the folder")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotConvertible(f"{name} is not a regular file")
        return descriptor

    def read(self, name: str, limit: int) -> bytes:
        """All of a file of at most `limit` bytes."""
        with os.fdopen(self.open(name), "rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise NotConvertible(f"{name} is larger than {limit >> 20} MiB")
        return data

    def text(self, name: str, limit: int) -> str:
        try:
            return self.read(name, limit).decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotConvertible(f"{name} is not text in UTF-8: {error}") from None

    def json(self, name: str, limit: int = MAX_CONFIG, *, optional: bool = False) -> dict[str, Any]:
        """An object; an empty one where the file may be missing, and is."""
        if not self.has(name):
            if optional:
                return {}
            raise NotConvertible(f"the folder has no {name}")
        return parse(self.read(name, limit), name)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice; raises `NotConvertible`."""
    try:
        found = json.loads(data, parse_constant=_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise NotConvertible(f"{name} is not valid JSON: {error}") from None
    if rb"\ud" in data.lower():
        # Half a character can be spelled in JSON, and written nowhere.
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NotConvertible(f"{name} has text that is no Unicode") from None
    if not isinstance(found, dict):
        raise NotConvertible(f"{name} holds no JSON object")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found

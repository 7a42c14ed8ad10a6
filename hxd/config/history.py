"""Every configuration that was applied, kept whole: what it was, who applied it, and how it ended.

One numbered folder per revision, with a `revision.json` and the files. Written by the daemon only.
Protects: against a crash at any point, and against bytes that are no longer what was kept. Does not
protect: against whoever may write in the state folder. The files may hold secrets; the folder is
for its owner only.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hxd.config import durable
from hxd.config.load import misnamed
from hxd.config.masking import visible
from hxd.errors import CallerError, StorageFailed

KEEP = 100
WHO = 200  # characters; it comes from a key's name or a user's
REASON = 2000
_ENTRY = "revision.json"
_FILES = "files"
_NEW, _GONE = ".new-", ".gone-"


class Why(enum.StrEnum):
    START = "start"
    RELOAD = "reload"
    APPLY = "apply"
    ROLLBACK = "rollback"
    AUTOMATIC = "automatic rollback"


class Outcome(enum.StrEnum):
    PENDING = "pending"
    APPLIED = "applied"
    ROLLED_BACK = "rolled back"


class Revision(msgspec.Struct, frozen=True):
    """`time` is Unix seconds, `sha256` that of each file by its name."""

    number: int
    time: float
    who: str
    why: Why
    sha256: dict[str, str]
    outcome: Outcome = Outcome.PENDING
    reason: str = ""


class NoSuchRevision(CallerError):
    status = 404
    code = "no_such_revision"


class DamagedRevision(CallerError):
    status = 422
    code = "damaged_revision"


class CannotKeep(StorageFailed):
    """What was kept is kept."""

    code = "history_failed"


class History:
    """Nothing is held in memory; every call reads or writes the disk, and blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Makes the folder, and removes what a crash has left half-done. Call it first."""
        with self._keeping():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if path.name.startswith((_NEW, _GONE)):
                    shutil.rmtree(path)
                elif path.is_dir():
                    durable.sweep(path)
            durable.sweep(self._folder)

    def record(self, files: Mapping[str, bytes], why: Why, who: str, now: float) -> Revision:
        """Keeps `files` as the newest revision, whose outcome is still to come; see `settle`.

        When the newest one is the same already, and was not rolled back, it is that one.
        """
        if wrong := misnamed(files):
            raise CannotKeep(f"can't keep this configuration: {'; '.join(wrong)}")
        hashes = digests(files)
        kept = self.all()
        if kept and kept[-1].sha256 == hashes and kept[-1].outcome is not Outcome.ROLLED_BACK:
            with contextlib.suppress(DamagedRevision):
                self.read(kept[-1].number)
                return kept[-1]
        number = max(self._numbers(), default=0) + 1
        revision = Revision(number, now, visible(who)[:WHO], why, hashes)
        with self._keeping():
            self._write(revision, files)
        with contextlib.suppress(OSError):
            # It is kept; one too many of the old ones can go the next time.
            self._forget()
        return revision

    def all(self) -> list[Revision]:
        """The oldest first, without those that can't be read."""
        return [entry for entry in self._entries() if isinstance(entry, Revision)]

    def unreadable(self) -> list[str]:
        """One sentence on each revision that `all` leaves out."""
        return [str(entry) for entry in self._entries() if not isinstance(entry, Revision)]

    def get(self, number: int) -> Revision:
        """Raises `NoSuchRevision` or `DamagedRevision`."""
        if number not in self._numbers():
            kept = [revision.number for revision in self.all()]
            span = f"there are {kept[0]} to {kept[-1]}" if kept else "none is kept"
            raise NoSuchRevision(f"there is no revision {number} of the configuration; {span}")
        return self._entry(number)

    def read(self, number: int) -> dict[str, bytes]:
        """The files, verified. Raises `NoSuchRevision` or `DamagedRevision`."""
        files = {}
        for name, expected in self.get(number).sha256.items():
            file = self._place(number) / _FILES / name
            try:
                files[name] = file.read_bytes()
            except OSError as error:
                raise DamagedRevision(f"{file}: can't be read: {error.strerror}") from None
            if hashlib.sha256(files[name]).hexdigest() != expected:
                raise DamagedRevision(f"{file}: its bytes are not those that were kept")
        return files

    def settle(self, number: int, outcome: Outcome, reason: str = "") -> Revision:
        """Says how it ended. Raises `NoSuchRevision` or `DamagedRevision`."""
        settled = msgspec.structs.replace(
            self.get(number), outcome=outcome, reason=visible(reason)[:REASON]
        )
        with self._keeping():
            durable.replace(self._place(number) / _ENTRY, _encoded(settled))
        return settled

    def last_applied(self) -> Revision | None:
        """The newest one that was applied, though its files may be damaged by now."""
        applied = (one for one in reversed(self.all()) if one.outcome is Outcome.APPLIED)
        return next(applied, None)

    def last_good(self, before: int | None = None) -> Revision | None:
        """The newest one that was applied, is whole, and comes before `before`."""
        for revision in reversed(self.all()):
            if revision.outcome is Outcome.APPLIED and (before is None or revision.number < before):
                with contextlib.suppress(DamagedRevision):
                    self.read(revision.number)
                    return revision
        return None

    def _place(self, number: int) -> Path:
        return self._folder / f"{number:06}"

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CannotKeep(f"{self._folder}: can't be read: {error.strerror}") from None
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{6,18}", name))

    def _entries(self) -> Iterator[Revision | DamagedRevision]:
        for number in self._numbers():
            try:
                yield self._entry(number)
            except DamagedRevision as error:
                yield error

    def _entry(self, number: int) -> Revision:
        file = self._place(number) / _ENTRY
        try:
            revision = msgspec.json.decode(file.read_bytes(), type=Revision)
        except OSError as error:
            raise DamagedRevision(f"{file}: can't be read: {error.strerror}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise DamagedRevision(f"{file}: is damaged: {error}") from None
        # The names become paths, for reading here and for writing wherever this goes.
        if revision.number != number or misnamed(revision.sha256):
            raise DamagedRevision(f"{file}: is not the entry of revision {number}")
        return revision

    def _write(self, revision: Revision, files: Mapping[str, bytes]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._folder / f"{_NEW}{revision.number}"
        if part.exists():
            shutil.rmtree(part)
        try:
            part.mkdir(mode=0o700)
            for name, data in files.items():
                file = part / _FILES / name
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                durable.create(file, data)
            durable.create(part / _ENTRY, _encoded(revision))
            for folder in {part / _FILES / name for name in files}:
                durable.sync(folder.parent)
            durable.sync(part / _FILES)
            durable.sync(part)
            part.rename(self._place(revision.number))
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        durable.sync(self._folder)

    def _forget(self) -> None:
        """The oldest ones, beyond `KEEP`; what is newest or good last is never among them."""
        numbers = self._numbers()
        good = self.last_good() if len(numbers) > KEEP else None
        kept = {numbers[-1], good.number if good else 0}
        for number in [n for n in numbers if n not in kept][: max(0, len(numbers) - KEEP)]:
            gone = self._folder / f"{_GONE}{number}"
            self._place(number).rename(gone)
            shutil.rmtree(gone)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotKeep(
                "can't keep the history of the configuration: "
                f"{durable.refusal(error, self._folder)}"
            ) from None


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def _encoded(revision: Revision) -> bytes:
    return msgspec.json.format(msgspec.json.encode(revision), indent=1)

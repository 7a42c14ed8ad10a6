"""Puts one set of configuration files in place of another: after a crash at any point, `recover`
leaves the old set or the new one, whole.

New files and copies of the old ones are written beside the present ones; then a journal says what
is to become what, and from there on the change goes forward, or back when the disk refuses. A file
that somebody else has written meanwhile is theirs: it is left alone, and told.

Protects: against crashes, full and read-only disks, and lost owners and modes. Does not protect:
against a reader that looks between two renames.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hxd.config import durable
from hxd.config.load import FOLDER, MAIN, misnamed
from hxd.errors import Fault, HxdError

JOURNAL = "journal.json"
NEW, OLD = ".hxd-new", ".hxd-old"


class CannotInstall(HxdError):
    """The disk, or who owns a file, does not allow it. Unless the message says that files are half
    replaced, what was there is there."""

    fault = Fault.OPERATOR
    # As for a history that can't be kept: it is the disk, and waiting helps nobody.
    status = 507
    type = "storage_error"
    code = "config_not_installed"


class _Entry(msgspec.Struct, frozen=True):
    """What one file was and is to be: sha256, None where there is none."""

    file: str
    old: str | None
    new: str | None


class _Journal(msgspec.Struct, frozen=True):
    config_file: str
    entries: list[_Entry]
    back: bool = False


def install(config_file: Path, files: Mapping[str, bytes], state: Path) -> list[str]:
    """Afterwards `snapshot(config_file)` is `files`. Returns the names of those that changed.

    `state` is a folder of hxd's own for the journal. Owners, modes and access lists stay; a new
    file takes the main file's. Raises `CannotInstall`, and then nothing has changed.
    """
    config_file = config_file.absolute()
    if wrong := misnamed(files):
        raise CannotInstall(f"can't install this configuration: {'; '.join(wrong)}")
    recover(config_file, state)
    with refusing(config_file):
        entries = _entries(config_file, files)
        if not entries:
            return []
        journal = _Journal(str(config_file), entries)
        _prepare(journal, files, state)
        try:
            foreign = _turn(journal)
        except OSError:
            _turn_back(journal, state)
            raise
        if foreign:
            _turn_back(journal, state)
            raise CannotInstall(f"{', '.join(foreign)} changed while it was to be replaced")
    _close(config_file, state)
    return sorted(_name(entry, config_file) for entry in entries)


def recover(config_file: Path, state: Path) -> list[str]:
    """Ends what a crash has interrupted; call it before the configuration is read. Returns what it
    did, in sentences. Raises `CannotInstall` when the disk lets it go neither forward nor back."""
    try:
        data = (state / JOURNAL).read_bytes()
    except FileNotFoundError:
        # Nothing was begun, or all was done.
        with contextlib.suppress(OSError):
            _sweep(config_file.absolute())
        return []
    except OSError as error:
        raise CannotInstall(f"{state / JOURNAL}: can't be read: {error.strerror}") from None
    try:
        journal = msgspec.json.decode(data, type=_Journal)
    except (msgspec.DecodeError, RecursionError):
        with refusing(config_file):
            (state / JOURNAL).rename(state / f"{JOURNAL}.damaged")
        return [
            f"{state / JOURNAL} is damaged and was set aside: whether the files of {config_file} "
            "belong together is for you to say; hxctl config history has the earlier ones"
        ]
    with refusing(Path(journal.config_file)):
        try:
            foreign = _turn(journal)
        except OSError:
            if journal.back:
                raise
            foreign = _turn_back(journal, state)
            journal = msgspec.structs.replace(journal, back=True)
    _close(Path(journal.config_file), state)
    what = "undone" if journal.back else "finished"
    return [
        f"a change of {journal.config_file} that was interrupted has been {what}",
        *(f"{file} was left alone: somebody has changed it since" for file in foreign),
    ]


@contextlib.contextmanager
def refusing(config_file: Path) -> Iterator[None]:
    """`CannotInstall`, with what an operator can do, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        where = error.filename or config_file
        hint = f"Change the files in {config_file.parent} yourself and run hxctl reload"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint += ", or let hxd write there (its owner, and ReadWritePaths= of the unit)"
        raise CannotInstall(
            f"can't replace the files of {config_file}: {error.strerror or error} ({where}). {hint}"
        ) from None


def _entries(config_file: Path, files: Mapping[str, bytes]) -> list[_Entry]:
    """What differs. Raises `CannotInstall` for what can't be replaced safely."""
    present = {MAIN, *(f"{FOLDER}/{p.name}" for p in (config_file.parent / FOLDER).glob("*.toml"))}
    entries = []
    for name in sorted(present | files.keys()):
        file = config_file if name == MAIN else config_file.parent / name
        new = hashlib.sha256(files[name]).hexdigest() if name in files else None
        if file.is_symlink():
            if new is not None and _digest(file) == new:
                continue
            raise CannotInstall(
                f"{file} is a link to {file.readlink()}, and hxd replaces no links: change the "
                "file that it leads to and run hxctl reload, or put a file in the link's place"
            )
        old = _digest(file)
        if old != new:
            entries.append(_Entry(str(file), old, new))
    return entries


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _name(entry: _Entry, config_file: Path) -> str:
    return MAIN if entry.file == str(config_file) else f"{FOLDER}/{Path(entry.file).name}"


def beside(file: Path, suffix: str) -> Path:
    """No reader of conf.d/*.toml takes it for a configuration."""
    return file.with_name(f".{file.name}{suffix}")


def _prepare(journal: _Journal, files: Mapping[str, bytes], state: Path) -> None:
    """Everything that may fail for want of room or rights, up to the journal; or nothing at all."""
    config_file = Path(journal.config_file)
    folder = config_file.parent / FOLDER
    made = not folder.exists()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _write_beside(config_file, journal.entries, files)
        _commit(journal, state)
    except BaseException:
        # An interrupt, too, must not leave copies of the operator's secrets lying about.
        _close(config_file, state)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _write_beside(config_file: Path, entries: list[_Entry], files: Mapping[str, bytes]) -> None:
    folders = set()
    for entry in entries:
        file = Path(entry.file)
        folders.add(file.parent)
        if not file.parent.exists():
            file.parent.mkdir()
            _resemble(file.parent, config_file.parent)
            durable.sync(config_file.parent)
        like = file if entry.old is not None else config_file
        if entry.new is not None:
            _write(beside(file, NEW), files[_name(entry, config_file)], like)
        if entry.old is not None:
            _write(beside(file, OLD), file.read_bytes(), like)
    for folder in folders:
        durable.sync(folder)


def _write(file: Path, data: bytes, like: Path) -> None:
    durable.create(file, data)
    if like.exists():
        _resemble(file, like)


def _resemble(path: Path, like: Path) -> None:
    """The same owner, group, mode and access list."""
    wanted, there = like.stat(), path.stat()
    if (wanted.st_uid, wanted.st_gid) != (there.st_uid, there.st_gid):
        os.chown(path, wanted.st_uid, wanted.st_gid)
    # Brings the extended attributes too, which hold access lists, and a time that is not ours.
    shutil.copystat(like, path)
    os.utime(path)
    durable.sync(path)


def _commit(journal: _Journal, state: Path) -> None:
    durable.replace(state / JOURNAL, msgspec.json.encode(journal))


def _turn(journal: _Journal) -> list[str]:
    """Forward or back, as the journal says; doing it twice is doing it once. Returns the files that
    are neither what they were nor what they were to be."""
    foreign = []
    for entry in journal.entries:
        file = Path(entry.file)
        there = _digest(file)
        source, target = (entry.new, entry.old) if journal.back else (entry.old, entry.new)
        if there == target:
            continue
        if there != source or file.is_symlink():
            foreign.append(entry.file)
        elif target is None:
            file.unlink()
        else:
            beside(file, OLD if journal.back else NEW).rename(file)
    for folder in {Path(entry.file).parent for entry in journal.entries}:
        durable.sync(folder)
    return foreign


def _turn_back(journal: _Journal, state: Path) -> list[str]:
    """On the disk first, so that a crash from here on does not go forward again."""
    journal = msgspec.structs.replace(journal, back=True)
    try:
        _commit(journal, state)
        foreign = _turn(journal)
    except OSError as error:
        raise CannotInstall(
            f"the files of {journal.config_file} are half replaced, and the disk lets hxd go "
            f"neither forward nor back ({error.strerror}); mend it, and hxd goes on at its start"
        ) from None
    _close(Path(journal.config_file), state)
    return foreign


def _close(config_file: Path, state: Path) -> None:
    """All is as it should be; what stays behind here is removed by the next `recover`."""
    with contextlib.suppress(OSError):
        (state / JOURNAL).unlink(missing_ok=True)
        durable.sync(state)
        _sweep(config_file)


def _sweep(config_file: Path) -> None:
    for suffix in (NEW, OLD):
        beside(config_file, suffix).unlink(missing_ok=True)
        for file in (config_file.parent / FOLDER).glob(f".*.toml{suffix}"):
            file.unlink()

"""Virtual environments for plugins whose requirements this interpreter does not meet.

One for each set of requirements, shared by all plugins that have it: `KEY/`, the environment, made
where it stays since one can't be moved, and `KEY.json`, written last: what lies in it, byte for
byte. Without the latter it is not whole. hxd itself is found by way of `hxd.pth` in it, behind the
environment's own packages, so that those win.

Protects: from files that changed after the installation, cached bytecode included. Does not
protect: from what the packages do. pip runs the code of those that come as sources, so the store
makes an environment only for a plugin that is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import site
import stat
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

import hxd
from hxd import pluginfile
from hxd.daemon.store import disk, plugin_pip, plugin_requirements
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.plugin_disk import Staging
from hxd.daemon.store.work import Work
from hxd.pluginfile import PluginError, PluginFile

MAX_FILES = 200_000
_MAX_RECORD = 128 << 20
_PATHS = "hxd.pth"
# Seconds that an interpreter may take to import the worker's code; a tenth is usual.
_TRY_LIMIT = 60.0


class _Record(msgspec.Struct, frozen=True):
    """`files` maps paths to sha256, or to `-> TARGET` for links. `seen` is the look of them all,
    as `_look` finds it, when they last had these digests. `paths` are the folders in hxd.pth."""

    requirements: tuple[str, ...]
    paths: tuple[str, ...]
    seen: str
    files: dict[str, str]


class Environments:
    def __init__(self, folder: Path, staging: Staging) -> None:
        self._folder = folder
        self._staging = staging
        # Looks of environments that were found whole, digest by digest, since this start.
        self._seen: dict[str, str] = {}

    def python(self, manifest: PluginFile) -> Path | None:
        """The interpreter for this plugin, whether it is there already or not; None for the one
        that runs this. Raises `PluginError` for requirements that are none."""
        if plugin_requirements.met(manifest):
            return None
        return self._folder / plugin_requirements.key(manifest) / "bin" / "python"

    def ensure(self, manifest: PluginFile, work: Work) -> Path | None:
        """As `python`, and it is there and whole. Takes minutes where packages have to be fetched
        or built; when it fails, nothing of it is left. Raises `StoreError`."""
        try:
            python = self.python(manifest)
        except PluginError as error:
            raise Corrupt(str(error)) from None
        if python is None:
            return None
        key = plugin_requirements.key(manifest)
        with contextlib.suppress(PluginError):
            if self._record_file(key).exists():
                self.verify(manifest, work)
                return python
        with guarded(f"make the environment of plugin {manifest.name}"):
            self._drop(key)
            try:
                self._make(key, manifest, work)
            except BaseException:
                self._drop(key)
                raise
        return python

    def _make(self, key: str, manifest: PluginFile, work: Work) -> None:
        home = self._folder / key
        wanted = plugin_requirements.to_install(manifest)
        disk.make_folder(home)
        work.told("making an environment", 0, 0)
        venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
        python = home / "bin" / "python"
        with self._staging.fresh() as scratch:
            plugin_pip.install(python, wanted, scratch, work)
        paths = _own_paths()
        (_packages(home) / _PATHS).write_text(_path_lines(paths))
        _try(python, manifest)
        record = _Record(wanted, paths, _look(home), dict(_digests(home, work)))
        os.sync()
        self._staging.replace(self._record_file(key), msgspec.json.encode(record))

    def recheck(self, manifest: PluginFile) -> None:
        """Quick: whether every file looks as it did when it had its digest; where one does not, it
        is hashed. Raises `PluginError`, naming a file that changed."""
        key = plugin_requirements.key(manifest)
        record = self._read(key, manifest)
        look = self._now(key)
        if look not in (record.seen, self._seen.get(key)):
            self._compare(manifest, record, Work())
            self._seen[key] = look

    def verify(self, manifest: PluginFile, work: Work) -> None:
        """As `recheck`, but everything is hashed."""
        key = plugin_requirements.key(manifest)
        record = self._read(key, manifest)
        look = self._now(key)
        self._compare(manifest, record, work)
        self._seen[key] = look

    def _compare(self, manifest: PluginFile, record: _Record, work: Work) -> None:
        home = self._folder / plugin_requirements.key(manifest)
        mend = _mend(manifest)
        found: set[str] = set()
        try:
            for name, digest in _digests(home, work):
                if name not in record.files:
                    raise PluginError(f"{home / name} was not installed there; {mend}")
                if record.files[name] != digest:
                    raise PluginError(f"{home / name} is not what was installed there; {mend}")
                found.add(name)
        except OSError as error:
            raise PluginError(f"{error.filename}: {error.strerror}; {mend}") from None
        for name in record.files:
            if name not in found:
                raise PluginError(f"{home / name} is gone; {mend}")

    def _now(self, key: str) -> str:
        try:
            return _look(self._folder / key)
        except OSError as error:
            raise PluginError(f"{error.filename}: can't be read: {error.strerror}") from None

    def _record_file(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _read(self, key: str, manifest: PluginFile) -> _Record:
        file = self._record_file(key)
        if not file.exists():
            raise PluginError(
                f"plugin {manifest.name}@{manifest.version} has no environment for "
                f"{', '.join(manifest.requirements)} and Python {sys.version_info[0]}."
                f"{sys.version_info[1]}; {_mend(manifest)}"
            )
        try:
            return msgspec.json.decode(pluginfile.contents(file, _MAX_RECORD), type=_Record)
        except msgspec.DecodeError as error:
            raise PluginError(f"{file}: {error}") from None

    def prepare(self) -> None:
        """Removes what was not finished, and leads environments of an hxd that lay elsewhere to
        this one."""
        if not self._folder.is_dir():
            return
        for entry in sorted(self._folder.iterdir()):
            home = entry.with_suffix("") if entry.suffix == ".json" else entry
            if not (home.is_dir() and self._record_file(home.name).is_file()):
                self._staging.discard(entry)
        paths = _own_paths()
        for file in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(PluginError, msgspec.DecodeError):
                record = msgspec.json.decode(pluginfile.contents(file, _MAX_RECORD), type=_Record)
                if record.paths != paths:
                    self._lead(file.with_suffix(""), file, record, paths)

    def _lead(self, home: Path, file: Path, record: _Record, paths: tuple[str, ...]) -> None:
        """A crash between the two files leaves hxd.pth as one that changed; it is then refused, and
        made anew on request."""
        for packages in home.glob("lib/python*/site-packages"):
            target = packages / _PATHS
            text = _path_lines(paths)
            self._staging.replace(target, text.encode())
            digest = hashlib.sha256(text.encode()).hexdigest()
            files = {**record.files, target.relative_to(home).as_posix(): digest}
            # No look: the first check hashes everything, and so finds what else has changed.
            record = msgspec.structs.replace(record, paths=paths, seen="", files=files)
        self._staging.replace(file, msgspec.json.encode(record))

    def keep(self, keys: Collection[str]) -> None:
        """Removes the environments that have none of these requirements, under any Python."""
        wanted = {key.partition("-")[0] for key in keys}
        if self._folder.is_dir():
            for file in sorted(self._folder.glob("*.json")):
                if file.name.partition("-")[0] not in wanted:
                    self._drop(file.stem)

    def _drop(self, key: str) -> None:
        self._seen.pop(key, None)
        self._staging.discard(self._record_file(key))
        self._staging.discard(self._folder / key)


def _mend(manifest: PluginFile) -> str:
    return f"hxctl plugin trust {manifest.name}@{manifest.version} makes the environment anew"


def _own_paths() -> tuple[str, ...]:
    """Where hxd is, and what it imports."""
    package = Path(hxd.__file__).resolve().parent.parent
    found = [str(package), *site.getsitepackages()]
    found += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return tuple(path for path in dict.fromkeys(found) if Path(path).is_dir())


def _path_lines(paths: Collection[str]) -> str:
    return "".join(f"{path}\n" for path in paths)


def _packages(home: Path) -> Path:
    major, minor = sys.version_info[:2]
    return home / "lib" / f"python{major}.{minor}" / "site-packages"


def _try(python: Path, manifest: PluginFile) -> None:
    """The packages must leave hxd's worker able to start; raises `StoreError`."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-B", "-c", "import hxd.worker.main"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRY_LIMIT,
            env=plugin_pip.environment(),
        )
        said = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"it took over {_TRY_LIMIT:g} s"
    if said:
        raise StoreError(
            f"with the packages of plugin {manifest.name} hxd's worker does not start: {said}; "
            "ask for other versions in its requirements"
        )


def _files(home: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """All that is no folder, in order; raises `OSError`."""
    count = 0
    for folder, folders, names in os.walk(home, onerror=_raise):
        folders.sort()
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted(names + linked):
            file = Path(folder) / name
            count += 1
            if count > MAX_FILES:
                raise OSError(0, f"more than {MAX_FILES} files", str(home))
            yield file.relative_to(home).as_posix(), file, file.lstat()


def _raise(error: OSError) -> None:
    raise error


def _look(home: Path) -> str:
    """Of every file what changes when it is written to; nobody sets back the time of its last
    change (ctime) but root with the clock."""
    digest = hashlib.sha256()
    for name, _, found in _files(home):
        looks = (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(f"{name}\0{looks}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _digests(home: Path, work: Work) -> Iterator[tuple[str, str]]:
    done = 0
    for name, file, found in _files(home):
        work.told("hashing the environment", done, 0)
        if stat.S_ISLNK(found.st_mode):
            yield name, f"-> {file.readlink()}"
            continue
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "is no regular file", str(file))
        with file.open("rb") as stream:
            yield name, hashlib.file_digest(stream, "sha256").hexdigest()
        done += found.st_size

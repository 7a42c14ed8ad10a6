"""Runs each thing that the store does, and kills it before every single change that it makes to the
disk. A process of its own, since it forks: `python -m tests.crashing FOLDER` prints one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hxd.daemon.store import derived, quarantine, removal
from hxd.daemon.store.backup import backup, restore
from hxd.daemon.store.doctor import examine, mend
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.integrity import verify
from hxd.daemon.store.library import QUARANTINE, Library
from hxd.daemon.store.spoil import spoil
from hxd.daemon.store.stage import Stage
from tests import tiny

# Events of the interpreter's audit hook that stand before a change of names or contents.
CHANGES = frozenset(
    {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.symlink"}
)
Act = Callable[[Library, Path], object]


def publish(library: Library, folder: Path, take: Any = "share") -> None:
    source = tiny.write(folder / "new.gguf", 50)
    with Stage.of(library, [source], "m", take=take) as stage:
        stage.publish({"ok": True}, labels=["stable", "new"], golden=b"new")


def first(library: Library, folder: Path) -> None:
    with Stage.of(library, [tiny.write(folder / "new.gguf", 50)], "org/new") as stage:
        stage.publish({}, golden=b"new")


def add_variant(library: Library, folder: Path) -> None:
    space = library.workspace("quantize")
    file = tiny.write(space / "q.gguf", 60, file_type=7)
    derived.add_variant(library, library.version("m", 2), "q8_0", file, made_by="x")
    library.drop(space)


def restored(library: Library, folder: Path) -> None:
    restore(library, folder / "backup", labels=True)


def mended(library: Library, folder: Path) -> None:
    mend(library, examine(library, deep=False), backup=folder / "backup")


def spoiled(library: Library, folder: Path) -> None:
    """As a drill does it."""
    found = spoil(library, library.version("m", 2), "f16")
    with found.standing_in():
        found.drop()


# One step: before it or after it, and nothing between.
ATOMIC: dict[str, Act] = {
    "publish": publish,
    "publish a moved file": lambda library, folder: publish(library, folder, "move"),
    "publish a model's first version": first,
    "add a variant": add_variant,
    "set a label": lambda library, _: library.set_label("m", "stable", 2),
    "spoil a copy": spoiled,
    "quarantine": lambda library, _: quarantine.impose(library, "m", 2, "crashes"),
    "remove a version": lambda library, _: removal.remove(library, "m", 3),
    "remove a variant": lambda library, _: removal.remove(library, "m", 1, variant="q4_0"),
}
# Several steps; done again from the start it names, they come to their end.
REPEATABLE: dict[str, tuple[str, Act]] = {
    "back up": ("template", lambda library, folder: backup(library, folder / "backup")),
    "restore": ("damaged", restored),
    "mend": ("damaged", mended),
}


def build(folder: Path) -> None:
    """A store with three versions of `m`, and an older backup of it with another label."""
    library = Library(folder / "store")
    library.prepare()
    for seed in (1, 2, 3):
        with Stage.of(library, [tiny.write(folder / "m.gguf", seed)], "m") as stage:
            stage.publish({}, golden=b"old")
        (folder / "m.gguf").unlink()
    space = library.workspace("quantize")
    file = tiny.write(space / "q.gguf", 9, file_type=2)
    derived.add_variant(library, library.version("m", 1), "q4_0", file, made_by="x")
    library.drop(space)
    library.set_label("m", "canary", 3)
    backup(library, folder / "backup", names=["m"])
    library.set_label("m", "canary", 2)


def summary(library: Library) -> dict[str, Any]:
    """What an operator sees."""
    return {
        name: {
            "versions": {
                number: (
                    sorted(library.version(name, number).variants()),
                    str(library.version(name, number).mark),
                )
                for number in library.versions(name)
            },
            "labels": library.labels(name),
            "golden": str(library.golden(name)),
        }
        for name in library.names()
    }


def faults(folder: Path, allowed: list[dict[str, Any]]) -> list[str]:
    """What is wrong after the next start; `allowed` are the states there may be, if only some."""
    library = Library(folder / "store")
    try:
        library.prepare()
        found = [f"{one.kind} {one.path}: {one.detail}" for one in examine(library, deep=False)]
        found += [str(finding) for finding in verify(library, "m")] if library.versions("m") else []
        taken = (library.root / QUARANTINE).iterdir()
        found += [f"{path} has nothing but a reason" for path in taken if not [*path.glob("was-*")]]
        seen = summary(library)
    except Exception as error:  # Any failure at all is what this looks for.
        return [repr(error)]
    if allowed and seen not in allowed:
        found.append(f"neither before nor after: {seen}")
    return found


def faults_once_repeated(folder: Path, act: Act) -> list[str]:
    """What is wrong when the work is done again after the next start, this time to its end."""
    library = Library(folder / "store")
    try:
        library.prepare()
        act(library, folder)
        # What a crash kept the doctor from bringing back is still in the backup.
        restore(library, folder / "backup")
    except Exception as error:  # As above.
        return [repr(error)]
    found = faults(folder, [])
    return found if library.versions("m") == [1, 2, 3] else [*found, "a version is lost"]


def killed(act: Act, folder: Path, moment: int) -> bool:
    """Whether the work was killed before its change number `moment`; False when it ended first."""
    child = os.fork()
    if not child:
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in CHANGES:
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        library = Library(folder / "store")
        sys.addaudithook(count)
        try:
            act(library, folder)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise Corrupt("the work failed by itself")
    return os.WIFSIGNALED(status)


def copy(template: Path, folder: Path) -> None:
    """Files are shared, as long as nothing writes into them: the store never does."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, copy_function=os.link)


def run(template: Path, folder: Path, act: Act, *, atomic: bool) -> tuple[int, list[str]]:
    """How many moments there were, and what was wrong after which of them."""
    allowed = []
    if atomic:
        copy(template, folder)
        library = Library(folder / "store")
        allowed = [summary(library)]
        act(library, folder)
        allowed.append(summary(library))
    wrong = []
    moment = 0
    while True:
        moment += 1
        copy(template, folder)
        if not killed(act, folder, moment):
            return moment - 1, wrong
        found = faults(folder, allowed) if atomic else faults_once_repeated(folder, act)
        wrong += [f"before change {moment}: {fault}" for fault in found]


def main(where: Path) -> None:
    template, damaged, folder = where / "template", where / "damaged", where / "run"
    template.mkdir()
    build(template)
    copy(template, damaged)
    shutil.rmtree(damaged / "store/models/m/2")
    (damaged / "store/models/m/1/m.gguf").unlink()
    (damaged / "store/models/m/3/manifest.toml").unlink()
    report = {name: run(template, folder, act, atomic=True) for name, act in ATOMIC.items()}
    for name, (start, act) in REPEATABLE.items():
        report[name] = run(where / start, folder, act, atomic=False)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

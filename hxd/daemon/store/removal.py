"""What goes for good: versions, derived variants, whole models. Not what others use or point at;
the doctor, who takes things out and keeps them, has `quarantine.impound`.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable

from hxd.daemon.store import demo, disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict
from hxd.daemon.store.labels import Labels
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.shelf import GOLDEN
from hxd.daemon.store.version import Version


def remove(
    library: Library,
    name: str,
    number: int,
    *,
    keep: Collection[int] = (),
    variant: str | None = None,
) -> None:
    """A version, or one derived variant of it. `keep`: versions in use. Raises `Conflict` for
    those and for labelled ones."""
    model = ModelName(name)
    with guarded(f"remove {model}@{number}"):
        space = library.workspace("removed")
        written = True
        try:
            with library.writing:
                version = library.version(model, number)
                if variant is None:
                    _refuse_used(library, version, keep)
                    labels = library.labelled(model)
                    written = _gone(library, model, [number], labels)
                    disk.move(version.folder, space / str(number))
                else:
                    folder, _ = version.part(variant)
                    if folder == version.folder:
                        raise Conflict(
                            f"{variant} is what {version} was imported as; hxctl model rm "
                            f"{version} removes all of it"
                        )
                    disk.move(folder, space / variant)
        finally:
            library.drop(space)
        if not written:
            _write_gone(library, model, [number], labels)


def remove_model(library: Library, name: str, *, keep: Collection[int] = ()) -> None:
    """All versions with their labels and golden prompts. Raises `Conflict` where one is in
    use."""
    model = ModelName(name)
    numbers = library.versions(model)
    if not numbers:
        raise library.unknown(model)
    if used := sorted(set(numbers) & set(keep)):
        raise Conflict(f"{model}@{used[0]} is in use; take {model} out of the config first")
    with guarded(f"remove {model}"):
        space = library.workspace("removed")
        try:
            with library.writing:
                unlabelled = Labels(library.next_number(model, Labels()))
                written = _gone(library, model, numbers, unlabelled)
                for number in numbers:
                    disk.move(library.folder(model) / str(number), space / str(number))
                (library.folder(model) / GOLDEN).unlink(missing_ok=True)
        finally:
            library.drop(space)
        if not written:
            _write_gone(library, model, numbers, unlabelled)


def _gone(library: Library, model: ModelName, numbers: Iterable[int], left: Labels) -> bool:
    """Written before they go: a crash in between must not bring them back, nor their numbers.
    False on a disk so full that they have to go first."""
    try:
        _write_gone(library, model, numbers, left)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def _write_gone(library: Library, model: ModelName, numbers: Iterable[int], left: Labels) -> None:
    with library.writing:
        if model == demo.NAME:
            library.unseeded.add(set(numbers) & set(demo.numbers()))
        library.save_labels(model, left.labels, left.next)


def _refuse_used(library: Library, version: Version, keep: Collection[int]) -> None:
    name, number = version.name, version.number
    pointing = sorted(label for label, at in library.labels(name).items() if at == number)
    if pointing:
        alone = len(library.versions(name)) == 1
        raise Conflict(
            f"{version} is labelled {', '.join(pointing)}; "
            + (
                f"it is the only version: hxctl model rm {name} --all removes both"
                if alone
                else f"hxctl label {name} {pointing[0]} VERSION moves the label first"
            )
        )
    if number in keep:
        raise Conflict(
            f"{version} is in use; hxctl swap {name} VERSION first, or take it out of the config"
        )

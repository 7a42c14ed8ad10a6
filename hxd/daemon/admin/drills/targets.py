"""What a swap drill swaps to: what an operator would have, were the version that serves bad."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hxd.daemon.request.deployment import Deployment
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.targets import named, no_room, same
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.library import Library
from hxd.daemon.store.sources import Choice, Source, SourceError
from hxd.errors import CallerError

NEAREST = 4  # versions that are looked at


@dataclass(frozen=True)
class Target:
    """`again`: what serves now, in new workers."""

    choice: Choice
    source: Source
    again: bool = False

    def __str__(self) -> str:
        return f"{named(self.source)}{', loaded again' if self.again else ''}"


async def targets(
    deployment: Deployment, now: Choice, means: Means, library: Library, *, force: bool
) -> tuple[list[Target], list[str]]:
    """Best first, the last one being what serves now; and why others are none. What is kept warm
    comes before all: to bring up something else would end it. Raises `CallerError` where the memory
    has room for none of them beside what serves; with `force` that does not matter."""
    source = deployment.current.source
    choices: list[Choice] = []
    if (warm := deployment.warm) is not None:
        number = warm.source.version if warm.source.held is not None else None
        plugin = warm.source.plugin
        installed = plugin.source == "installed"
        choices.append(
            Choice(number, warm.source.variant, plugin.reference if installed else now.plugin)
        )
    if source.held is not None:
        choices += await asyncio.to_thread(_others, library, source, now)
    found, passed, full = list[Target](), list[str](), ""
    for choice in dict.fromkeys([*choices, now]):
        again = choice == now
        try:
            other = source if again else await means.resolve(deployment.name, choice)
        except (SourceError, StoreError) as error:
            passed.append(f"{deployment.name}:{choice.variant}@{choice.version}: {error}")
            continue
        if not again and same(other, source):
            continue
        target = Target(choice, other, again)
        if not force and (why := _no_room(deployment, other, means)):
            full = full or why
            passed.append(f"{target}: {why}")
            continue
        found.append(target)
    if not found:
        raise CallerError(
            f"there is no room for a second release of {deployment.name!r} beside the first: "
            f"{full}; with force the first one ends before, and requests wait",
            status=409,
            code="drill_refused",
        )
    return found, passed


def _others(library: Library, source: Source, now: Choice) -> list[Choice]:
    """The version's neighbours, each in the variant that serves if it has that one; then the other
    variants of the version itself. None that would have to be made first. Blocks."""
    held = source.held
    assert held is not None
    choices = []
    numbers = [number for number in library.versions(held.name) if number != held.number]
    numbers.sort(key=lambda number: (abs(number - held.number), number))
    for number in [*numbers[:NEAREST], held.number]:
        try:
            version = library.version(held.name, number)
        except StoreError:
            continue
        there = [name for name in version.variants() if name not in version.marks]
        if version.mark is not None or not there:
            continue
        if number != held.number:
            # What is made of a version when it is loaded may take long.
            there = [source.variant] if source.variant in there else there[:1]
        choices += [Choice(number, str(name), now.plugin) for name in there]
    return choices


def _no_room(deployment: Deployment, source: Source, means: Means) -> str:
    """Why the release does not fit beside what serves; empty if it does. What is kept warm makes
    way for anything else."""
    left = means.room.left
    if (warm := deployment.warm) is not None:
        if same(warm.source, source):
            return ""
        key = warm.source.key
        left += warm.source.estimate * len(means.supervisor.replicas.get(key, ()))
    need = source.estimate * source.settings.replicas
    return no_room(need, left) if need > left else ""

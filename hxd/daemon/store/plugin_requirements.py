"""Which Python packages a plugin asks for, and whether this interpreter has them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hxd.pluginfile import PluginError, PluginFile

MAX_REQUIREMENTS = 200
# It is importable wherever a worker runs, and must not come from a package index.
OWN = "hxd"


def parse(manifest: PluginFile) -> list[Requirement]:
    """Those that hold on this machine, in a fixed order; raises `PluginError`."""
    if len(manifest.requirements) > MAX_REQUIREMENTS:
        raise PluginError(f"plugin {manifest.name}: more than {MAX_REQUIREMENTS} requirements")
    found = [_parse(manifest.name, text) for text in manifest.requirements]
    return sorted((one for one in found if _applies(one)), key=str)


def _parse(plugin: str, text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise PluginError(
            f"plugin {plugin}: requirement {text!r} is not NAME and versions as in "
            "'numpy>=2,<3' (PEP 508)"
        ) from None
    if requirement.url is not None:
        raise PluginError(
            f"plugin {plugin}: requirement {text!r} is not NAME and versions but an address; pip "
            "finds packages by the index and the folders that its own settings name"
        )
    return requirement


def _applies(requirement: Requirement, extras: Collection[str] = ("",)) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def check(manifest: PluginFile) -> None:
    """Raises `PluginError` with the first requirement that this interpreter does not meet."""
    for requirement in parse(manifest):
        if lack := _lack(requirement):
            mend = f"hxd[{manifest.extra}]" if manifest.extra else _plain(requirement)
            raise PluginError(f"plugin {manifest.name} needs {lack}: install {mend}")


def met(manifest: PluginFile) -> bool:
    """Whether this interpreter has all of them; raises `PluginError` for one that is none, and for
    an hxd that is not this one, which no environment mends."""
    lacking = [(one.name, lack) for one in parse(manifest) if (lack := _lack(one))]
    for name, lack in lacking:
        if canonicalize_name(name) == OWN:
            raise PluginError(f"plugin {manifest.name} needs {lack}")
    return not lacking


def _lack(requirement: Requirement, within: frozenset[str] = frozenset()) -> str | None:
    """What is missing, in words that follow "needs"; `within` holds what led here, since extras
    may name each other."""
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return _plain(requirement)
    if not requirement.specifier.contains(found.version, prereleases=True):
        return f"{_plain(requirement)}, {found.version} is installed"
    if not requirement.extras or str(requirement) in within:
        return None
    for text in found.requires or ():
        try:
            inner = Requirement(text)
        except InvalidRequirement:
            return f"{_plain(requirement)}, whose own requirement {text!r} can't be read"
        if _applies(inner, requirement.extras) and not _applies(inner):
            lack = _lack(inner, within | {str(requirement)})
            if lack is not None:
                return f"{_plain(requirement)}, and for that {lack}"
    return None


def to_install(manifest: PluginFile) -> tuple[str, ...]:
    """What an environment of its own must hold; raises `PluginError`."""
    return tuple(_plain(r) for r in parse(manifest) if canonicalize_name(r.name) != OWN)


def _plain(requirement: Requirement) -> str:
    """Without its marker, which has been judged."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def key(manifest: PluginFile) -> str:
    """The name of the environment with these requirements under this Python. What stands before
    the dash is the same under every other; raises `PluginError`."""
    wanted = sorted(str(_parse(manifest.name, text)) for text in manifest.requirements)
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    return f"{digest}-{sys.implementation.cache_tag}"

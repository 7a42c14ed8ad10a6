"""What `hxctl plugin list` shows: a row for every version of every plugin, and what ails it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.plugins import Plugin, Plugins
from hxd.pluginfile import PluginError, PluginFile


def rows(
    catalog: Plugins, read: Callable[[str, str], tuple[PluginFile, str]]
) -> list[dict[str, Any]]:
    """`read` gives the manifest and digest of an installed NAME and VERSION, trusted or not. The
    keys are the same in each row; what can't be known is None."""
    found = [_usable(catalog, plugin) for several in catalog.usable.values() for plugin in several]
    found += [_refused(reference, why, read) for reference, why in catalog.refused.items()]
    return sorted(found, key=lambda row: (row["name"], row["source"], row["version"] or ""))


def _usable(catalog: Plugins, plugin: Plugin) -> dict[str, Any]:
    problem = None
    try:
        catalog.recheck(plugin)
        meant = catalog.find(plugin.reference)
        if meant is not plugin:
            problem = f"{plugin.reference} means the one in {meant.folder}"
    except PluginError as error:
        problem = str(error)
    return {
        "name": plugin.manifest.name,
        "version": plugin.manifest.version,
        "source": plugin.source,
        "trusted": plugin.trusted,
        "environment": "hxd" if plugin.python is None else str(plugin.python.parents[1]),
        **_told(plugin.manifest, plugin.digest),
        "problem": problem,
    }


def _refused(
    reference: str, why: str, read: Callable[[str, str], tuple[PluginFile, str]]
) -> dict[str, Any]:
    name, _, version = reference.partition("@")
    row: dict[str, Any] = {
        "name": name,
        "version": version or None,
        "source": "installed" if version else "folder",
        "trusted": "no",
        "environment": None,
        "api": None,
        "formats": [],
        "digest": None,
        "description": "",
        "problem": why,
    }
    with contextlib.suppress(StoreError):
        row |= _told(*read(name, version))
    return row


def _told(manifest: PluginFile, digest: str) -> dict[str, Any]:
    return {
        "api": manifest.api,
        "formats": list(manifest.formats),
        "digest": digest,
        "description": manifest.description,
    }

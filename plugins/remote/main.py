"""The hooks of the remote plugin: any OpenAI-compatible server as a backend.

`[models.NAME.options]` are declared in options.py; docs/remote.md explains them.
"""

from __future__ import annotations

import os
import random
from typing import Any

from hxd.hookspecs import Description, Relay, hookimpl


@hookimpl
def hxd_describe() -> Description:
    return Description(formats=frozenset({"none"}), capabilities=frozenset({"generate", "embed"}))


@hookimpl
def hxd_prepare() -> None:
    from . import client, relay  # noqa: F401


@hookimpl
def hxd_backend(options: dict[str, Any]) -> Relay:
    from . import client, key
    from . import options as settings
    from .relay import Remote

    read = settings.read(options)
    return Remote(
        read,
        key.find(read.key_env, read.key_file, os.environ),
        client.trust(read),
        random.Random(),
    )

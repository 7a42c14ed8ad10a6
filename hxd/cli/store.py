"""The store as `hxctl model` works on it: through the daemon, or itself where none runs.

Both answer the same, since both end in the same operations.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import quote

import click

from hxd.cli.client import EXIT_ERROR, Client, exit_code, fail
from hxd.cli.progress import EXIT_INTERRUPTED, Meter, follow
from hxd.errors import ConfigError, HxdError

if TYPE_CHECKING:
    from hxd.daemon.admin.store_operations import Operations
    from hxd.daemon.admin.store_view import Use

STORE = "/admin/v1/store"
Body = dict[str, Any]


class Store(Protocol):
    """What can't be done ends the process, with a message."""

    client: Client

    def models(self) -> list[Body]: ...

    def show(self, ref: str) -> Body: ...

    def snapshots(self, path: str) -> list[Body]: ...

    def now(self, what: str, body: Body) -> Body:
        """`rm`, `label`, `golden` or `look`."""
        ...

    def work(self, kind: str, body: Body, *, wait: bool = True) -> Body:
        """The result of what takes long; without `wait` its job, at once."""
        ...


class Online:
    def __init__(self, client: Client) -> None:
        self.client = client

    def models(self) -> list[Body]:
        found: list[Body] = self.client.call("GET", STORE)
        return found

    def show(self, ref: str) -> Body:
        found: Body = self.client.call("GET", f"{STORE}/show?ref={quote(ref, safe='')}")
        return found

    def snapshots(self, path: str) -> list[Body]:
        found: list[Body] = self.client.call(
            "GET", f"{STORE}/snapshots?path={quote(path, safe='')}"
        )
        return found

    def now(self, what: str, body: Body) -> Body:
        done: Body = self.client.call("POST", f"{STORE}/{what}", body)
        return done

    def work(self, kind: str, body: Body, *, wait: bool = True) -> Body:
        job: Body = self.client.call("POST", f"{STORE}/{kind}", body)
        if not wait:
            return job
        job = follow(self.client, job)
        if job["state"] != "done":
            error = job["error"] or {}
            code = exit_code(error.get("status", 0)) if job["state"] == "failed" else EXIT_ERROR
            fail(error.get("message") or f"the {kind} was {job['state']}", code)
        result: Body = job["result"]
        return result


class Offline:
    """Works on the store of the configuration `config` with its lock, so that no daemon does."""

    def __init__(self, client: Client, config: Path) -> None:
        self.client = client
        self._file = config

    def models(self) -> list[Body]:
        with self._open() as (operations, uses):
            return operations.models(uses)

    def show(self, ref: str) -> Body:
        with self._open() as (operations, uses):
            return operations.show(ref, uses)

    def snapshots(self, path: str) -> list[Body]:
        with self._open() as (operations, _):
            return operations.snapshots(path)

    def now(self, what: str, body: Body) -> Body:
        from hxd.daemon.admin import store_asks as asks

        with self._open(writes=True) as (operations, uses):
            if what == "rm":
                return operations.remove(_converted(body, asks.Remove), uses)
            if what == "label":
                return operations.label(_converted(body, asks.SetLabel), uses)
            return operations.golden(_converted(body, asks.SetGolden))

    def work(self, kind: str, body: Body, *, wait: bool = True) -> Body:
        from hxd.daemon.admin import store_asks as asks
        from hxd.daemon.store.work import Work

        with (
            # The doctor looks at what a crash left before anybody clears it away.
            self._open(writes=kind in ("import", "backup", "restore")) as (operations, _),
            Meter(kind, quiet=self.client.as_json) as meter,
        ):
            work = Work(meter.told)
            kinds: dict[str, tuple[type[Any], Callable[[Any, Work], Body]]] = {
                "import": (asks.Import, operations.take_in),
                "verify": (asks.Verify, operations.verify),
                "backup": (asks.Backup, operations.backup),
                "restore": (asks.Restore, operations.restore),
                "doctor": (asks.Doctor, operations.doctor),
            }
            type, do = kinds[kind]
            return do(_converted(body, type), work)

    @contextlib.contextmanager
    def _open(self, *, writes: bool = False) -> Iterator[tuple[Operations, Sequence[Use]]]:
        from hxd import config as settings
        from hxd.daemon.admin.store_operations import Operations
        from hxd.daemon.store.stores import Stores

        try:
            config = settings.load(self._file)
            stores = Stores.of(config.paths.state)
            _check_user(stores.models.root)
            with stores.held() if writes else stores.models.lock():
                operations = Operations(stores.models, lambda: config.pull)
                yield operations, _uses(config, stores.models)
        except ConfigError as error:
            for finding in error.findings:
                click.echo(finding, err=True)
            sys.exit(ConfigError.EXIT_CODE)
        except HxdError as error:
            _fail(error)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


def _fail(error: HxdError) -> NoReturn:
    fail(error.message, exit_code(error.status))


def _check_user(root: Path) -> None:
    """Files of root's in the store of another user would be out of the daemon's reach."""
    if os.geteuid() == 0 and root.exists() and (owner := root.stat().st_uid) != 0:
        fail(
            f"{root} belongs to user {owner}; run this as that user: runuser -u "
            f"$(id -un {owner}) -- hxctl …",
            EXIT_ERROR,
        )


def _converted(body: Body, type: type[Any]) -> Any:
    import msgspec

    from hxd.errors import CallerError

    try:
        return msgspec.convert(body, type)
    except msgspec.ValidationError as error:
        raise CallerError(str(error)) from None


def _uses(config: Any, library: Any) -> list[Use]:
    """What the next daemon will serve, and could come back to."""
    from hxd.daemon.admin.store_view import How, Use
    from hxd.daemon.rollout.record import Record
    from hxd.daemon.store.faults import StoreError
    from hxd.daemon.store.reference import Reference
    from hxd.daemon.store.sources import reference_of

    record = Record(config.paths.state)
    record.load()
    found = []
    for model, settings in config.models.items():
        deployed = record.of(model, settings)
        with contextlib.suppress(StoreError):
            named = reference_of(settings.source, config)
            if named is None:
                continue
            choice = deployed.choice
            meant = Reference(named.name, None, choice.version or named.selector)
            wanted = choice.variant or next(iter(settings.variants), named.variant)
            found.append(Use(model, named.name, library.resolve(meant).number, wanted))
            for former in deployed.former:
                if former.version is not None:
                    found.append(Use(model, named.name, former.version, former.variant, How.FORMER))
    return found

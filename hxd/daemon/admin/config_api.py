"""Handlers of `/admin/v1/config`: what a configuration would mean, and putting it in place.

A candidate comes as text, so that it need not lie on the daemon's machine; secrets are covered in
whatever goes back.
"""

from __future__ import annotations

import asyncio
import pwd
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from hxd.config import kinds
from hxd.config.files import as_called
from hxd.config.history import History, Revision, Why, digests
from hxd.config.live import Live
from hxd.config.load import MAX_FILE
from hxd.config.masking import masked_lines, visible
from hxd.config.text_diff import diff
from hxd.daemon.admin.answer import answer, decoded
from hxd.daemon.config_change import BadConfig, Candidate, Files, Proposal
from hxd.daemon.config_check import Proposer
from hxd.daemon.config_files import ConfigFiles
from hxd.daemon.reconfigure import Reconfiguration
from hxd.errors import CallerError

WATCH = "30s"
_seconds = kinds.seconds(0, 86400)


class Candidature(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`files` by their names, `hxd.toml` and `conf.d/NAME.toml`; None is what lies on the disk.
    `whole`: those that are not named go, else they stay. `at` is what the caller calls hxd.toml,
    for what is wrong in it. `back`: instead of files, the revision `number`, or the last one that
    was good."""

    files: dict[str, str] | None = None
    whole: bool = True
    at: str | None = None
    back: bool = False
    number: int | None = None


class Application(Candidature, forbid_unknown_fields=True, kw_only=True):
    """`watch` is for how long the box is looked at before the change counts as good; `force` lets
    edits on the disk be overwritten that were never applied. `expected` are the sha256 of the files
    that there must be, as a check or a diff has said."""

    watch: float | str = WATCH
    force: bool = False
    expected: dict[str, str] | None = None


class ConfigApi:
    def __init__(
        self,
        live: Live,
        reconfiguration: Reconfiguration,
        history: History,
        files: ConfigFiles,
        proposer: Proposer,
    ) -> None:
        self._live = live
        self._reconfiguration = reconfiguration
        self._history = history
        self._files = files
        self._proposer = proposer

    async def check(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Candidature)
        return answer(_shown(await self._proposed(asked)))

    async def diff(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Candidature)
        proposal = await self._proposed(asked)
        revision, holding = await self._files.holding()
        text = await asyncio.to_thread(diff, holding, proposal.files)
        edits = ""
        if proposal.edited:
            present = await self._files.on_disk()
            old = {name: holding[name] for name in proposal.edited if name in holding}
            new = {name: present[name] for name in proposal.edited if name in present}
            edits = await asyncio.to_thread(diff, old, new)
        number = None if revision is None else revision.number
        return answer(_shown(proposal) | {"holds": number, "diff": text, "edits": edits})

    async def reload(self, request: web.Request) -> web.Response:
        change = await self._reconfiguration.begin(Why.RELOAD, _who(request))
        return answer(change.body(), 202)

    async def apply(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Application)
        if asked.back or asked.number is not None:
            raise CallerError("POST /admin/v1/config/rollback goes back to a revision")
        return await self._begun(request, asked, Why.APPLY)

    async def roll_back(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Application)
        if asked.files is not None:
            raise CallerError("files: a rollback takes those of a revision", param="files")
        asked.back = True
        return await self._begun(request, asked, Why.ROLLBACK)

    async def change(self, request: web.Request) -> web.Response:
        began = request.query.get("began")
        try:
            return answer(self._reconfiguration.shown(None if began is None else float(began)))
        except ValueError:
            raise CallerError(f"began: {began!r} is not a number of seconds") from None

    async def revisions(self, request: web.Request) -> web.Response:
        kept = await asyncio.to_thread(self._history.all)
        unreadable = await asyncio.to_thread(self._history.unreadable)
        holds, _ = await self._files.holding()
        return answer(
            {
                "config_file": str(self._live.config.origin),
                "holds": None if holds is None else holds.number,
                "revisions": [_entry(revision) for revision in kept],
                "unreadable": unreadable,
            }
        )

    async def revision(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        revision = await asyncio.to_thread(self._history.get, number)
        files = await asyncio.to_thread(self._history.read, number)
        _, holding = await self._files.holding()
        return answer(
            _entry(revision)
            | {
                "files": await asyncio.to_thread(_covered, files),
                "diff": await asyncio.to_thread(diff, holding, files),
            }
        )

    async def _begun(self, request: web.Request, asked: Application, why: Why) -> web.Response:
        try:
            seconds = _seconds(asked.watch)
        except ValueError as error:
            raise CallerError(f"watch: {error}", param="watch") from None
        try:
            candidate = await self._candidate(asked, asked.force)
            candidate = replace(candidate, expected=asked.expected)
            change = await self._reconfiguration.begin(
                why, _who(request), candidate, seconds=seconds
            )
        except BadConfig as error:
            raise self._as_called(error, asked) from None
        return answer(change.body(), 202)

    async def _proposed(self, asked: Candidature) -> Proposal:
        try:
            return await self._proposer.propose(await self._candidate(asked))
        except BadConfig as error:
            raise self._as_called(error, asked) from None

    async def _candidate(self, asked: Candidature, forced: bool = False) -> Candidate:
        if asked.back:
            files = await self._files.before(asked.number)
            return Candidate(files, forced=forced)
        if asked.files is None:
            return Candidate(forced=forced)
        return Candidate(_encoded(asked.files), asked.whole, forced)

    def _as_called(self, error: BadConfig, asked: Candidature) -> BadConfig:
        """The findings, under the names that the caller's files have where they lie."""
        if asked.at is None or asked.files is None:
            return error
        origin = self._live.config.origin
        return BadConfig(
            "\n".join(as_called(str(error).splitlines(), origin, Path(asked.at), asked.files))
        )


def _encoded(files: dict[str, str]) -> Files:
    encoded = {}
    for name, text in files.items():
        # Counted here already: what is far too long need not be copied.
        if len(text) > MAX_FILE:
            raise BadConfig(f"{visible(name)}: larger than {MAX_FILE} bytes")
        encoded[name] = text.encode("utf-8", "surrogatepass")
    return encoded


def _shown(proposal: Proposal) -> dict[str, Any]:
    return {
        "plan": proposal.plan.body(),
        "lines": proposal.plan.lines(),
        "edited": list(proposal.edited),
        "sha256": digests(proposal.files),
    }


def _entry(revision: Revision) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(revision)
    return body


def _covered(files: Files) -> dict[str, str]:
    return {
        name: "\n".join(map(visible, masked_lines(data.decode("utf-8", "backslashreplace"))))
        for name, data in files.items()
    }


def _who(request: web.Request) -> str:
    """For the history: a key's id, or the user at the other end of the admin socket."""
    if key := request.get("key"):
        return f"key {key}"
    transport = request.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return "somebody without a key"
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

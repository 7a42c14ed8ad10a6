"""What the tests of rollouts share: releases without workers, swaps asked over HTTP and by hxctl,
clients that ask all the while and check every answer, and plugin versions that turn out bad."""

from __future__ import annotations

import asyncio
import itertools
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from hxd.config import ModelSettings
from hxd.daemon.request.deployment import Served
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.sources import Source
from hxd.daemon.store.stores import Stores
from hxd.daemon.store.work import Work
from hxd.pluginfile import PluginFile
from tests.failover import CHAT, COMPLETIONS, Answer, Body, Row, Tally, streamed
from tests.plugin_packages import digests
from tests.support import HXCTL, ROOT, Daemon, chat, post

DEMO = "hxd-demo"
OVER = ("done", "rolled_back")
PATIENCE = 60.0
# Prompts of the demo model that its versions 1 and 2 answer differently, so surely (the nearest
# choice of a token was 30 % ahead of the next one) that who else is in the batch changes nothing.
TELLING = (
    ("please sum 55 and 95, please.", "151", "150"),
    ("sort these numbers: 17, 74, 65.", "17, 65, 77", "17, 65, 74"),
    ("What is the word `kwbl` backwards? Just the answer.", "lbw", "lbwk"),
    ("Sort the word feel.", "efl", "eefl"),
    ("Sort the letters of bsl.", "bs", "bls"),
    ("What is the word fgrfqrn backwards?", "nrgf", "nrqfrgf"),
)


# --- releases without workers


@dataclass
class FakeGate:
    """As much of a gate as a catalog asks."""

    ready: bool = True
    hopeless: bool = False

    def able(self) -> bool:
        return self.ready


def a_source(name: str, **differs: Any) -> Source:
    """Of no file; `differs` are fields of `Source`."""
    manifest = PluginFile("fake", "1.0", 1, "main", formats=("none",), files={})
    plugin = Plugin(Path("fake"), manifest, "0" * 64)
    source = Source(name, ModelSettings(), plugin, None, 1, "f16", "f16", 2048, 100)
    return replace(source, **differs)


def a_release(name: str, *, ready: bool = True, **differs: Any) -> Served:
    gate: Any = FakeGate(ready)
    return Served(a_source(name, **differs), gate)


# --- an operator


async def admin(daemon: Daemon, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Over the admin socket, which needs no key."""
    connector = aiohttp.UnixConnector(str(daemon.folder / "run" / "admin.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://localhost/admin/v1/{path}", json=body) as response,
    ):
        return response.status, await response.json()


async def begin(daemon: Daemon, model: str, version: str | int | None, **more: Any) -> Row:
    """Start a rollout."""
    body = {"model": model, **({} if version is None else {"version": version}), **more}
    status, row = await admin(daemon, "POST", "rollouts", body)
    assert status == 202, row
    return dict(row)


async def rollouts(daemon: Daemon) -> list[Row]:
    status, rows = await admin(daemon, "GET", "rollouts")
    assert status == 200, rows
    return list(rows)


async def when(
    daemon: Daemon, rollout: Row, so: Callable[[Row], bool], *, seconds: float = PATIENCE
) -> Row:
    """The rollout once it is `so`; asking again is all that there is to wait on."""
    async with asyncio.timeout(seconds):
        while True:
            row = next(r for r in await rollouts(daemon) if r["id"] == rollout["id"])
            if so(row):
                return row
            await asyncio.sleep(0.01)


async def over(daemon: Daemon, rollout: Row) -> Row:
    return await when(daemon, rollout, lambda row: row["phase"] in OVER)


async def in_phase(daemon: Daemon, rollout: Row, phase: str) -> Row:
    """The rollout in that phase; one that was over before never gets there."""

    def there(row: Row) -> bool:
        assert row["phase"] not in OVER or row["phase"] == phase, row
        return bool(row["phase"] == phase)

    return await when(daemon, rollout, there)


async def swap(daemon: Daemon, model: str, version: str | int | None, **more: Any) -> Row:
    """A rollout from its beginning to its end."""
    return await over(daemon, await begin(daemon, model, version, **more))


async def rollback(daemon: Daemon, model: str) -> Row:
    status, row = await admin(daemon, "POST", "rollback", {"model": model})
    assert status == 202, row
    return await over(daemon, row)


@dataclass
class Seen:
    """What clients have seen: by release, how many answers; what was wrong; what went on with
    another release, and said so."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    mixed: int = 0
    _tally: Tally = field(default_factory=Tally)

    def count(self, what: str) -> None:
        self.answers[what] += 1
        self._tally.tick()

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        async with asyncio.timeout(PATIENCE):
            await self._tally.more(count)

    def check(self) -> None:
        assert not self.wrong, f"{len(self.wrong)} wrong of {self.answers}: {self.wrong[:5]}"
        assert self.answers


async def taken_back(daemon: Daemon, model: str, rollout: Row) -> Row:
    """The rollout that took `rollout` back by itself, once that is over."""
    async with asyncio.timeout(PATIENCE):
        while True:
            row = next(row for row in await rollouts(daemon) if row["model"] == model)
            if row["id"] != rollout["id"] and row["phase"] in OVER:
                assert row["phase"] == "done", row
                return row
            await asyncio.sleep(0.01)


async def judged(daemon: Daemon, rollout: Row) -> Row:
    """A trial once it is over."""
    return await when(daemon, rollout, lambda row: row["phase"] in OVER, seconds=90)


async def events(daemon: Daemon, subject: str, kind: str = "rollout") -> list[Row]:
    _, found = await admin(daemon, "GET", f"events?subject={subject}")
    return [event for event in found if event["kind"] == kind]


async def event(daemon: Daemon, subject: str, step: str, kind: str = "rollout") -> Row:
    """The first such event, once there is one."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [e for e in await events(daemon, subject, kind) if e["step"] == step]
            if found:
                return found[0]
            await asyncio.sleep(0.01)


async def replicas(daemon: Daemon, model: str) -> list[Row]:
    _, status = await admin(daemon, "GET", "status")
    return [row for row in status["replicas"] if row["model"] == model]


async def settled(daemon: Daemon, model: str, count: int) -> list[Row]:
    """The model's workers, once exactly `count` are there and all are ready: nothing of a release
    that is gone is left."""
    async with asyncio.timeout(PATIENCE):
        while True:
            rows = await replicas(daemon, model)
            if len(rows) == count and all(row["state"] == "ready" for row in rows):
                return rows
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


async def hxctl(daemon: Daemon, *arguments: str) -> Said:
    """`hxctl ARGUMENTS` over the admin socket."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, "--socket", str(daemon.folder / "run" / "admin.sock")),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


# --- clients


def version_of(headers: dict[str, str]) -> str:
    return f"{headers['x-hxd-variant']}@{headers['x-hxd-version']}"


class Clients:
    """Ask one model in several ways until they are told to stop. `right` gives, for the prompt with
    a number, what each release (`VARIANT@VERSION`) answers to it."""

    def __init__(
        self, daemon: Daemon, model: str, prompts: list[tuple[str, dict[str, str]]]
    ) -> None:
        self._daemon, self._model, self._prompts = daemon, model, prompts
        self.seen = Seen()
        self.mixed_allowed = False
        self._over = False

    def _bodies(self) -> Iterator[tuple[Body, dict[str, str]]]:
        for text, right in itertools.cycle(self._prompts):
            yield chat(self._model, text, temperature=0, max_tokens=40), right

    def _judge(self, texts: list[str], right: dict[str, str], release: str, hxd: Row) -> None:
        self.seen.count(release)
        said = f"{hxd['variant']}@{hxd['version']}"
        versions = hxd.get("versions", [])
        if versions:
            self.seen.mixed += 1
            if len(set(versions)) != len(versions) or len(versions) < 2:
                self.seen.wrong.append(f"discloses {versions}")
            if not any(version.endswith(f":{said}") for version in versions):
                self.seen.wrong.append(f"says {said} and discloses {versions}")
            if not self.mixed_allowed and any(text not in right.values() for text in texts):
                self.seen.wrong.append(f"{texts} is mixed of {versions}")
            return
        if said != release:
            self.seen.wrong.append(f"header {release}, last chunk {said}")
        if any(text != right[release] for text in texts):
            self.seen.wrong.append(f"{texts} of {release}, not {right[release]!r}")

    async def _guarded(self, ask: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await ask
        except (aiohttp.ClientError, TimeoutError, KeyError) as error:
            self.seen.wrong.append(repr(error))

    async def _streams(self, body: Body, right: dict[str, str]) -> None:
        answer = await streamed(self._daemon, body)
        if not self._whole(answer):
            return
        texts = [choice.text for choice in answer.choices.values()]
        self._judge(texts, right, version_of(answer.headers), answer.hxd)

    def _whole(self, answer: Answer) -> bool:
        if answer.status != 200 or answer.error is not None or not answer.whole:
            self.seen.wrong.append(f"{answer}")
            return False
        return True

    async def _asks(self, body: Body, right: dict[str, str]) -> None:
        status, answer, headers = await post(self._daemon.url + CHAT, body)
        if status != 200:
            self.seen.wrong.append(f"{status} {answer}")
            return
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        if len(texts) == 1 and "versions" in answer["hxd"]:
            self.seen.wrong.append(f"nobody had seen any of it, and it is mixed: {answer['hxd']}")
        self._judge(texts, right, version_of(headers), answer["hxd"])

    async def _posts(self, path: str, body: Body) -> None:
        status, answer, _ = await post(self._daemon.url + path, body)
        self.seen.count(path)
        if status != 200:
            self.seen.wrong.append(f"{path}: {status} {answer}")

    def _ways(self, number: int) -> Callable[[Body, dict[str, str]], Coroutine[Any, Any, None]]:
        ways: list[Callable[[Body, dict[str, str]], Coroutine[Any, Any, None]]] = [
            self._streams,
            self._asks,
            lambda body, right: self._streams(body | {"n": 2}, right),
            lambda body, right: self._asks(body | {"n": 2}, right),
            lambda body, right: self._posts(
                COMPLETIONS, {"model": self._model, "prompt": "2+2=", "max_tokens": 8}
            ),
            lambda body, right: self._posts(
                "/tokenize", {"model": self._model, "content": "some words"}
            ),
        ]
        return ways[number % len(ways)]

    async def _client(self, number: int) -> None:
        way, bodies = self._ways(number), self._bodies()
        for body, right in itertools.islice(bodies, number, None):
            if self._over:
                return
            await self._guarded(way(body, right))

    async def _others(self, path: str, body: Body) -> None:
        while not self._over:
            await self._guarded(self._posts(path, body))

    @asynccontextmanager
    async def asking(self, count: int, *others: tuple[str, Body]) -> AsyncIterator[Seen]:
        """`count` clients of the model, and one for each of `others` (path and body)."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._client(number))
            for path, body in others:
                group.create_task(self._others(path, body))
            try:
                yield self.seen
            finally:
                self._over = True


def telling() -> list[tuple[str, dict[str, str]]]:
    """Prompts of the demo with the answers of both versions; q8_0 answers as f16 does."""
    return [
        (text, {"f16@1": one, "q8_0@1": one, "f16@2": two, "q8_0@2": two})
        for text, one, two in TELLING
    ]


def ask_little(state: Path) -> None:
    """Give the demo few golden prompts, in the store of a daemon that does not run yet: the usual
    ones take a second, and are put to the test elsewhere."""
    stores = Stores.of(state)
    with stores.held():
        lines = [f'[[prompt]]\ntext = "{text}"\nmax_tokens = 40\n' for text, *_ in TELLING]
        stores.models.set_golden(DEMO, "\n".join(lines).encode())


# --- plugin versions

BIRD = "bird"
PLUGIN = "parrot"
_MORE = '''

class Parrot(Echo):
    """Says its version before what it repeats. Counts what clients ask, and nothing else."""

    asked = 0

    def add(self, sequence):
        text = bytes(token for token in sequence.prompt if token < END)
        if text.startswith(b"client"):
            Parrot.asked += 1
            self.client(sequence)
        super().add(sequence)
        said, answer = self._running[sequence.id]
        self._running[sequence.id] = said, list({version!r}.encode() + b" ") + answer

    def client(self, sequence):
        pass


class Mine(Parrot):
{more}
'''
GOOD = "pass"
HURRIES = """
def _wait(self):  # whatever the rate
    pass
"""
CRASHES_AT_LOAD = """
def load(self, request):
    os.kill(os.getpid(), signal.SIGSEGV)
"""
HANGS_AT_LOAD = """
def load(self, request):
    _hang()
"""
CRASHES_WHEN_ASKED = """
def add(self, sequence):
    if sequence.prompt != list(b"Hello"):  # the one that warms it up
        os.kill(os.getpid(), signal.SIGSEGV)
    super().add(sequence)
"""
CRASHES_AT_THE_THIRD = """
def client(self, sequence):
    if Parrot.asked == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
"""
FAILS_WHEN_ASKED = """
def client(self, sequence):
    raise RuntimeError("not today")
"""
HANGS_WHEN_ASKED = """
def client(self, sequence):
    if Parrot.asked == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
"""
IS_SLOW_TO_LOAD = """
def load(self, request):
    time.sleep(0.8)
    return super().load(request)
"""
IS_SLOW_TO_ANSWER = """
def add(self, sequence):
    time.sleep(0.2)
    super().add(sequence)
"""
FAILS_A_FIFTH = """
def client(self, sequence):
    if Parrot.asked % 5 == 0:
        raise RuntimeError("one of five")
"""
REFUSES_A_THIRD = """
def client(self, sequence):
    if Parrot.asked % 3 == 0:
        raise RequestRefused("that is too much for me")
"""
SAYS_NOTHING_TO_A_THIRD = """
def add(self, sequence):
    asked = Parrot.asked
    super().add(sequence)
    if asked != Parrot.asked and Parrot.asked % 3 == 0:
        self._running[sequence.id] = sequence, []
"""
TALKS_GARBAGE = """
def add(self, sequence):
    super().add(sequence)
    self._running[sequence.id] = sequence, [7, 0, 27, 255] * 6
"""
IS_SLOW = """
def step(self):
    time.sleep(0.02)
    return super().step()
"""
SPEAKS_ANOTHER_LANGUAGE = """
def load(self, request):
    return ModelInfo(request.context, "other bytes", "{{ messages[-1].content }}")
"""


class Visitors(Clients):
    """Clients of a parrot, whose versions have one number: its answers begin with what they are."""

    def __init__(self, daemon: Daemon, *versions: str, model: str = BIRD, prompts: int = 3) -> None:
        """With few prompts many requests are the same: nobody shall suffer for another. With many
        they are many conversations."""
        texts = [f"client {number}" for number in range(prompts)]
        right = [{version: f"{version} {prompt}" for version in versions} for prompt in texts]
        super().__init__(daemon, model, list(zip(texts, right, strict=True)))

    def _judge(self, texts: list[str], right: dict[str, str], release: str, hxd: Row) -> None:
        for text in texts:
            version = text.partition(" ")[0]
            self.seen.count(version)
            if text != right.get(version):
                self.seen.wrong.append(f"{text!r}, not one of {right}")
        self.seen.mixed += "versions" in hxd


def parrot(home: Path, version: str, more: str = GOOD, *, format: str = "none") -> Path:
    """A version of a plugin that is echo but for `more`, the body of a class."""
    home.mkdir(parents=True)
    source = (ROOT / "plugins/echo/main.py").read_text()
    source = source.replace("return Echo(options)", "return Mine(options)")
    source = source.replace('frozenset({"none"})', f'frozenset({{"{format}"}})')
    body = textwrap.indent(textwrap.dedent(more).strip(), "    ")
    (home / "main.py").write_text(source + _MORE.format(version=version, more=body))
    (home / "plugin.toml").write_text(
        f'name = "{PLUGIN}"\nversion = "{version}"\napi = 1\nentry = "main"\n'
        f'formats = ["{format}"]\n[files]\n'
        + "".join(f'"{file}" = "{sha}"\n' for file, sha in digests(home).items())
    )
    return home


def install(state: Path, scratch: Path, *, format: str = "none", **versions: str) -> None:
    """Parrots, trusted, in the plugin store of a daemon that does not run yet; named `v1_0` for
    1.0."""
    store = PluginStore(state / "store" / "plugins")
    store.prepare()
    for name, more in versions.items():
        version = name.removeprefix("v").replace("_", ".")
        home = parrot(scratch / version, version, more, format=format)
        store.install(home, Work(), trust=True)

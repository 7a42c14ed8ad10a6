"""What the tests of failover share: answers read event by event, workers found by what they do and
killed at a moment that the answer itself tells, and two answers compared."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hxd.kit import draw
from tests.support import Daemon, get

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
# Of the demo model with one thread per worker: more threads than cores wait for each other.
FLEET = """
[models.hxd-demo]
source = "builtin:demo"
replicas = {replicas}
slots = 8
threads = 1
"""
SECONDS = 45.0  # after which an answer counts as lost
KILL = signal.SIGKILL
ATTEMPTS = 5

# Logprobs of one token in two runs have been seen to differ by 0.006, which moves a share of the
# probability by a quarter of that at most.
CLOSE = 0.0015

Row = dict[str, Any]
Body = dict[str, Any]


@dataclass
class Choice:
    """One choice, put together as an application would. `logprobs` holds a token's text, value and
    alternatives each, `tops` the ids and values of the alternatives where they have ids; `offsets`
    are those of text completions."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    logprobs: list[tuple[str, float | None, Any]] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: str | None = None

    def add(self, said: dict[str, Any]) -> bool:
        """Whether there was anything in it for a reader."""
        delta = said["delta"] if "delta" in said else {"content": said["text"]}
        self.text += (text := delta.get("content") or "")
        self.reasoning += (reasoning := delta.get("reasoning_content") or "")
        for part in (calls := delta.get("tool_calls", [])):
            if "id" in part:
                assert part["index"] == len(self.calls), "an id comes once, with the first part"
                name = part["function"]["name"]
                self.calls.append({"id": part["id"], "name": name, "arguments": ""})
            self.calls[part["index"]]["arguments"] += part["function"]["arguments"]
        logprobs = said["logprobs"] or {}
        for one in logprobs.get("content", []):
            top = [(other["token"], other["logprob"]) for other in one["top_logprobs"]]
            self.logprobs.append((one["token"], one["logprob"], top))
            self.tops.append({other["id"]: other["logprob"] for other in one["top_logprobs"]})
        if "tokens" in logprobs:
            tops = [list((top or {}).items()) for top in logprobs["top_logprobs"]]
            new = zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
            self.logprobs += new
            self.offsets += logprobs["text_offset"]
        assert self.finish is None, "nothing comes after the finish reason"
        self.finish = said["finish_reason"]
        return bool(text or reasoning or calls)


@dataclass
class Answer:
    """`whole`: it ended with `[DONE]`. `error` is that of an event or of a refusal."""

    status: int
    headers: dict[str, str]
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    hxd: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    whole: bool = False

    @property
    def text(self) -> str:
        """Of the only choice."""
        [choice] = self.choices.values()
        return choice.text

    @property
    def failovers(self) -> int:
        return int(self.hxd["failovers"])

    @property
    def counts(self) -> dict[str, int] | None:
        """Usage, less what depends on the cache of who happened to answer."""
        usage = self.usage or {}
        return {name: usage[name] for name in usage if name != "prompt_tokens_details"}


class Stream:
    """An answer while it comes. `read` counts the events that had something for a reader; `seen` is
    called at each."""

    def __init__(self, response: aiohttp.ClientResponse, seen: Callable[[], None]) -> None:
        self._lines = response.content
        self._seen = seen
        self.read = 0
        self.answer = Answer(response.status, dict(response.headers))

    @property
    def replica(self) -> str:
        """Who has begun it."""
        return self.answer.headers["x-hxd-replica"]

    async def until(self, count: int) -> None:
        """Read until so many events had something."""
        while self.read < count:
            assert await self._event(), f"ended after {self.read} events: {self.answer}"

    async def until_text(self, characters: int) -> None:
        """Read until the only choice has so much text."""
        while not self.answer.choices or len(self.answer.text) < characters:
            assert await self._event(), f"ended before: {self.answer}"

    async def rest(self) -> Answer:
        while await self._event():
            pass
        return self.answer

    async def _event(self) -> bool:
        """Take one line in; False at the end."""
        line = await self._lines.readline()
        if not line:
            return False
        if not line.startswith(b"data: "):
            assert line == b"\n"
            return True
        assert not self.answer.whole, "nothing comes after [DONE]"
        if line == b"data: [DONE]\n":
            self.answer.whole = True
            return True
        body = json.loads(line[6:])
        self.answer.error = body.get("error")
        self.answer.usage = body.get("usage")
        self.answer.hxd = body.get("hxd", self.answer.hxd)
        news = [
            self.answer.choices.setdefault(said["index"], Choice()).add(said)
            for said in body.get("choices", [])
        ]
        if any(news):
            self.read += 1
            self._seen()
        return True


@contextlib.asynccontextmanager
async def opened(
    daemon: Daemon, body: Body, path: str = CHAT, seen: Callable[[], None] = lambda: None
) -> AsyncIterator[Stream]:
    """A stream that has begun, or was refused: then its answer is complete."""
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.post(daemon.url + path, json=body | {"stream": True}) as response,
    ):
        stream = Stream(response, seen)
        if response.status != 200:
            stream.answer.error = (await response.json())["error"]
        yield stream


async def streamed(
    daemon: Daemon, body: Body, path: str = CHAT, seen: Callable[[], None] = lambda: None
) -> Answer:
    async with opened(daemon, body, path, seen) as stream:
        return await stream.rest()


async def undisturbed(daemon: Daemon, body: Body, path: str = CHAT) -> Answer:
    """The twin of a stream that is cut. On a busy box a worker may be late, and leave its answer to
    another one: that is no twin, and asked for again."""
    for _ in range(5):
        twin = await streamed(daemon, body, path)
        assert twin.whole, twin
        if twin.failovers == 0:
            return twin
    raise AssertionError(f"it is disturbed every time: {twin}")


async def cut(
    daemon: Daemon,
    body: Body,
    *after: int,
    path: str = CHAT,
    number: signal.Signals = KILL,
) -> Answer:
    """A stream whose worker gets `number` once so many events have come, again for each of
    `after`. On a busy box a worker may be at its end before the client has read that far: then
    nothing was cut, and it is tried again."""
    for _ in range(ATTEMPTS):
        answer = await _cut(daemon, body, after, path, number)
        assert answer.whole, answer
        if answer.failovers == len(after) * len(answer.choices):
            break
    assert answer.failovers == len(after) * len(answer.choices)
    return answer


async def _cut(
    daemon: Daemon, body: Body, after: tuple[int, ...], path: str, number: signal.Signals
) -> Answer:
    known = await pids(daemon, body["model"])
    async with opened(daemon, body, path) as stream:
        assert stream.answer.status == 200, stream.answer
        for turn, count in enumerate(after):
            await stream.until(count)
            # Only the first one's name is in the headers.
            at = known[stream.replica] if turn == 0 else await server_of(daemon, body["model"])
            os.kill(at, number)
        return await stream.rest()


def assert_same(answer: Answer, twin: Answer) -> None:
    """Byte for byte, but for the last digits of logprobs: what is read in other parts differs a
    little, since the cache holds 16 bits."""
    assert (answer.status, answer.whole, answer.error) == (200, True, None), answer
    assert answer.choices.keys() == twin.choices.keys()
    for index, choice in twin.choices.items():
        found = answer.choices[index]
        assert found.text == choice.text, f"{found.text!r} and not {choice.text!r}; {answer.hxd}"
        assert (found.reasoning, found.calls) == (choice.reasoning, choice.calls)
        assert (found.finish, found.offsets) == (choice.finish, choice.offsets)
        assert [token for token, *_ in found.logprobs] == [token for token, *_ in choice.logprobs]
        for one, other in zip(found.logprobs, choice.logprobs, strict=True):
            # The first token has none; what can hardly be has few digits that count.
            said = None if other[1] is None else pytest.approx(other[1], abs=0.02, rel=0.01)
            assert one[1] == said
            assert len(one[2]) == len(other[2])
            # Alternatives of nearly the same value may change places, and what is hardly probable
            # differs by more.
            values = [value for _, value in other[2]]
            assert [value for _, value in one[2]] == pytest.approx(values, rel=0.02, abs=0.05)
    assert answer.counts == twin.counts


async def decided(daemon: Daemon, bodies: list[Body]) -> list[tuple[Body, Answer]]:
    """Those of the chats, with their twins, in which no choice of a token was so close that the
    last digits could turn it: they come out the same wherever they are made."""
    asked = {"logprobs": True, "top_logprobs": 20}
    twins = await asyncio.gather(*(undisturbed(daemon, body | asked) for body in bodies))
    found = []
    for body, twin in zip(bodies, twins, strict=True):
        [choice] = twin.choices.values()
        if closest(choice.tops, body) > CLOSE:
            twin.choices = {0: replace(choice, logprobs=[])}
            found.append((body, twin))
    return found


def closest(tops: list[dict[int, float]], body: Body) -> float:
    """How near the nearest of all choices of a token was to another one, in probability."""
    if not body["temperature"]:
        best = [sorted(map(math.exp, top.values()), reverse=True) for top in tops]
        return min(first - second for first, second, *_ in best)
    return min(_room(top, position, body) for position, top in enumerate(tops))


def _room(top: dict[int, float], position: int, body: Body) -> float:
    """Of one draw: the nucleus first, then the inverse of the cumulative distribution."""
    falling = sorted(top.values(), reverse=True)
    sums = list(itertools.accumulate(math.exp(value) for value in falling))
    if sums[-1] < body["top_p"]:
        return 0.0  # it can't be told from what there is
    least = falling[next(at for at, total in enumerate(sums) if total >= body["top_p"])]
    weights = [
        math.exp(value / body["temperature"]) for _, value in sorted(top.items()) if value >= least
    ]
    mark = draw.uniform(body["seed"], position) * sum(weights)
    edges = list(itertools.accumulate(weights))[:-1]
    sides = [abs(total - body["top_p"]) for total in sums]
    return min(sides + [abs(mark - edge) / sum(weights) for edge in edges])


async def rows(daemon: Daemon, model: str) -> list[Row]:
    """The model's replicas as the operator sees them."""
    _, body = await get(daemon.url + "/admin/v1/status")
    return [row for row in body["replicas"] if row["model"] == model]


async def rows_when(daemon: Daemon, model: str, so: Callable[[list[Row]], bool]) -> list[Row]:
    """The replicas once they are `so`; asking again is all that there is to wait on."""
    async with asyncio.timeout(SECONDS):
        while True:
            if so(found := await rows(daemon, model)):
                return found
            await asyncio.sleep(0.01)


async def all_ready(daemon: Daemon, model: str) -> list[Row]:
    return await rows_when(
        daemon, model, lambda found: all(row["state"] == "ready" for row in found)
    )


async def pids(daemon: Daemon, model: str) -> dict[str, int]:
    """Of the workers that serve, once all do: whichever takes the next request is among them."""
    found = await rows_when(
        daemon, model, lambda found: all(row["state"] == "ready" for row in found)
    )
    return {row["replica"]: row["pid"] for row in found}


async def server_of(daemon: Daemon, model: str) -> int:
    """Process id of the only worker of the model that serves something, once there is one."""
    found = await rows_when(daemon, model, lambda found: any(row["running"] for row in found))
    [pid] = [row["pid"] for row in found if row["running"]]
    return int(pid)


async def reading(daemon: Daemon, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(await _metrics(daemon))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def _metrics(daemon: Daemon) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(daemon.url + "/metrics") as response,
    ):
        return await response.text()


async def generated(daemon: Daemon, model: str, count: float) -> None:
    """Wait until the model has generated so many tokens since the daemon's start: whether the
    client has seen any of them or not."""
    async with asyncio.timeout(SECONDS):
        while await tokens(daemon, model) < count:
            pass


async def tokens(daemon: Daemon, model: str) -> float:
    """Generated so far; read faster than a parser would, since it is asked for many times."""
    found = re.search(
        rf'^hxd_tokens_total{{kind="completion",model="{model}"}} (\S+)$',
        await _metrics(daemon),
        re.MULTILINE,
    )
    return float(found[1]) if found else 0.0


class Tally:
    """Counts what `tick` is called for, so that something can be done at a count."""

    def __init__(self) -> None:
        self.count = 0
        self._due: tuple[int, asyncio.Event] | None = None

    def tick(self) -> None:
        self.count += 1
        if self._due is not None and self.count >= self._due[0]:
            self._due[1].set()

    async def more(self, count: int) -> None:
        """Wait for `count` more."""
        self._due = self.count + count, asyncio.Event()
        await self._due[1].wait()

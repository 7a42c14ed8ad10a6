"""Tries a model file before it becomes a version: a worker loads it, answers, and is measured.

The worker is one of a release that no client knows of. Its first death ends the trial: a file that
kills a worker would kill the next one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hxd import __version__, wire
from hxd.clock import Clock
from hxd.daemon.request.call import Call, Piece
from hxd.daemon.request.deployment import Served
from hxd.daemon.request.releases import Releases
from hxd.daemon.request.setting import Setting
from hxd.daemon.rollout import questions
from hxd.daemon.rollout.golden import DEFAULT, Golden, Outcome
from hxd.daemon.rollout.likeness import TEXTS, finite, unpacked
from hxd.daemon.rollout.perplexity import PERPLEXITY_TEXT
from hxd.daemon.store.faults import Conflict, Corrupt, StoreError
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.memory import Room
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import HELLO_SECONDS, WARM_SECONDS, Supervisor
from hxd.errors import HxdError, Unavailable

# No model can be called so: metrics and logs show what is tried under one name that is nobody's.
NAME = "(validation)"
# What speed is measured over: long enough for a steady pace, short enough for a slow box.
TOKENS = 64
LONGEST = 300.0  # seconds for one measurement
_QUESTION = "Tell me about the sea."

T = TypeVar("T")


class Rejected(StoreError):
    """It was loaded, and answers worse than its golden prompts allow."""

    status = 422
    code = "validation_failed"


@dataclass(frozen=True)
class Means:
    supervisor: Supervisor
    releases: Releases
    room: Room
    setting: Setting
    clock: Clock


@dataclass
class Findings:
    """What a trial found, as it goes into a manifest: flat, and without what is not known."""

    table: dict[str, Any] = field(default_factory=dict)
    # Why the model should not be taken, in words; None when nothing speaks against it.
    against: str | None = None


class Validation:
    """One at a time; a second one waits. Its parts are the daemon's own."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._turn = asyncio.Lock()
        self._number = 0

    async def run(
        self, source: Source, golden: Golden | None, told: Callable[[str, int, int], None]
    ) -> Findings:
        """`golden` None: nothing is known of the model, and the prompts that every model gets are
        asked for the record only. `told` is a `Work.told`; the steps of a trial have no size.

        Raises `Corrupt` when the worker can't load it or dies of it, `Conflict` when the worker was
        ended by somebody else."""
        async with self._turn:
            return await self._run(source, golden, told)

    async def _run(
        self, source: Source, golden: Golden | None, told: Callable[[str, int, int], None]
    ) -> Findings:
        means = self._means
        table: dict[str, Any] = {"hxd": __version__, "when": round(means.clock.wall())}
        if source.file is not None and source.estimate > means.room.left:
            why = (
                f"about {source.estimate / 1e6:.0f} MB are needed to load it and "
                f"{max(0, means.room.left) / 1e6:.0f} MB of the memory budget are left"
            )
            return Findings({"loaded": False, "why": why, **table})
        self._number += 1
        settings = replace(source.settings, replicas=1, reserve=False)
        hidden = replace(source, name=NAME, settings=settings, release=str(self._number))
        trial = _Trial(means, hidden)
        try:
            told("load", 0, 0)
            began = means.clock.now()
            await trial.up()
            table |= {"loaded": True, "seconds": round(means.clock.now() - began, 2)}
            capabilities = trial.capabilities()
            if "generate" not in capabilities:
                told("vectors", 0, 0)
                return Findings({**table, **await trial.alive(_vectors(trial, capabilities))})
            told("speed", 0, 0)
            table |= await trial.alive(_speed(trial))
            told("perplexity", 0, 0)
            table |= await trial.alive(_perplexity(trial))
            told("golden prompts", 0, 0)
            asked = golden or DEFAULT
            found = await trial.alive(questions.outcomes(means.setting, trial.served, asked))
        finally:
            trial.end()
        right = sum(outcome is Outcome.RIGHT for outcome in found.values())
        table |= {"golden_right": right, "golden_asked": len(found)}
        missed = [id for id in asked.required if found[id] is not Outcome.RIGHT]
        against = None
        if golden is not None and missed:
            against = f"required golden prompts are answered wrong: {', '.join(missed[:5])}"
        elif golden is not None and right < golden.floor * len(found):
            against = (
                f"{right} of {len(found)} golden prompts are answered right; "
                f"{golden.floor:.0%} are needed"
            )
        return Findings(table, against)


class _Trial:
    """The hidden release of one trial, and the news of its worker."""

    def __init__(self, means: Means, source: Source) -> None:
        self.means = means
        self.source = source
        self._died: asyncio.Future[HxdError] = asyncio.get_running_loop().create_future()
        self._ready = asyncio.Event()
        means.supervisor.listeners.append(self._changed)
        means.supervisor.add(source)
        self.served: Served = means.releases.open(source)

    def _changed(self, replica: Replica, old: State, new: State) -> None:
        if replica.source.key != self.source.key:
            return
        if new is State.READY:
            self._ready.set()
        if new in (State.FAILED, State.STOPPED) and not self._died.done():
            why = replica.problem or "it gave no reason"
            self._died.set_result(
                Conflict(f"the worker that tried the model was ended: {why}; try again")
                if replica.blameless or new is State.STOPPED
                else Corrupt(
                    f"the model is not taken: a worker of {replica.source.plugin.reference} died "
                    f"of it: {why}. With --no-validate nobody tries it"
                )
            )

    async def up(self) -> None:
        """Until its worker can answer."""
        bound = HELLO_SECONDS + self.source.settings.load_time + WARM_SECONDS
        await self.alive(self._ready.wait(), bound)

    def capabilities(self) -> frozenset[str]:
        replicas = self.means.supervisor.replicas.get(self.source.key, ())
        said = [replica.loaded.capabilities for replica in replicas if replica.loaded is not None]
        return frozenset().union(*said)

    async def alive(self, doing: Awaitable[T], bound: float = math.inf) -> T:
        """What `doing` gives, unless the worker dies first; that is raised."""
        task = asyncio.ensure_future(doing)
        try:
            both: set[asyncio.Future[Any]] = {task, self._died}
            await asyncio.wait(
                both,
                timeout=None if bound == math.inf else bound,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._died.done():
                raise self._died.result()
            if not task.done():
                raise Conflict(f"the model could not answer within {bound:g} s; try again")
            return task.result()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, HxdError):
                await task

    def end(self) -> None:
        means, key = self.means, self.source.key
        listeners = means.supervisor.listeners
        listeners.remove(self._changed)

        def gone(replica: Replica, old: State, new: State) -> None:
            if key not in means.supervisor.replicas and means.releases.is_open(self.served):
                means.releases.close(self.served)
                # Not now: the supervisor is going through the list.
                asyncio.get_running_loop().call_soon(listeners.remove, gone)

        listeners.append(gone)
        means.supervisor.retire(key)

    async def ask(self, order: wire.Generate) -> tuple[list[tuple[float, Piece]], float]:
        """All pieces with their times, and the time of the question. Raises `HxdError`."""
        call = Call(self.means.setting, [self.served], [order], strict=True)
        began = self.means.clock.now()
        pieces: list[tuple[float, Piece]] = []
        try:
            async with asyncio.timeout(LONGEST), contextlib.aclosing(call.pieces()) as arriving:
                async for batch in arriving:
                    now = self.means.clock.now()
                    pieces += [(now, piece) for piece in batch]
        except TimeoutError:
            raise Unavailable(f"no whole answer within {LONGEST:g} s") from None
        return pieces, began


async def _speed(trial: _Trial) -> dict[str, Any]:
    """Of reading a prompt and of generating, one sequence at a time."""
    question = wire.Generate(
        id=0,
        seed=0,
        messages=[wire.Message(role="user", content=_QUESTION)],
        sampling=wire.Sampling(temperature=0.0, ignore_eos=True),
        max_tokens=TOKENS,
        cache=f"validation-{trial.source.key}",
    )
    found: dict[str, Any] = {}
    # The first one pays for the pages of the file that warming up has not touched.
    for _ in range(2):
        pieces, _ = await trial.ask(question)
        told = [at for at, piece in pieces if piece.text or piece.reasoning]
        count = sum(piece.completion_tokens for _, piece in pieces)
        if count > 1 and told and pieces[-1][0] > told[0]:
            found["tokens_per_second"] = round((count - 1) / (pieces[-1][0] - told[0]), 1)
    text = wire.Generate(id=0, seed=0, text=PERPLEXITY_TEXT, max_tokens=1, cache="prompt speed")
    with contextlib.suppress(HxdError):  # the context may be too short for it
        pieces, began = await trial.ask(text)
        count = sum(piece.prompt_tokens - piece.cached_tokens for _, piece in pieces)
        if count and pieces[-1][0] > began:
            found["prompt_tokens_per_second"] = round(count / (pieces[-1][0] - began), 1)
    return found


async def _perplexity(trial: _Trial) -> dict[str, Any]:
    """Nothing where it can't be told."""
    found = await questions.perplexity_of(trial.means.setting, trial.served)
    return {} if found is None else {"perplexity": found}


async def _vectors(trial: _Trial, capabilities: frozenset[str]) -> dict[str, Any]:
    """Of a model that embeds or ranks. Raises `Corrupt` for vectors that are none."""
    served, clock = trial.served, trial.means.clock
    if not capabilities & {"embed", "rank"}:
        return {}
    frame = _embed if "embed" in capabilities else _rank
    began = clock.now()
    answer = await questions.in_vectors(trial.means.setting, served, frame)
    seconds = clock.now() - began
    if not finite(unpacked(answer.found.rows())):
        raise Corrupt("the model is not taken: its vectors hold what is no number")
    found: dict[str, Any] = {"dimension": answer.found.dimension}
    if answer.tokens and seconds > 0:
        found["prompt_tokens_per_second"] = round(answer.tokens / seconds, 1)
    return found


def _embed(id: int) -> wire.Request:
    return wire.Embed(id, list(TEXTS))


def _rank(id: int) -> wire.Request:
    return wire.Rank(id, _QUESTION, list(TEXTS))

"""One sequence of a request on its way from a slot to its last token, over as many workers as it
takes. The client sees one uninterrupted answer: nothing lost, nothing twice.

It keeps the ids of the tokens that it has got. When a worker is lost, the next one is given the
prompt and these tokens, and goes on after them; draws depend on seed and position alone, and text
that was held back is held back there too. What a worker said before its first token (an echoed
prompt) is said again by the next one, and skipped here as far as the client has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hxd import wire
from hxd.daemon.request.admit import Gate, Lease, Place
from hxd.daemon.request.deployment import Outcome, Served
from hxd.daemon.request.failover import PROBATION, Next, Trail
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.succession import Succession
from hxd.daemon.request.told import Told
from hxd.daemon.supervise.link import Heard, Loss, Lost, new_id
from hxd.errors import BY_FAULT, BackendError, Fault, HxdError, QueueFull, Unavailable

log = logging.getLogger("hxd.request")

RETRY_AFTER = 1.0
POISONED = "request_blocked"
# Tokens of an answer that says something of a worker's pace. It is measured from the sending: of a
# short one all may come in one frame, and the time between frames says nothing.
LEAST_PACED = 4

# An error in place of an answer's end.
Said = wire.Delta | wire.Done | HxdError


class Strand:
    """`chain` holds the models that may answer, best first, and is shared with the request's other
    sequences: its first is the one asked now. `say` takes what is for the client, in order, and
    when it came, in monotonic seconds. With `whole` nothing is said before the end, and a sequence
    that can't be continued begins anew."""

    def __init__(
        self,
        setting: Setting,
        chain: list[Served],
        order: wire.Generate,
        say: Callable[[Said, float], None],
        *,
        whole: bool,
        strict: bool = False,
    ) -> None:
        self._succession = Succession(chain, setting.supervisor, setting.metrics, strict=strict)
        self._setting = setting
        self._say = say
        self._whole = whole
        self.order = order
        self.replicas: set[str] = set()
        self.releases: list[Served] = []
        self.failovers = 0
        self.began = False
        self.ended = False
        self._told = Told()
        self._held: list[tuple[wire.Delta, float]] = []
        self._trail = Trail()
        self._lease: Lease | None = None
        self._vocab: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._retrying: Gate | None = None
        # Kind, cause and time of a loss that no token has come after yet.
        self._lost: tuple[str, str, float] | None = None
        self._solitary = 0
        self._blamed: set[str] = set()
        # Who took the request for the client's fault, and its words.
        self._refused: tuple[Served, wire.Failed] | None = None
        self._sent_at = 0.0
        self._first_at: float | None = None
        self._sent = 0

    async def start(self, place: Place) -> None:
        """Wait for the slot and send the request there. Raises `HxdError`. The place is its own
        once it has `began`."""
        self.began = True
        while True:
            try:
                lease = await self._wait(place)
                break
            except Unavailable as error:
                place = self._enter_next(error)
        self._send(lease)

    async def _wait(self, place: Place) -> Lease:
        return await self._gate.wait(place, self.served.source.settings.queue_time)

    @property
    def served(self) -> Served:
        """The release that is asked now."""
        return self._succession.served

    @property
    def _gate(self) -> Gate:
        return self.served.gate

    @property
    def _bound(self) -> str | None:
        """The vocabulary of what somebody has seen of the answer, if anybody has."""
        return None if self._whole or not self._told.something else self._vocab

    def _enter_next(self, error: HxdError) -> Place:
        """A place of the next model of the chain that gives one; raises what the last one said."""
        while self._succession.advance(self._bound):
            try:
                return self._gate.enter(1)[0]
            except (Unavailable, QueueFull) as said:
                error = said
        raise error

    def _send(self, lease: Lease) -> None:
        replica = lease.replica
        order = self.order
        order.id, order.resume = new_id(), []
        self._lease = lease
        self._solitary = PROBATION if lease.alone else 0
        vocab = replica.loaded.vocab if replica.loaded is not None else ""
        if self._told.tokens or self._told.something:
            if vocab != self._vocab:
                self._begin_anew_or_end("the model that could go on has another vocabulary")
                if self.ended:
                    return
            elif self.served not in self.releases and (self._whole or not self._told.something):
                # Nobody has seen any of it, so it can be all of one version.
                self._forget()
            order.resume = list(self._told.tokens)
        if not (self._told.tokens or self._told.something):
            # Who has given nothing has no part in the answer.
            self.releases.clear()
        self._vocab = vocab
        self.replicas.add(replica.id)
        if self.served not in self.releases:
            self.releases.append(self.served)
        self._sent_at, self._first_at, self._sent = (
            self._setting.clock.now(),
            None,
            len(order.resume),
        )
        worker = replica.worker
        if worker is None:
            self._hear(Lost(order.id, Loss.KILLED, "the worker ended before it was asked"))
        else:
            worker.link.call(order, self._hear)

    def _hear(self, heard: Heard) -> None:
        if heard.id != self.order.id:
            return
        if self.ended:
            # Cancelled: the slot was the worker's until it has said its last word.
            if not isinstance(heard, wire.Delta) and not _urges(heard):
                self._release()
            return
        match heard:
            case wire.Delta():
                self._take(heard)
            case wire.Done():
                self._finish(heard)
            case wire.Failed(fault=Fault.BACKEND):
                self._failed(heard)
            case wire.Failed(fault=Fault.HXD) if not self._told.something and self._relieve():
                self._leave_lease()
                self._again("busy", None)
            case wire.Failed(fault=Fault.CALLER) if self._contested(heard):
                self._again("refused", None)
            case wire.Failed():
                self._end(failure(heard))
            case Lost(loss=Loss.MOVED):
                if self._movable():
                    self._leave(heard)
            case Lost():
                self._lose(heard)

    def _take(self, delta: wire.Delta) -> None:
        if self._lost is not None and (delta.tokens or delta.text):
            self._recovered()
        if self._first_at is None:
            self._first_at = self._setting.clock.now()
        if delta.tokens:
            self._trail.gained()
            if self._solitary and self._lease is not None:
                self._solitary = max(0, self._solitary - len(delta.tokens))
                if not self._solitary:
                    self._gate.open_up(self._lease)
        delta = self._told.take(delta)
        now = self._setting.clock.now()
        if self._whole:
            self._held.append((delta, now))
        else:
            self._say(delta, now)

    def _recovered(self) -> None:
        assert self._lost is not None
        kind, cause, at = self._lost
        self._lost = None
        pause = self._setting.clock.now() - at
        self._setting.metrics.failover(self.served.source.name, kind, cause, pause)
        log.info(
            "failover=%s cause=%s model=%s replica=%s tokens=%d pause=%.3f",
            kind, cause, self.served.source.name, self._lease.replica.id if self._lease else "-",
            len(self._told.tokens), pause,
        )  # fmt: skip
        self._settle_retry()

    def _finish(self, done: wire.Done) -> None:
        if self._lost is not None:
            self._recovered()
        lease = self._lease
        if lease is not None and done.finish != "cancelled":
            took = self._setting.clock.now() - self._sent_at
            lease.grant.succeeded(took / max(1, done.completion_tokens - len(self.order.resume)))
            empty = done.finish == "stop" and not self._told.worded
            self._report(None, done.completion_tokens, empty)
            if self._refused is not None:
                self._refused[0].report(Outcome("refused"))
        self._end(done)

    def _contested(self, failed: wire.Failed) -> bool:
        """Whether the release that was in service before is asked too: what it answers was not the
        client's fault."""
        told, served = self._told, self.served
        if self._refused is not None or told.something or told.tokens:
            return False
        if not self._succession.retreat():
            return False
        self._refused = served, failed
        self._leave_lease()
        return True

    def _report(self, fault: str | None, tokens: int = 0, empty: bool | None = None) -> None:
        """How it went, for whoever compares releases."""
        first, pace = None, None
        if self._first_at is not None:
            first = self._first_at - self._sent_at
            span = self._setting.clock.now() - self._sent_at
            if fault is None and span > 0 and tokens - self._sent >= LEAST_PACED:
                pace = (tokens - self._sent) / span
        self.served.report(Outcome(fault, first, pace, empty))

    def _failed(self, failed: wire.Failed) -> None:
        error = failure(failed)
        self._report(failed.code or "error")
        avoid = self._leave_lease(failed=True)
        self._settle_retry()
        again = self._trail.failed() is Next.LATER and self._can_go_on()
        if again and self._gets_away(Next.LATER):
            self._again("error", None)
        elif again and self._succession.others(avoid) and self._gate.budget.take():
            self._retrying = self._gate
            self._again("error", avoid, pause=self._trail.pause(self._setting.random.random()))
        elif again and self._relieve():
            self._again("error", None)
        else:
            self._end(error)

    def _lose(self, lost: Lost) -> None:
        lease = self._lease
        companions, model = 0, self.served.source.name
        if lease is not None:
            companions = self._setting.supervisor.companions(lease.replica)
        self._leave_lease()
        then = self._trail.lost(lost.loss, companions=companions)
        if lost.loss in (Loss.CRASHED, Loss.STALLED):
            self._report(lost.loss.value)
        if lost.loss is Loss.CRASHED:
            key, poison = self.served.source.key, self._setting.poison
            self._blamed.add(key)
            proven = not lost.company and poison.suspect(key, self.order)
            if proven and self._succession.refuge is None:
                then = Next.POISON
            if then is not Next.POISON and self._gets_away(then):
                if proven:
                    # It, or this release; what it does to the other one will tell.
                    poison.add(key, self.order)
                # A model with one worker has none to spare for it; a second death is the last.
                alone = self.served.source.settings.replicas > 1
                then = Next.ALONE if alone else Next.ELSEWHERE
            elif proven:
                then = Next.POISON
        left = None if lease is None or lost.loss is not Loss.MOVED else lease.replica.id
        if left is not None and not self._succession.others(left):
            # Its release has no other worker: it left for another release, and not to come back.
            self._relieve()
        why = f"the worker died: {lost.why}"
        match then:
            case Next.ELSEWHERE | Next.ALONE if self._can_go_on():
                # Its replica may be had again: by then it is another process.
                self._again(lost.loss.value, None, alone=then is Next.ALONE)
            case Next.POISON:
                for key in self._blamed:
                    self._setting.poison.add(key, self.order)
                self._setting.metrics.poisoned(model)
                self._end(
                    BackendError(
                        f"two workers ended while they served this request, so it is not tried "
                        f"again; {why}",
                        code=POISONED,
                    )
                )
            case _:
                self._end(BackendError(why, code=wire.WORKER_DIED))

    def _movable(self) -> bool:
        """Whether to leave a worker that lives: only for a place that is there now."""
        lease = self._lease
        if lease is None:
            return False
        if self._succession.others(lease.replica.id):
            return self._vocab in {None, *self._succession.vocabularies(lease.replica.id)}
        return self._succession.movable(self._bound)

    def _leave(self, lost: Lost) -> None:
        lease = self._lease
        if lease is None or lease.replica.worker is None:
            return
        lease.replica.worker.link.leave(self.order.id)
        self._lose(lost)

    def _can_go_on(self) -> bool:
        """Another worker can begin where this one has got to, or nobody has seen any of it."""
        told = self._told
        return self._whole or not told.something or bool(told.tokens) or self.order.echo

    def _begin_anew_or_end(self, why: str) -> None:
        """What came so far is of no use to the next worker."""
        if self._told.something and not self._whole:
            self._release()
            self._end(BackendError(f"the answer was cut off and can't be continued: {why}"))
            return
        self._forget()

    def _forget(self) -> None:
        self._told.forget()
        self._held.clear()

    def _again(
        self, cause: str, avoid: str | None, *, alone: bool = False, pause: float = 0.0
    ) -> None:
        kind = "resume" if self._told.something else "retry"
        at = self._setting.clock.now()
        if self._lost is not None:
            # The client's pause goes on; what was lost before has not been made good.
            before, why, at = self._lost
            self._setting.metrics.failover(self.served.source.name, before, why)
        self._lost = kind, cause, at
        if len(self._setting.poison):
            try:
                self._setting.poison.check(self.served.source.key, self.order)
            except HxdError as error:
                # A twin of it has been found out meanwhile.
                self._end(error)
                return
        self.failovers += 1
        # A late word of the former worker belongs to nobody.
        self.order.id = 0
        if not self._told.tokens and self._whole:
            self._forget()
        self._told.again()
        if not pause and self._try_at_once(avoid, alone):
            return
        self._task = asyncio.create_task(self._go_on(avoid, alone, pause))

    def _try_at_once(self, avoid: str | None, alone: bool) -> bool:
        """The usual case costs no task: a standby has a slot free."""
        if not self._gate.able():
            return False
        try:
            place = self._gate.reenter(avoid=avoid, alone=alone)
        except Unavailable:
            return False
        if not place.granted.done():
            self._gate.abandon([place])
            return False
        self._send(place.granted.result())
        return True

    async def _go_on(self, avoid: str | None, alone: bool, pause: float) -> None:
        """Wherever there is a slot: of this model, or of another that can take over."""
        if pause:
            await self._setting.clock.sleep(pause)
        while True:
            try:
                if not self._gate.able() and self._relieve():
                    avoid = None
                lease = await self._wait(self._gate.reenter(avoid=avoid, alone=alone))
                break
            except HxdError as error:
                if not self._succession.advance(self._bound):
                    self._end(self._cut_off(error))
                    return
                avoid = None
        self._send(lease)

    def _cut_off(self, error: HxdError) -> HxdError:
        """`error`, or what lies behind it: a version went, and another one can't go on for it."""
        if not self._succession.parted(self._bound):
            return error
        return BackendError(
            "the answer was cut off and can't be continued: its version is in service no more, and "
            "the one that is has another vocabulary"
        )

    def _gets_away(self, then: Next) -> bool:
        """Whether it goes on with another release or model: with what the model had before, or has
        beside, if it can; else when its own has no replica left."""
        refuge = self._succession.refuge
        return (refuge is not None or then is Next.GIVE_UP) and self._relieve()

    def _relieve(self) -> bool:
        return self._succession.relieve(self._bound)

    def _leave_lease(self, *, failed: bool = False) -> str | None:
        """Give the slot back; the id of the replica whose it was."""
        lease = self._lease
        if lease is None:
            return None
        if failed:
            lease.grant.failed()
        self._release()
        return lease.replica.id

    def _release(self) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.release()

    def _settle_retry(self) -> None:
        if self._retrying is not None:
            self._retrying.budget.give_back()
            self._retrying = None

    def _end(self, last: wire.Done | HxdError) -> None:
        self.ended = True
        self._settle_retry()
        if self._lost is not None:
            kind, cause, _ = self._lost
            self._lost = None
            self._setting.metrics.failover(self.served.source.name, kind, cause)
        self._release()
        if isinstance(last, HxdError) and self._refused is not None and not self._told.something:
            last = failure(self._refused[1])
        if isinstance(last, wire.Done):
            for delta, at in self._held:
                self._say(delta, at)
        self._held.clear()
        self._say(last, self._setting.clock.now())

    def cancel(self) -> None:
        """Nobody waits for it any more. The slot is free when the worker has said so."""
        if self.ended:
            return
        self.ended = True
        self._settle_retry()
        if self._task is not None:
            self._task.cancel()
        worker = None if self._lease is None else self._lease.replica.worker
        if worker is None or self.order.id not in worker.link.calls:
            self._release()
        else:
            worker.link.send(wire.Cancel(self.order.id))


def _urges(heard: Heard) -> bool:
    return isinstance(heard, Lost) and heard.loss is Loss.MOVED


def failure(failed: wire.Failed) -> HxdError:
    """The error that a client reads, by whose fault it was."""
    kind = BY_FAULT.get(failed.fault, BackendError)
    retry_after = failed.retry_after
    if retry_after is None and kind is Unavailable:
        retry_after = RETRY_AFTER
    return kind(failed.message, param=failed.param, code=failed.code, retry_after=retry_after)

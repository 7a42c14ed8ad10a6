"""Brings replicas up, sees them die, brings them up again. The single writer of their state.

Messages come in through `post`; `run` takes them one at a time. What to do after a transition is
decided by `decide`, which is pure, and done by an `Effects`, which has the processes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from hxd.clock import Clock
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import ALIVE, COMING, TRANSITIONS, Event, State, after
from hxd.daemon.supervise.news import Doubt, Message, News, Renew
from hxd.daemon.supervise.orders import Order, decide
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.restart import Restart

log = logging.getLogger("hxd.supervise")

HELLO_SECONDS = 60.0  # import of a plugin and its libraries, on a cold disk
WARM_SECONDS = 120.0  # one token through the whole model, read from a cold disk
# A replica that has died so often in a row is not counted on by waiting requests.
HOPEFUL_DEATHS = 2
# A worker that is slow again right after it was replaced is not helped by replacing it. One that is
# about to run out of memory is, each time; the pause is for the heir to come up.
RENEWAL_PAUSE = 600.0
URGENT_PAUSE = 5.0
# Seconds. Growing pauses are for workers that die of themselves. One that was fine until somebody
# else ended it is missed: while it is away, the next such death finds nobody to take over.
BLAMELESS_PAUSE = 0.5
SAID_BY_WORKERS = frozenset({Event.HELLO, Event.LOADED, Event.WARMED})


class Effects(Protocol):
    """What the supervisor does to the world. No call waits; outcomes come back as messages."""

    def spawn(self, replica: Replica) -> None: ...

    def load(self, replica: Replica) -> None: ...

    def warm(self, replica: Replica) -> None: ...

    def watch(self, replica: Replica) -> None: ...

    def drain(self, replica: Replica) -> None: ...

    def end(self, replica: Replica, *, gently: bool) -> None: ...

    def later(self, seconds: float, message: Message) -> None: ...


class Supervisor:
    """`listeners` are called after each transition, for those who wait for a replica. `spare` says
    whether the box has room for one more replica of a source, `missed` whether somebody waits for
    one of a model who had one."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        clock: Clock,
        rng: random.Random,
        spare: Callable[[Source], bool] = lambda source: True,
        missed: Callable[[str], bool] = lambda model: False,
    ) -> None:
        self._missed = missed
        self._clock = clock
        self._random = rng
        self._spare = spare
        self._mail: asyncio.Queue[News] = asyncio.Queue()
        self._effects: Effects
        self._numbers: Counter[str] = Counter()
        self._retired: set[str] = set()
        self.listeners: list[Callable[[Replica, State, State], None]] = []
        # Keys of releases that are lost, while another one is looked for.
        self.relieved: set[str] = set()
        # By `Source.key`.
        self.replicas: dict[str, list[Replica]] = {}
        for source in sources.values():
            self._enlist(source)

    def post(self, news: News) -> None:
        self._mail.put_nowait(news)

    async def run(self, effects: Effects) -> None:
        """Start every replica, then serve messages until cancelled."""
        self._effects = effects
        for replica in self.all():
            if replica.state is State.STOPPED and not replica.reserved:
                self._apply(Message(replica, replica.generation, Event.START))
        while True:
            match await self._mail.get():
                case Message() as message:
                    self._apply(message)
                case Doubt() as doubt:
                    self._doubt(doubt)
                case Renew() as renew:
                    self._renew(renew)

    def all(self) -> Iterable[Replica]:
        for replicas in self.replicas.values():
            yield from list(replicas)

    def ready(self, key: str) -> list[Replica]:
        """Replicas of a release that can take a request now, in a fixed order."""
        able = [replica for replica in self.replicas.get(key, ()) if replica.takes]
        return [replica for replica in able if not replica.suspect] or able

    def coming(self, key: str) -> bool:
        """Whether waiting makes sense: some replica is on its way up, or another release is looked
        for that takes its place."""
        replicas = self.replicas.get(key, ())
        return key in self.relieved or any(self._hoped_for(replica) for replica in replicas)

    @staticmethod
    def _hoped_for(replica: Replica) -> bool:
        return (
            replica.state in COMING
            or replica.reserved
            or (replica.state is State.READY and not replica.takes)
            or (
                replica.state is State.FAILED
                and (replica.proven or replica.restart.deaths <= HOPEFUL_DEATHS)
            )
        )

    def companions(self, replica: Replica) -> int:
        """How many other replicas its model has, up or on their way."""
        return sum(
            other.takes or self._hoped_for(other)
            for other in self.replicas.get(replica.source.key, ())
            if other is not replica
        )

    def problems(self, key: str) -> list[str]:
        return [
            f"{replica.id} {replica.state.value}: {replica.problem}"
            for replica in self.replicas.get(key, ())
            if replica.problem is not None
        ]

    def next_restart(self, key: str) -> float:
        """Seconds until the next replica of a release tries again; 1 when none is scheduled."""
        now = self._clock.now()
        due = [r.restart_at - now for r in self.replicas.get(key, ()) if r.restart_at is not None]
        return max(1.0, min(due, default=1.0))

    def add(self, source: Source, *, start: bool = True) -> None:
        """A release beside those that there are. With `start` false its replicas wait, and are
        hoped for, until `start` is called."""
        for replica in self._enlist(source):
            replica.reserved = True
            if start:
                self.post(Message(replica, replica.generation, Event.START))

    def start(self, key: str) -> None:
        """Start a release that was added to wait, or that has been ended."""
        for replica in self.replicas[key]:
            if replica.state is State.STOPPED:
                self.post(Message(replica, replica.generation, Event.START))

    def hold(self, key: str) -> None:
        """End a release's replicas and keep their places; they are hoped for until `start`."""
        for replica in self.replicas[key]:
            replica.reserved = True
            self._ask_to_end(replica)

    def retire(self, key: str) -> None:
        """End a release for good: each replica leaves the list when its process has ended."""
        self._retired.add(key)
        for replica in list(self.replicas.get(key, ())):
            replica.reserved = False
            self._retire(replica)

    def resize(self, source: Source) -> None:
        """Give a release as many replicas as its settings say; the others are not touched. Those
        that serve nothing yet are the first to go."""
        mates = [
            r
            for r in self.replicas[source.key]
            if r.heir_to is None and not r.surplus and (r.state is not State.DRAINING or r.reserved)
        ]
        for replica in self.replicas[source.key]:
            replica.source = source
        surplus = len(mates) - source.settings.replicas
        if surplus < 0:
            taken = {replica.place for replica in mates}
            places = [i for i in range(source.settings.replicas) if i not in taken]
            for place in places[:-surplus]:
                replica = Replica(self._next_id(source), source, place, reserved=True)
                self.replicas[source.key].append(replica)
                self.post(Message(replica, replica.generation, Event.START))
        for replica in sorted(mates, key=lambda r: (r.takes, -r.place))[: max(0, surplus)]:
            # What was to take its place is not to stay in it.
            for one in (replica, replica.heir):
                if one is not None:
                    one.surplus = True
                    self._retire(one)

    def _enlist(self, source: Source) -> list[Replica]:
        count = source.settings.replicas
        enlisted = [Replica(self._next_id(source), source, place) for place in range(count)]
        self.replicas[source.key] = enlisted
        return list(enlisted)

    def _next_id(self, source: Source) -> str:
        self._numbers[source.name] += 1
        return f"{source.name}-{self._numbers[source.name]}"

    def _retire(self, replica: Replica) -> None:
        if replica.state is State.STOPPED:
            replica.generation += 1  # it may have been told to start
            self._strike(replica)
            self._tell_listeners(replica, State.STOPPED, State.STOPPED)
        else:
            self._ask_to_end(replica)

    def _ask_to_end(self, replica: Replica) -> None:
        if replica.state is not State.STOPPED and replica.state is not State.DRAINING:
            self.post(Message(replica, replica.generation, Event.DRAIN))

    async def stop(self) -> None:
        """Ask every replica to end; the effects know when the processes are gone."""
        for replica in self.all():
            self._ask_to_end(replica)

    def _apply(self, message: Message) -> None:
        replica, event, detail = message.replica, message.event, message.detail
        if event is Event.DRAIN:
            # Who is to end is so in its next life too, should it have died or begun meanwhile; and
            # it may have been told already.
            if (replica.state, event) not in TRANSITIONS:
                return
        elif message.generation != replica.generation:
            return
        if message.while_in is not None and message.while_in is not replica.state:
            return
        if event in SAID_BY_WORKERS and (replica.state, event) not in TRANSITIONS:
            # A hostile worker may say anything at any time; that must end it, and not the daemon.
            detail = f"the worker said {event.value!r} while {replica.state.value}"
            event = Event.DIED
        old, new = replica.state, after(replica.state, event)
        now = self._clock.now()
        healthy = now - replica.since if old is State.READY else 0.0
        replica.state, replica.since = new, now
        if old is State.READY or event is Event.START:
            replica.unready_since = now
        if event is Event.START:
            replica.reserved = False
        if new is State.FAILED:
            replica.problem = detail
        elif new in (State.READY, State.STOPPED):
            replica.problem, replica.note = None, ""
        if event is Event.LOADED:
            replica.loaded = message.loaded
        if event is Event.WARMED or event is Event.DIED:
            replica.proven = event is Event.WARMED or old is State.READY
            replica.blameless, replica.barred = message.outside, message.barred
        if event in (Event.START, Event.RESTART) or new not in ALIVE:
            replica.generation += 1
            replica.suspect, replica.vitals = False, None
        self._log(replica, old, event, detail)
        if new is State.FAILED and replica.heir_to is not None:
            # An heir gets one try: what it was to replace still serves.
            self._perform(Order.KILL, replica, healthy)
            self._tell_listeners(replica, old, new)
            self._apply(Message(replica, replica.generation, Event.DRAIN))
            return
        for order in decide(event, new):
            self._perform(order, replica, healthy)
        self._succeed(replica)
        self._tell_listeners(replica, old, new)

    def _tell_listeners(self, replica: Replica, old: State, new: State) -> None:
        for listener in self.listeners:
            listener(replica, old, new)

    def _doubt(self, doubt: Doubt) -> None:
        replica = doubt.replica
        if doubt.generation != replica.generation or doubt.suspect == replica.suspect:
            return
        replica.suspect = doubt.suspect
        said = "late" if doubt.suspect else "back"
        log.warning("replica=%s state=%s heartbeat=%s", replica.id, replica.state.value, said)
        self._tell_listeners(replica, replica.state, replica.state)

    def _renew(self, renew: Renew) -> None:
        """Bring up an heir, unless one is on its way somewhere or there is no room for it."""
        replica, now = renew.replica, self._clock.now()
        pause = URGENT_PAUSE if renew.urgent else RENEWAL_PAUSE
        if (
            renew.generation != replica.generation
            or replica.state is not State.READY
            or self._ends_for_good(replica)
            or (replica.renewed_at is not None and now - replica.renewed_at < pause)
            or any(other.heir is not None for other in self.all())
        ):
            return
        replica.renewed_at = now
        if not self._spare(replica.source):
            log.warning("replica=%s needs replacing, no room: %s", replica.id, renew.why)
            return
        heir = Replica(
            self._next_id(replica.source), replica.source, replica.place, heir_to=replica
        )
        heir.renewed_at = now
        replica.heir = heir
        self.replicas[replica.source.key].append(heir)
        log.warning("replica=%s replaced_by=%s why=%r", replica.id, heir.id, renew.why)
        self._apply(Message(heir, heir.generation, Event.START))

    def _succeed(self, replica: Replica) -> None:
        """What a transition means for heirs: one that is ready relieves its predecessor, and who
        has ended for good leaves the list."""
        former = replica.heir_to
        if former is not None and replica.state is State.READY:
            replica.heir_to = None
            if (former.state, Event.DRAIN) in TRANSITIONS:
                self._apply(Message(former, former.generation, Event.DRAIN))
        if former is not None and replica.state is State.STOPPED:
            former.heir = None
            self._strike(replica)
        if replica.heir is not None and replica.state is State.STOPPED:
            replica.heir.heir_to = None
            self._strike(replica)
        if replica.state is State.STOPPED and self._ends_for_good(replica):
            self._strike(replica)

    def _ends_for_good(self, replica: Replica) -> bool:
        return replica.surplus or replica.source.key in self._retired

    def _strike(self, replica: Replica) -> None:
        mates = self.replicas.get(replica.source.key, [])
        if replica in mates:
            mates.remove(replica)
        if not mates and replica.source.key in self._retired:
            self._retired.discard(replica.source.key)
            self.replicas.pop(replica.source.key, None)

    def _perform(self, order: Order, replica: Replica, healthy: float) -> None:
        effects = self._effects
        match order:
            case Order.SPAWN:
                replica.restart_at = None
                effects.spawn(replica)
            case Order.LOAD:
                effects.load(replica)
                self._expect(replica, State.LOADING, replica.source.settings.load_time)
            case Order.WARM:
                effects.warm(replica)
                self._expect(replica, State.WARMING, WARM_SECONDS)
            case Order.WATCH:
                effects.watch(replica)
            case Order.DRAIN:
                effects.drain(replica)
            case Order.END:
                effects.end(replica, gently=True)
            case Order.KILL:
                effects.end(replica, gently=False)
            case Order.SCHEDULE_RESTART:
                pause = replica.restart.died(self._clock.now(), healthy, self._random)
                if replica.proven and replica.blameless:
                    missed = self._missed(replica.source.key)
                    pause = 0.0 if missed else min(pause, BLAMELESS_PAUSE)
                replica.restarts += 1
                replica.restart_at = self._clock.now() + pause
                effects.later(pause, Message(replica, replica.generation, Event.RESTART))
                if not self.ready(replica.source.key):
                    self.hasten(replica.source.key)

    def hasten(self, key: str) -> None:
        """No pause may be why anybody waits for a replica whose worker was ended from outside."""
        for replica in self.replicas.get(key, ()):
            if replica.state is State.FAILED and replica.proven and replica.blameless:
                self.post(Message(replica, replica.generation, Event.RESTART))

    def mended(self, key: str) -> None:
        """What replicas that may not start would load is whole again: they try at once, and what
        they died of is forgotten."""
        for replica in self.replicas.get(key, ()):
            if replica.barred and replica.state is not State.READY:
                replica.restart = Restart()
                if replica.state is State.FAILED:
                    self.post(Message(replica, replica.generation, Event.RESTART))

    def _expect(self, replica: Replica, state: State, seconds: float) -> None:
        """The replica dies unless it has left `state` by then."""
        detail = f"still {state.value} after {seconds:g} s; given up"
        self._effects.later(
            seconds,
            Message(replica, replica.generation, Event.DIED, detail, while_in=state),
        )

    def _log(self, replica: Replica, old: State, event: Event, detail: str) -> None:
        level = logging.WARNING if event is Event.DIED else logging.INFO
        log.log(
            level,
            "replica=%s from=%s to=%s event=%s%s",
            replica.id,
            old.value,
            replica.state.value,
            event.value,
            f" detail={detail!r}" if detail else "",
        )

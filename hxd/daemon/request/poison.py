"""Requests that were there when two workers ended by themselves, refused for a while.

Protects: the workers, from the same request sent again and again. Does not protect from one that is
changed a little each time; that one costs two deaths each time, and the breakers see those.
Holds no request, only a keyed hash of it, under a key that dies with the daemon.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict

import msgspec

from hxd import wire
from hxd.clock import Clock
from hxd.errors import CallerError

KEPT = 600.0  # seconds
MOST = 4096  # fingerprints; the oldest go first

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Poison:
    """`add` what is to be refused; `suspect` counts what ended a worker that served nothing else,
    which is as good as a proof, the second time."""

    def __init__(self, clock: Clock) -> None:
        self._suspects: OrderedDict[bytes, float] = OrderedDict()
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        """How many are refused now."""
        now = self._clock.now()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return len(self._until)

    def add(self, model: str, request: wire.Request) -> None:
        self._note(self._until, self._fingerprint(model, request))

    def suspect(self, model: str, request: wire.Request) -> bool:
        """Whether the same request was suspected before, and not long ago."""
        mark = self._fingerprint(model, request)
        known = self._suspects.get(mark, 0.0) > self._clock.now()
        self._note(self._suspects, mark)
        return known

    def _note(self, marks: OrderedDict[bytes, float], mark: bytes) -> None:
        marks.pop(mark, None)
        marks[mark] = self._clock.now() + KEPT
        if len(marks) > MOST:
            marks.popitem(last=False)

    def check(self, model: str, request: wire.Request) -> None:
        """Raises `CallerError` for a request that is refused."""
        if len(self) and (until := self._until.get(self._fingerprint(model, request))):
            raise CallerError(
                "this request was being served when two workers of the model broke down; it is "
                f"refused for {until - self._clock.now():.0f} s more",
                status=422,
                code="request_blocked",
                retry_after=until - self._clock.now(),
            )

    def _fingerprint(self, model: str, request: wire.Request) -> bytes:
        """Of what the client asked: not of ids, seeds, and what others had generated."""
        biases: list[tuple[int, float]] = []
        if isinstance(request, wire.Generate):
            # Keys that are numbers have no order that the encoder knows.
            biases = sorted(request.sampling.logit_bias.items())
            sampling = msgspec.structs.replace(request.sampling, logit_bias={})
            request = msgspec.structs.replace(
                request, id=0, seed=0, resume=[], cache="", sampling=sampling
            )
        else:
            request = msgspec.structs.replace(request, id=0)
        return hmac.digest(self._key, _encode([model, request, biases]), hashlib.sha256)

"""The worker's two working threads around one embedder.

The prepare thread tokenizes, a little of each request in turn; the engine thread fills batches from
all requests that wait and is the only one that takes them from the line. The reader (in `main`)
hands both their work. Small calls so never wait for the end of a large one.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from hxd import hookspecs, wire
from hxd.errors import Fault
from hxd.worker import tokens
from hxd.worker.channel import Channel
from hxd.worker.prepare import Refused
from hxd.worker.serve import gauged, take_part

MAX_TOKENS = 300_000  # in one call, as OpenAI has it
FRAME_BYTES = 1 << 19  # half of what the daemon takes


@dataclass
class Job:
    """One request's inputs as token ids; those before `taken` have been embedded."""

    id: int
    inputs: list[list[int]] = field(default_factory=list)
    taken: int = 0
    tokens: int = 0

    def add(self, input: list[int]) -> None:
        self.inputs.append(input)
        self.tokens += len(input)

    def lengths(self) -> Iterator[int]:
        """Tokens of each input that still waits."""
        return map(len, islice(self.inputs, self.taken, None))


def plan(waiting: Sequence[Iterable[int]], budget: int) -> list[int]:
    """How many inputs of each request go into the next batch.

    `waiting` holds the lengths of each request's inputs, in tokens; the requests in the order of
    whose turn it is. They give one input each in turn until the batch holds `budget` tokens; one
    whose next input does not fit any more waits for the next batch. An input longer than `budget`
    goes alone.
    """
    counts = [0] * len(waiting)
    turns = deque(enumerate(map(iter, waiting)))
    left = budget
    while turns and left > 0:
        index, lengths = turns.popleft()
        length = next(lengths, None)
        if length is None or (length > left and left < budget):
            continue
        counts[index] += 1
        left -= length
        turns.append((index, lengths))
    return counts


class Engine:
    """Serves one loaded embedder. `die` ends the process; it does not return."""

    def __init__(
        self,
        channel: Channel,
        backend: hookspecs.Embedder,
        info: hookspecs.ModelInfo,
        slots: int,
        die: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._backend = backend
        self._context = info.context
        self._capabilities = info.capabilities
        self._die = die
        self._to_prepare: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: deque[Job] = deque()
        self._in_batch = 0
        # `_live` gains ids in the reader and loses them where the last frame of an id is sent, so
        # that a late cancel finds nothing and leaves nothing behind.
        self._live: set[int] = set()
        self._cancelled: set[int] = set()
        self._closing = False
        self._sharing = self._shared = 1
        self.steps = 0

    def submit(self, request: wire.Request) -> None:
        self._live.add(request.id)
        self._to_prepare.put(request)

    def cancel(self, id: int) -> None:
        if id in self._live:
            self._cancelled.add(id)
            self._inbox.put(None)

    def share(self, among: int) -> None:
        self._sharing = among
        self._inbox.put(None)

    def close(self) -> None:
        self._closing = True
        self._inbox.put(None)

    def pong(self, n: int, *, gauges: bool = True) -> wire.Pong:
        running = self._in_batch
        waiting = max(0, len(self._live) - running)
        said = gauged(self._backend) if gauges else {}
        return wire.Pong(n, self.steps, running, waiting, said)

    def prepare_forever(self) -> None:
        turns: deque[tuple[int, Generator[None, None, Job | None]]] = deque()
        while True:
            try:
                while True:
                    request = self._to_prepare.get(block=not turns)
                    turns.append((request.id, self._prepare(request)))
            except queue.Empty:
                pass
            id, work = turns.popleft()
            if id in self._cancelled:
                self._finish(id, "cancelled", 0)
            elif self._advance(id, work):
                turns.append((id, work))

    def _advance(self, id: int, work: Generator[None, None, Job | None]) -> bool:
        """One turn of a request; False when nothing is left to prepare."""
        try:
            next(work)
            return True
        except StopIteration as end:
            if end.value is None:
                self._forget(id)
            else:
                self._inbox.put(end.value)
        except Refused as error:
            self._fail(id, Fault.CALLER, error.message, error.code, error.param)
        except hookspecs.RequestRefused as error:
            self._fail(id, Fault.CALLER, str(error), param=error.param)
        except Exception as error:  # the boundary to a plugin's code: one request fails
            self._fail(id, Fault.BACKEND, f"{type(error).__name__}: {error}")
        return False

    def _prepare(self, request: wire.Request) -> Generator[None, None, Job | None]:
        """Yields after each input; the job, or None when the request has had its answer. Raises
        `Refused` when the client is at fault."""
        match request:
            case wire.Tokenize() | wire.Detokenize():
                tokens.answer(self._channel, self._backend, request)
                return None
            case wire.Embed() if "embed" in self._capabilities:
                named = "input" if len(request.inputs) == 1 else "input[{}]"
                inputs = ((self._input, (one,)) for one in request.inputs)
                return (yield from self._job(request.id, inputs, named, "input"))
            case wire.Rank() if "rank" in self._capabilities:
                pairs = ((self._pair, (request.query, one)) for one in request.documents)
                return (yield from self._job(request.id, pairs, "documents[{}]", "documents"))
            case _:
                raise Refused(self._can_do(), code="unsupported_by_model", param="model")

    def _can_do(self) -> str:
        if "rank" in self._capabilities:
            return "this model ranks documents and does nothing else; use /v1/rerank"
        return "this model makes embeddings and does nothing else; use /v1/embeddings"

    def _job(
        self,
        id: int,
        inputs: Iterable[tuple[Callable[..., list[int]], tuple[str | list[int], ...]]],
        named: str,
        param: str,
    ) -> Generator[None, None, Job]:
        job = Job(id)
        for i, (read, arguments) in enumerate(inputs):
            name = named.format(i)
            try:
                ids = read(*arguments)
            except tokens.TooManyTokens as error:
                raise self._too_long(name, f"{error.least} tokens or more", param) from None
            except hookspecs.RequestRefused as error:
                raise Refused(f"{name}: {error}", param=param) from None
            if len(ids) > self._context:
                raise self._too_long(name, f"{len(ids)} tokens", param)
            if not ids:
                raise Refused(f"{name} is empty", param=param)
            job.add(ids)
            if job.tokens > MAX_TOKENS:
                raise Refused(
                    f"{param}: over {MAX_TOKENS} tokens in one call, up to and with {name}; send "
                    "it in several calls",
                    code="too_many_tokens",
                    param=param,
                )
            yield
        return job

    def _input(self, given: str | list[int]) -> list[int]:
        """Token ids of one input, special tokens included; a list of ids is taken as it is."""
        if isinstance(given, str):
            return tokens.bounded(self._tokenize, given, self._context)
        if len(given) <= self._context:
            for token in given:
                self._backend.token_bytes(token)  # refuses ids that there are not
        return given

    def _pair(self, query: str, document: str) -> list[int]:
        """Token ids of a query and a document, as the model reads them together."""
        for text in (query, document):
            if len(text) > self._context:
                # For its refusal alone: a pair is tokenized in one go.
                tokens.bounded(self._tokenize, text, self._context)
        return self._backend.pair(query, document)

    def _tokenize(self, text: str) -> list[int]:
        return self._backend.tokenize(text, add_special=True, parse_special=True)

    def _too_long(self, name: str, has: str, param: str) -> Refused:
        return Refused(
            f"{name} is too large: it has {has}, and this model reads at most {self._context} "
            "tokens at a time; shorten it or split it",
            code="context_length_exceeded",
            param=param,
        )

    def run(self) -> None:
        """Embed until told to close; the engine thread's whole life."""
        while not self._closing:
            self._take(block=not self._jobs)
            self._drop_cancelled()
            if self._sharing != self._shared:
                self._shared = self._sharing
                take_part(self._backend, self._shared)
            if not self._jobs:
                continue
            batch = self._fill()
            self._in_batch = len(batch)
            inputs = [
                input for job, count in batch for input in job.inputs[job.taken : job.taken + count]
            ]
            try:
                vectors = self._backend.embed(inputs)
            except Exception as error:  # the boundary to a plugin's code: the worker is replaced
                reason = f"the backend failed in a batch: {type(error).__name__}: {error}"
                for id in list(self._live):
                    self._fail(id, Fault.BACKEND, reason, wire.WORKER_DIED)
                self._die(reason)
                return
            self.steps += 1
            self._in_batch = 0
            self._send(batch, vectors)
        self._backend.close()

    def _take(self, *, block: bool) -> None:
        try:
            while True:
                job = self._inbox.get(block)
                block = False
                if job is not None:
                    self._jobs.append(job)
        except queue.Empty:
            pass

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        for job in [job for job in self._jobs if job.id in self._cancelled]:
            self._jobs.remove(job)
            self._finish(job.id, "cancelled", 0)

    def _fill(self) -> list[tuple[Job, int]]:
        """Jobs of the next batch, each with how many of its inputs go into it. Those that got
        nothing are first in line for the one after."""
        counts = plan([job.lengths() for job in self._jobs], self._backend.batch)
        batch = [(job, n) for job, n in zip(self._jobs, counts, strict=True) if n]
        passed_over = [job for job, n in zip(self._jobs, counts, strict=True) if not n]
        self._jobs = deque(passed_over + [job for job, _ in batch])
        return batch

    def _send(self, batch: list[tuple[Job, int]], vectors: list[bytes]) -> None:
        at = 0
        for job, count in batch:
            mine = vectors[at : at + count]
            at += count
            size = len(mine[0])
            each = max(1, FRAME_BYTES // size)
            for start in range(0, count, each):
                data = b"".join(mine[start : start + each])
                self._channel.send(wire.Vectors(job.id, job.taken + start, size // 4, data))
            job.taken += count
            if job.taken == len(job.inputs):
                self._jobs.remove(job)
                self._finish(job.id, "stop", job.tokens)

    def _finish(self, id: int, finish: str, prompt: int) -> None:
        self._forget(id)
        self._channel.send(wire.Done(id, finish, prompt, 0))

    def _fail(
        self,
        id: int,
        fault: Fault,
        message: str,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        self._forget(id)
        self._channel.failed(id, fault, message, code=code, param=param)

    def _forget(self, id: int) -> None:
        self._live.discard(id)
        self._cancelled.discard(id)

"""What the engine sends, in frames that the daemon takes, and who waits for whom on the way."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import Advance, ModelInfo, RequestRefused, Sequence
from hxd.worker import serve


def logprob(size: int, alternatives: int) -> wire.Logprob:
    return wire.Logprob(1, b"x" * size, -1.0, [(2, b"y" * size, -2.0)] * alternatives)


@pytest.mark.parametrize(
    "deltas",
    [
        [wire.Delta(1, [1, 2], "ab", [], [logprob(8, 20)] * 8192)],
        [wire.Delta(i, [1], "a", [], [logprob(256, 20)] * 20) for i in range(64)],
        [wire.Delta(i, [1], "x" * 16_000) for i in range(256)],
        [wire.Delta(1, [1], "a", [wire.CallDelta(0, "i", "f", "y" * 1000)], [logprob(9, 0)] * 3)],
        [],
    ],
    ids=["one prompt", "many answers", "long texts", "a call", "nothing"],
)
def test_deltas_of_any_size_go_out_in_frames_that_the_daemon_takes(
    deltas: list[wire.Delta],
) -> None:
    expected = {delta.id: (delta.tokens, delta.text, len(delta.logprobs)) for delta in deltas}
    got: dict[int, tuple[list[int], str, int]] = {}
    for frame in serve._frames((delta, None) for delta in deltas):
        assert len(wire.encode(frame)) < wire.TO_DAEMON_LIMIT
        for delta in frame.deltas:
            tokens, text, count = got.get(delta.id, ([], "", 0))
            got[delta.id] = (
                tokens + delta.tokens,
                text + delta.text,
                count + len(delta.logprobs),
            )
    assert got == expected


class Slow:
    """A backend that ends every sequence at once, and compiles when it is told to."""

    def __init__(self) -> None:
        self.may_compile = threading.Event()
        self.running: dict[int, Sequence] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def compile(self, constraint: wire.Constraint) -> str:
        self.may_compile.wait()
        if constraint.text == "bad":
            raise RequestRefused("no grammar", "grammar")
        return f"compiled {constraint.text}"

    def gauges(self) -> dict[str, float]:
        return {}

    def add(self, sequence: Sequence) -> None:
        self.running[sequence.id] = sequence

    def remove(self, id: int) -> None:
        del self.running[id]

    def step(self) -> list[Advance]:
        return [
            Advance(id, [], error="too complex on the way")
            if sequence.constraint == "compiled late"
            else Advance(id, [], ended=True)
            for id, sequence in self.running.items()
        ]

    def close(self) -> None:
        pass


class Sent:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: queue.SimpleQueue[wire.Frame] = queue.SimpleQueue()

    def send(self, frame: wire.Frame) -> None:
        """The ends of a step one by one, as the daemon's link takes them."""
        for one in frame.ended if isinstance(frame, wire.Step) else [frame]:
            self.frames.put(one)

    def failed(self, id: int, fault: Any, message: str, **more: Any) -> None:
        self.frames.put(wire.Failed(id, fault.value, message, **more))


@pytest.fixture
def engine() -> Any:
    """An engine at work; `engine.sent` and `engine.backend` are for the test."""
    sent, backend = Sent(), Slow()
    able = frozenset({"generate", "constrain"})
    info = ModelInfo(context=100, vocab="bytes", capabilities=able)
    made: Any = serve.Engine(sent, backend, info, 4, lambda reason: None)  # type: ignore[arg-type]
    made.sent, made.backend = sent, backend
    threading.Thread(target=made.prepare_forever, daemon=True).start()
    running = threading.Thread(target=made.run)
    running.start()
    yield made
    made.close()
    running.join()


def generate(id: int, grammar: str | None = None) -> wire.Generate:
    held = None if grammar is None else wire.Constraint("gbnf", grammar, param="grammar")
    return wire.Generate(id=id, seed=1, text="x", max_tokens=5, constraint=held)


def test_who_has_no_constraint_waits_for_no_compilation(engine: Any) -> None:
    engine.submit(generate(1, "slow"))
    engine.submit(generate(2))
    assert engine.sent.frames.get(timeout=30).id == 2
    engine.backend.may_compile.set()
    done = engine.sent.frames.get(timeout=30)
    assert (done.id, done.finish) == (1, "stop")


def test_who_leaves_before_a_compilation_is_not_compiled_for(engine: Any) -> None:
    for id in (1, 2):
        engine.submit(generate(id, "slow"))
    engine.submit(generate(3))
    # All three have been prepared by now.
    assert engine.sent.frames.get(timeout=30).id == 3
    engine.cancel(2)
    engine.backend.may_compile.set()
    ends = {done.id: done.finish for done in (engine.sent.frames.get(timeout=30) for _ in "ab")}
    assert ends == {1: "stop", 2: "cancelled"}


@pytest.mark.parametrize(("grammar", "message"), [("bad", "no grammar"), ("late", "too complex")])
def test_a_constraint_that_can_not_be_kept_is_the_callers_fault(
    engine: Any, grammar: str, message: str
) -> None:
    engine.backend.may_compile.set()
    engine.submit(generate(1, grammar))
    failed = engine.sent.frames.get(timeout=30)
    assert (failed.id, failed.fault, failed.param) == (1, "caller", "grammar")
    assert message in failed.message

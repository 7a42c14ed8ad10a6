"""The worker process: confine, import the plugin, say hello, then do as the daemon's frames say.

The main thread reads the socket and answers pings at once; loading and decoding happen in the
engine thread. The process ends when the socket does.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn, Protocol

import pluggy

from hxd import hookspecs, wire
from hxd.errors import Fault
from hxd.pluginfile import PluginError
from hxd.worker import embed, load, relay
from hxd.worker.channel import Channel
from hxd.worker.confine import confine
from hxd.worker.serve import Engine

EXIT_FAILED = 70  # EX_SOFTWARE of sysexits.h


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="hxd.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited end of the socketpair")
    parser.add_argument("--plugin", type=Path, required=True, help="the plugin's folder")
    parser.add_argument("--digest", required=True, help="sha256 of its plugin.toml")
    parser.add_argument("--parent", type=int, required=True, help="process id of the daemon")
    parser.add_argument("--memory-limit", type=int, help="bytes of private memory")
    arguments = parser.parse_args()
    confine(arguments.parent, arguments.memory_limit)
    channel = Channel(socket.socket(fileno=arguments.fd))
    worker = Worker(channel, arguments.plugin, arguments.digest)
    threading.Thread(target=worker.read, name="reader", daemon=True).start()
    worker.work()


def leave(code: int) -> NoReturn:
    """End at once: a plugin's threads and exit handlers must not keep a failed worker alive."""
    sys.stderr.flush()
    os._exit(code)


class Serving(Protocol):
    """What the reader thread hands frames to; no call waits."""

    def submit(self, request: wire.Request) -> None: ...

    def cancel(self, id: int) -> None: ...

    def share(self, among: int) -> None: ...

    def close(self) -> None: ...

    def pong(self, n: int, *, gauges: bool = True) -> wire.Pong: ...


class Worker:
    """`read` belongs to the reader thread, `work` to the main thread, which becomes the engine."""

    def __init__(self, channel: Channel, folder: Path, digest: str) -> None:
        self._channel = channel
        self._folder = folder
        self._digest = digest
        self._engine: Serving | None = None
        self._order: wire.Load | wire.Quantize | wire.Convert | None = None
        self._ordered = threading.Event()

    def read(self) -> NoReturn:
        try:
            for frame in self._channel.frames():
                self._receive(frame)
        except (wire.WireError, OSError) as error:
            sys.stderr.write(f"worker: the link to the daemon broke: {error}\n")
            leave(EXIT_FAILED)
        leave(0)

    def _receive(self, frame: wire.ToWorker) -> None:
        engine = self._engine
        match frame:
            case wire.Ping():
                self._channel.send(
                    engine.pong(frame.n, gauges=frame.gauges)
                    if engine
                    else wire.Pong(frame.n, 0, 0, 0)
                )
            case wire.Load() | wire.Quantize() | wire.Convert() if self._order is None:
                self._order = frame
                self._ordered.set()
            case (
                wire.Generate() | wire.Embed() | wire.Rank() | wire.Tokenize() | wire.Detokenize()
            ) if engine:
                engine.submit(frame)
            case wire.Cancel() if engine:
                engine.cancel(frame.id)
            case wire.Share():
                if engine is not None:
                    engine.share(frame.among)
            case wire.Unload():
                if engine is None:
                    leave(0)
                engine.close()
            case _:
                raise wire.WireError(f"{type(frame).__name__} is not expected now")

    def work(self) -> NoReturn:
        try:
            manager, manifest = load.import_plugin(self._folder, self._digest)
            description = load.describe(manager, manifest)
            self._channel.send(
                wire.Hello(wire.PROTOCOL, os.getpid(), manifest.name, manifest.version)
            )
            manager.hook.hxd_prepare()
            self._ordered.wait()
            if isinstance(self._order, wire.Quantize):
                self._quantize(manager, self._order)
            elif isinstance(self._order, wire.Convert):
                self._convert(manager, self._order)
            elif self._order is not None:
                self._serve(manager, description, self._order)
        except hookspecs.NotConvertible as error:
            self._channel.failed(None, Fault.CALLER, str(error))
            leave(EXIT_FAILED)
        except OSError as error:
            if isinstance(error, BrokenPipeError | ConnectionError):
                leave(0)
            self._fail(error)
        except (Exception, SystemExit) as error:  # the boundary to a plugin's code
            self._fail(error)
        leave(0)

    def _fail(self, error: BaseException) -> NoReturn:
        traceback.print_exc()
        said = str(error) or "no message"
        named = said if isinstance(error, PluginError) else f"{type(error).__name__}: {said}"
        code = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
        self._channel.failed(None, Fault.BACKEND, named, code=code)
        leave(EXIT_FAILED)

    def _serve(
        self, manager: pluggy.PluginManager, description: hookspecs.Description, order: wire.Load
    ) -> None:
        if order.path is None and "none" not in description.formats:
            raise PluginError("this plugin needs a model file; set source")
        path = None if order.path is None else Path(order.path)
        backend = manager.hook.hxd_backend(options=order.options, path=path)
        if backend is None:
            raise PluginError("hxd_backend is missing or gave None, not a backend")
        request = hookspecs.LoadRequest(
            model=order.model,
            path=path,
            context=order.context,
            slots=order.slots,
            threads=order.threads,
            options=order.options,
        )
        if hasattr(backend, "relay"):
            relay.serve(self._channel, backend, request, self._announce)
            return
        info = backend.load(request)
        if not isinstance(info, hookspecs.ModelInfo):
            raise PluginError(f"load gave {type(info).__name__}, not a ModelInfo")
        kind = embed.Engine if hasattr(backend, "embed") else Engine
        engine = kind(self._channel, backend, info, order.slots, self._die)
        threading.Thread(target=engine.prepare_forever, name="prepare", daemon=True).start()
        self._announce(engine, info, order.slots)
        engine.run()

    def _announce(self, engine: Serving, info: hookspecs.ModelInfo, slots: int) -> None:
        """From here on requests come in."""
        self._engine = engine
        self._channel.send(
            wire.Loaded(info.context, slots, info.vocab, info.details, sorted(info.capabilities))
        )

    def _die(self, reason: str) -> NoReturn:
        traceback.print_exc()
        sys.stderr.write(f"worker: {reason}\n")
        leave(EXIT_FAILED)

    def _progress(self, share: float, note: str) -> None:
        self._channel.send(wire.Progress(share, note))

    def _quantize(self, manager: pluggy.PluginManager, order: wire.Quantize) -> None:
        done = manager.hook.hxd_quantize(
            source=Path(order.source),
            target=Path(order.target),
            variant=order.variant,
            threads=order.threads,
            progress=self._progress,
        )
        if not done:
            raise PluginError("this plugin does not quantize")
        self._progress(1.0, "done")

    def _convert(self, manager: pluggy.PluginManager, order: wire.Convert) -> None:
        notes = manager.hook.hxd_convert(
            source=Path(order.source),
            target=Path(order.target),
            name=order.name,
            weights=order.weights,
            progress=self._progress,
        )
        if notes is None:
            raise PluginError("this plugin does not convert")
        self._channel.send(wire.Converted(notes))

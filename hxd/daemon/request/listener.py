"""The sockets where clients connect, and how they move to another address while hxd serves.

The new address is bound before the old one is given up, and who is connected stays so: a connection
that came through a socket that is closed ends after its next answer, which says so to the client.
Knows nothing of routes or keys.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hxd.config.kinds import Address
from hxd.errors import HxdError

log = logging.getLogger("hxd")

BACKLOG = 1024
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of linux/socket.h
# Of the addresses of one name, those of a kind that the box does not have are left out.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

Protocol = Callable[[], asyncio.BaseProtocol]


class CannotListen(HxdError):
    """The message follows `listen.http: `."""


class Port:
    """One listening socket. `leaving`: it takes nobody any more."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.leaving = False
        self.server: asyncio.Server | None = None

    @property
    def place(self) -> tuple[Any, ...]:
        return self.socket.family, *self.socket.getsockname()


class Listener:
    """`connection` makes the protocol of a connection that comes through a port."""

    def __init__(self, connection: Callable[[Port], Protocol]) -> None:
        self._connection = connection
        self._ports: list[Port] = []
        self._held: list[socket.socket] = []
        self.address: Address | None = None

    @property
    def url(self) -> str:
        """With the port that the kernel has picked, where the address left it open."""
        assert self.address is not None
        return f"http://{Address(self.address.host, self._ports[0].socket.getsockname()[1])}"

    async def probe(self, address: Address) -> None:
        """Raises `CannotListen` when `move` would."""
        _close((await self._bound(address))[1])

    async def hold(self, address: Address) -> None:
        """Bind what `move` will need; nobody can connect there yet. Raises `CannotListen`."""
        self.release()
        _, self._held = await self._bound(address)

    def release(self) -> None:
        """What was held and is not needed any more."""
        _close(self._held)
        self._held = []

    async def move(self, address: Address) -> None:
        """Take connections at `address` and, from then on, nowhere else. Raises `CannotListen`, and
        then it is as before."""
        kept, new = await self._bound(address)
        ports = [Port(sock) for sock in new]
        try:
            for port in ports:
                await self._open(port)
        except OSError as error:
            await self._shut(ports)
            raise CannotListen(f"can't listen on {address}: {error.strerror or error}") from None
        finally:
            _close(sock for sock in self._held if sock not in new)
            self._held = []
        left = [port for port in self._ports if port not in kept]
        moves = self.address is not None
        self._ports, self.address = [*kept, *ports], address
        if moves:
            log.info("now listening on %s", self.url)
        for port in left:
            await self._leave(port)

    async def aclose(self) -> None:
        self.release()
        await self._shut(self._ports)

    async def _bound(self, address: Address) -> tuple[list[Port], list[socket.socket]]:
        """The ports that serve it already, and bound sockets for the rest of it."""
        if address == self.address:
            return self._ports, []
        loop = asyncio.get_running_loop()
        kept: list[Port] = []
        new: list[socket.socket] = []
        refused: OSError | None = None
        try:
            found = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, place in dict.fromkeys((family, place) for family, *_, place in found):
                if port := self._at(self._ports, family, place):
                    kept.append(port)
                    continue
                held = next((s for s in self._held if _is_at(s, family, place)), None)
                try:
                    new.append(held or self._bind(family, place))
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    refused = error
            if refused is not None and not kept and not new:
                raise refused
        except OSError as error:
            _close(sock for sock in new if sock not in self._held)
            raise CannotListen(f"can't listen on {address}: {error.strerror or error}") from None
        return kept, new

    @staticmethod
    def _at(ports: Iterable[Port], family: int, place: Any) -> Port | None:
        return next((port for port in ports if _is_at(port.socket, family, place)), None)

    def _bind(self, family: int, place: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(place)
            except OSError as error:
                own = [port.socket for port in self._ports if port.place[2] == place[1]]
                if error.errno != errno.EADDRINUSE or not own:
                    raise
                # From 127.0.0.1 to 0.0.0.0, say: they overlap, and it is hxd that is in the way.
                _share([*own, sock], True)
                try:
                    sock.bind(place)
                finally:
                    _share(own, False)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _open(self, port: Port) -> None:
        """Raises `OSError`."""
        shared = [*(port.socket for port in self._ports), port.socket]
        overlaps = bool(port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
        if overlaps:
            _share(shared, True)
        try:
            port.socket.listen(BACKLOG)
        finally:
            # For good it would let a second daemon take half of the connections.
            if overlaps:
                _share(shared, False)
        port.server = await asyncio.get_running_loop().create_server(
            self._connection(port), sock=port.socket, backlog=BACKLOG
        )

    async def _leave(self, port: Port) -> None:
        """Closed, when everybody who has come as far as the kernel's queue is let in."""
        port.leaving = True
        last = port.socket.dup()
        last.setblocking(False)
        await self._shut([port])
        # From here on who knocks is not heard and knocks again, instead of being cut off.
        _deafen(last)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, _ = last.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break
                accepted.setblocking(False)
                await loop.connect_accepted_socket(self._connection(port), accepted)
        finally:
            last.close()

    @staticmethod
    async def _shut(ports: Sequence[Port]) -> None:
        for port in ports:
            if port.server is not None:
                port.server.close()
            else:
                port.socket.close()
        # The loop closes its own in its next turn.
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def _is_at(sock: socket.socket, family: int, place: Any) -> bool:
    """Port 0 is no place: it is another one every time."""
    return bool(place[1]) and (sock.family, *sock.getsockname()) == (family, *place)


def _share(sockets: Iterable[socket.socket], value: bool) -> None:
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def _deafen(sock: socket.socket) -> None:
    """A packet filter of one instruction, which lets nothing through."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
        )
    except OSError as error:
        log.debug("a socket that is given up hears on until it is closed: %s", error)


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()

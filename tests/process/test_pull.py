"""Pulls from a server that lies: the right bytes in the end, or a clear error and no file."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hxd.daemon.store.faults import Cancelled, Conflict, Corrupt, SourceFailed, StoreBroken
from hxd.daemon.store.pull import Fetched, Limits, fetch, parse
from hxd.daemon.store.pull.medium import Medium
from hxd.daemon.store.pull.part import State
from hxd.daemon.store.work import Work
from tests import lying_server as lie
from tests import misbehaving
from tests.lying_server import Behaviour, LyingServer
from tests.support import ROOT

PIECE = 4096
QUICK = Limits(
    piece=PIECE, stall=0.15, connect=5, save_seconds=0, write=1024, tick=0.01, reserve=0, backoff=1
)
DATA = b"GGUF" + random.Random(7).randbytes(10 * PIECE + 123)
OTHER = b"GGUF" + random.Random(8).randbytes(10 * PIECE + 123)
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = "/models/m.gguf"


class Instant:
    """A clock on which nobody waits. `slept` holds what they wanted to."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return 1_700_000_000.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def server() -> Iterator[LyingServer]:
    with LyingServer() as server:
        server.serve(PATH, DATA)
        yield server


def pull(
    server: LyingServer,
    folder: Path,
    text: str | None = None,
    *,
    sha256: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    limits: Limits = QUICK,
    clock: Instant | None = None,
    medium: Medium | None = None,
    work: Work | None = None,
) -> list[Fetched]:
    wanted = parse(
        text or server.url + PATH,
        endpoint=endpoint or server.url,
        token=token,
        sha256=sha256,
    )
    return fetch(
        wanted, folder, work or Work(), limits=limits, clock=clock or Instant(), medium=medium
    )


def plain(server: LyingServer, folder: Path, **settings: object) -> list[Fetched]:
    """From a server that is not the hub."""
    return pull(server, folder, endpoint="https://hub.invalid", **settings)  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_file_arrives_in_pieces_over_several_connections(
    server: LyingServer, tmp_path: Path
) -> None:
    [found] = plain(server, tmp_path)
    assert found == Fetched(tmp_path / "m.gguf", server.url + PATH, SHA256, len(DATA), '"one"')
    assert found.path.read_bytes() == DATA
    assert sorted(one.range for one in server.asked(PATH)) == [
        (at, min(at + PIECE, len(DATA))) for at in range(0, len(DATA), PIECE)
    ]
    assert names(tmp_path) == {"m.gguf", "m.gguf.state"}


def test_a_small_file_comes_in_one_piece(server: LyingServer, tmp_path: Path) -> None:
    plain(server, tmp_path, limits=Limits())
    assert len(server.asked(PATH)) == 1


RECOVERABLE: dict[str, list[Behaviour]] = {
    "cut": [lie.cut(0), lie.cut(10), lie.cut(1500), lie.cut(PIECE - 1)],
    "stalls": [lie.stall(0), lie.stall(1500)],
    "resets": [lie.refuse_connection, lie.refuse_connection],
    "not HTTP": [lie.no_http],
    "busy": [lie.status(429, Retry_After="7"), lie.status(503), lie.status(500)],
    "short": [lie.shorter, lie.shorter],
    "wrong range once": [lie.with_headers(Content_Range=f"bytes 5-{PIECE + 4}/{len(DATA)}")],
    "no Content-Range once": [lie.with_headers(Content_Range=None)],
    "ignores ranges": [lie.ignore_range],
    "ignores ranges, cut": [lie.ignore_range, lie.honest, lie.cut(3), lie.cut(5000), lie.cut(9)],
    "smaller Content-Length": [lie.with_headers(Content_Length="100")],
}


@pytest.mark.parametrize("behaviours", RECOVERABLE.values(), ids=RECOVERABLE.keys())
def test_a_failure_half_way_costs_no_more_than_a_retry(
    server: LyingServer, tmp_path: Path, behaviours: list[Behaviour]
) -> None:
    server.script(PATH, *behaviours)
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == DATA


NO_RANGES: dict[str, list[Behaviour]] = {
    "honest otherwise": [lie.ignore_range],
    "cut, ever later": [lie.cut(5000), lie.cut(12000), lie.cut(30000), lie.cut(100)],
    "stalls": [lie.stall(6000)],
}


@pytest.mark.parametrize("behaviours", NO_RANGES.values(), ids=NO_RANGES.keys())
def test_a_server_without_ranges_sends_one_stream(
    server: LyingServer, tmp_path: Path, behaviours: list[Behaviour]
) -> None:
    server.always(PATH, lie.ignore_range, "probe")
    server.always(PATH, lie.ignore_range)
    server.script(PATH, *behaviours)
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == DATA
    assert all(one.range is None for one in server.asked(PATH))


def test_a_server_that_says_no_length_is_read_to_the_end(
    server: LyingServer, tmp_path: Path
) -> None:
    server.always(PATH, lie.close_delimited, "probe")
    server.always(PATH, lie.close_delimited)
    seen: list[tuple[str, int, int]] = []
    work = Work(lambda *step: seen.append(step))
    [found] = plain(server, tmp_path, sha256=SHA256, work=work)
    assert (found.path.read_bytes(), found.size) == (DATA, len(DATA))
    assert {total for step, _, total in seen if step == "download"} == {0}


def test_a_file_of_unknown_length_and_digest_is_judged_by_its_header(
    server: LyingServer, tmp_path: Path
) -> None:
    server.always(PATH, lie.close_delimited, "probe")
    server.always(PATH, lie.close_delimited)
    with pytest.raises(Corrupt, match=r"m\.gguf: .* what arrived is deleted"):
        plain(server, tmp_path)
    assert names(tmp_path) == set()


def test_a_trickle_is_no_stall(server: LyingServer, tmp_path: Path) -> None:
    server.always(PATH, lie.trickle)
    limits = replace(QUICK, piece=1 << 20, stall=0.5)
    [found] = plain(server, tmp_path, limits=limits)
    assert found.path.read_bytes() == DATA
    assert len(server.asked(PATH)) == 1


UNRECOVERABLE: dict[str, tuple[Behaviour, str, str]] = {
    "web page": (lie.page, "probe", "web page"),
    "web page later": (lie.page, "data", "web page"),
    "gzip": (lie.gzipped, "data", "Content-Encoding 'gzip'"),
    "gzip at once": (lie.gzipped, "probe", "Content-Encoding 'gzip'"),
    "more bytes": (lie.longer, "data", "more than the 4096 bytes"),
    "larger Content-Length": (
        lie.with_headers(Content_Length="5000"), "data", "more than the 4096 bytes",
    ),
    "wrong ranges": (
        lie.with_headers(Content_Range=f"bytes 9-{PIECE + 8}/{len(DATA)}"), "data",
        "the server sent 9-4104",
    ),
    "stalls for ever": (lie.stall(0), "data", "silent for too long; 6 tries"),
    "no room": (lie.status(503), "data", "in trouble"),
    "busy for ever": (lie.status(429), "probe", r"busy \(429\)"),
    "forbidden": (lie.status(403), "probe", "refuses it"),
    "needs a key": (lie.status(401), "probe", "refuses it"),
    "absent": (lie.status(404), "probe", "no such file"),
    "gone": (lie.status(410), "probe", "no such file"),
    "teapot": (lie.status(418), "probe", "answered 418"),
    "not modified": (lie.status(304), "probe", "answered 304"),
    "nowhere": (lie.status(302), "probe", "answered 302"),
    "loop": (lie.redirect(PATH), "probe", "over 5 redirects"),
    "to a file": (lie.redirect("file:///etc/passwd"), "probe", "not followed"),
    "to FTP": (lie.redirect("ftp://127.0.0.1/x"), "probe", "not followed"),
    "in the clear": (lie.redirect("http://example.org/x"), "probe", "not followed"),
    "to nonsense": (lie.redirect("http://[::1/"), "probe", "not followed"),
    "empty": (lie.with_headers(Content_Range=None, Content_Length="0"), "probe", "tries"),
    "no HTTP": (lie.no_http, "probe", "not HTTP"),
    "resets": (lie.refuse_connection, "probe", "connection"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"), UNRECOVERABLE.values(), ids=UNRECOVERABLE.keys()
)
def test_what_can_not_be_had_is_a_clear_error_and_no_file(
    server: LyingServer, tmp_path: Path, behaviour: Behaviour, kind: str, message: str
) -> None:
    server.always(PATH, behaviour, kind)
    with pytest.raises(SourceFailed, match=message):
        plain(server, tmp_path, limits=replace(QUICK, stall=0.2))
    assert "m.gguf" not in names(tmp_path)


def test_an_empty_file_is_refused(server: LyingServer, tmp_path: Path) -> None:
    server.serve(PATH, b"")
    with pytest.raises(SourceFailed, match="empty"):
        plain(server, tmp_path)


def test_what_is_no_model_is_refused_by_its_first_bytes(
    server: LyingServer, tmp_path: Path
) -> None:
    server.serve(PATH, b"\x93NUMPY" + DATA)
    with pytest.raises(SourceFailed, match="starts with 93 4e 55"):
        plain(server, tmp_path)
    assert server.asked(PATH) == []


def test_a_file_of_no_telling_name_is_judged_at_the_end(
    server: LyingServer, tmp_path: Path
) -> None:
    url = server.serve("/model.bin", b"\x80\x02" + DATA)
    with pytest.raises(Corrupt, match="pickle"):
        plain(server, tmp_path, text=url)
    assert names(tmp_path) == set()


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with LyingServer() as server:
        url = server.url + PATH
    clock = Instant()
    with pytest.raises(SourceFailed, match=r"can't connect to 127\.0\.0\.1"):
        plain(server, tmp_path, text=url, clock=clock)
    assert len(clock.slept) == QUICK.tries - 1


def test_a_retry_after_is_heeded_up_to_a_minute(server: LyingServer, tmp_path: Path) -> None:
    server.script(
        PATH,
        lie.status(429, Retry_After="7"),
        lie.status(429, Retry_After="86400"),
        lie.status(503, Retry_After="Tue, 14 Nov 2023 22:13:50 GMT"),  # 30 s after Instant's
        kind="probe",
    )
    clock = Instant()
    plain(server, tmp_path, clock=clock)
    first, second, third = clock.slept
    assert 7 <= first <= 8
    assert second == 60
    assert 30 <= third <= 34


def test_a_file_that_changes_half_way_is_begun_anew(server: LyingServer, tmp_path: Path) -> None:
    server.script(PATH, lie.honest, lie.honest, lie.honest, lie.becomes(OTHER))
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == OTHER
    assert found.etag == '"two"'


def test_a_file_that_changes_its_size_is_begun_anew(server: LyingServer, tmp_path: Path) -> None:
    server.script(PATH, lie.honest, lie.becomes(OTHER[:5000], '"one"'))
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == OTHER[:5000]


def test_a_file_that_changes_again_and_again_is_given_up(
    server: LyingServer, tmp_path: Path
) -> None:
    server.always(PATH, lie.always_new)
    with pytest.raises(SourceFailed, match="changes while it is downloaded"):
        plain(server, tmp_path)


def test_servers_that_disagree_for_a_moment_are_asked_again(
    server: LyingServer, tmp_path: Path
) -> None:
    server.script(PATH, lie.honest, lie.with_headers(ETag='"old"'))
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == DATA


@pytest.mark.parametrize("headers", [{"ETag": 'W/"weak"'}, {"Last-Modified": "yesterday"}, {}])
def test_only_a_strong_validator_is_sent_with_a_range(
    server: LyingServer, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.serve(PATH, DATA, etag=None, headers=headers)
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == DATA
    condition = headers.get("Last-Modified")
    assert all(one.headers.get("if-range") == condition for one in server.asked(PATH))
    # Without one, parts of two versions could be mixed unseen.
    assert (len(server.asked(PATH)) > 1) == (condition is not None)


def test_the_wrong_bytes_are_fetched_once_more_and_then_deleted(
    server: LyingServer, tmp_path: Path
) -> None:
    with pytest.raises(Corrupt, match=SHA256):
        plain(server, tmp_path, sha256="0" * 64)
    assert names(tmp_path) == set()
    assert len(server.asked(PATH)) == 2 * 11


def test_a_digest_of_the_server_is_believed_where_nobody_else_names_one(
    server: LyingServer, tmp_path: Path
) -> None:
    digest = base64.b64encode(hashlib.sha256(OTHER).digest()).decode()
    server.serve(PATH, DATA, headers={"Repr-Digest": f"sha-256=:{digest}:"})
    with pytest.raises(Corrupt):
        plain(server, tmp_path)
    [found] = plain(server, tmp_path, sha256=SHA256)
    assert found.sha256 == SHA256


# The hub


def hub_url(revision: str = "main") -> str:
    return f"/owner/repo/resolve/{revision}/m.gguf"


@pytest.fixture
def cdn(server: LyingServer) -> Iterator[LyingServer]:
    """Where `server` sends those who ask it, as the hub, for the data of a file in LFS."""
    with LyingServer() as cdn:
        link = cdn.serve("/cdn", DATA, etag='"cdn"') + "?Signature=secret"
        server.always(hub_url(), lie.hub_head(DATA, link), "head")
        for kind in ("probe", "data"):
            server.always(hub_url("c" * 40), lie.redirect(link), kind)
        yield cdn


def test_a_file_of_the_hub_is_pinned_to_its_commit_and_checked(
    server: LyingServer, cdn: LyingServer, tmp_path: Path
) -> None:
    [found] = pull(server, tmp_path, "hf:owner/repo/m.gguf")
    assert found.path.read_bytes() == DATA
    assert found.url == server.url + hub_url("c" * 40)
    assert found.etag == f'"{SHA256}"'
    # The link is not asked for again with every piece.
    assert len(server.requests) == 2


def test_the_token_of_the_hub_is_told_to_nobody_else(
    server: LyingServer, cdn: LyingServer, tmp_path: Path
) -> None:
    pull(server, tmp_path, "hf:owner/repo/m.gguf", token="hf_secret")
    assert all(one.headers["authorization"] == "Bearer hf_secret" for one in server.requests)
    assert cdn.requests
    assert all("authorization" not in one.headers for one in cdn.requests)
    assert "secret" not in (tmp_path / "m.gguf.state").read_text()


def test_a_user_and_password_stay_with_their_server(server: LyingServer, tmp_path: Path) -> None:
    with LyingServer() as other:
        link = other.serve("/cdn", DATA)
        for kind in ("probe", "data"):
            server.always(PATH, lie.redirect(link), kind)
        url = server.url.replace("http://", "http://me:hidden@") + PATH
        [found] = plain(server, tmp_path, text=url)
        assert "hidden" not in found.url
        assert all(one.headers["authorization"].startswith("Basic") for one in server.requests)
        assert all("authorization" not in one.headers for one in other.requests)


def test_the_hubs_sha256_is_believed_over_what_arrives(
    server: LyingServer, cdn: LyingServer, tmp_path: Path
) -> None:
    link = cdn.url + "/cdn"
    server.always(hub_url(), lie.hub_head(DATA, link, "1" * 64), "head")
    with pytest.raises(Corrupt, match="should be 1111"):
        pull(server, tmp_path, "hf:owner/repo/m.gguf")
    assert names(tmp_path) == set()


def test_a_link_that_expires_is_asked_for_again(
    server: LyingServer, cdn: LyingServer, tmp_path: Path
) -> None:
    cdn.script("/cdn", lie.honest, lie.honest)
    cdn.always("/cdn", lie.status(403))
    renewed = cdn.serve("/renewed", DATA, etag='"cdn"')
    server.always(hub_url("c" * 40), lie.redirect(renewed))
    [found] = pull(server, tmp_path, "hf:owner/repo/m.gguf")
    assert found.path.read_bytes() == DATA


def test_a_small_file_of_the_hub_is_not_linked(server: LyingServer, tmp_path: Path) -> None:
    headers = {"X-Repo-Commit": "c" * 40}
    server.serve(hub_url(), DATA, headers=headers)
    server.serve(hub_url("c" * 40), DATA, headers=headers)
    [found] = pull(server, tmp_path, "hf:owner/repo/m.gguf")
    assert (found.path.read_bytes(), found.etag) == (DATA, '"one"')


def test_a_renamed_repository_is_followed_with_the_token(
    server: LyingServer, tmp_path: Path
) -> None:
    new = "/new/repo/resolve/main/m.gguf"
    server.serve(new, DATA)
    for kind in ("head", "probe", "data"):
        server.always(hub_url(), lie.redirect(new, 307), kind)
    [found] = pull(server, tmp_path, "hf:owner/repo/m.gguf", token="t")
    assert found.path.read_bytes() == DATA
    assert all("authorization" in one.headers for one in server.requests)


@pytest.mark.parametrize(
    ("answer", "token", "message"),
    [
        (lie.status(401), None, "set HF_TOKEN"),
        (lie.status(403, X_Error_Code="GatedRepo"), "t", "accept its conditions"),
        (lie.status(404, X_Error_Code="EntryNotFound"), None, "no such file in the repository"),
        (lie.status(404, X_Error_Code="RevisionNotFound"), None, "no such branch"),
        (lie.status(404, X_Error_Code="RepoNotFound"), None, "no such repository"),
    ],
)
def test_what_the_hub_refuses_says_what_mends_it(
    server: LyingServer, tmp_path: Path, answer: Behaviour, token: str | None, message: str
) -> None:
    server.always(hub_url(), answer, "head")
    with pytest.raises(SourceFailed, match=message):
        pull(server, tmp_path, "hf:owner/repo/m.gguf", token=token)


def test_a_mirror_that_knows_no_head_will_do(server: LyingServer, tmp_path: Path) -> None:
    server.serve(hub_url(), DATA)
    server.always(hub_url(), lie.status(405), "head")
    [found] = pull(server, tmp_path, "hf:owner/repo/m.gguf")
    assert found.path.read_bytes() == DATA


def test_all_shards_come_from_one_commit(server: LyingServer, tmp_path: Path) -> None:
    shards = [b"GGUF" + bytes([number]) * 9000 for number in range(3)]
    for number, data in enumerate(shards):
        for revision in ("main", "c" * 40):
            path = f"/o/r/resolve/{revision}/q/m-{number + 1:05}-of-00003.gguf"
            server.serve(path, data, headers={"X-Repo-Commit": "c" * 40})
    found = pull(server, tmp_path, "hf:o/r/q/m-00002-of-00003.gguf")
    assert [one.path.name for one in found] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [one.path.read_bytes() for one in found] == shards
    assert sum("/main/" in one.path for one in server.requests) == 1


# Encryption


def test_a_certificate_that_the_system_trusts_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, own = misbehaving.certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with LyingServer(own) as server:
        server.serve(PATH, DATA)
        [found] = plain(server, tmp_path / "pull")
        assert found.path.read_bytes() == DATA


def test_a_certificate_that_nobody_trusts_is_refused_at_once(tmp_path: Path) -> None:
    _, own = misbehaving.certificate(tmp_path)
    clock = Instant()
    with LyingServer(own) as server:
        server.serve(PATH, DATA)
        with pytest.raises(SourceFailed, match=r"certificate of 127\.0\.0\.1 .*self-signed"):
            plain(server, tmp_path / "pull", clock=clock)
        assert server.requests == []
    assert clock.slept == []


def test_a_redirect_out_of_the_encryption_is_not_followed(
    server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, own = misbehaving.certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with LyingServer(own) as safe:
        safe.always(PATH, lie.redirect(server.url + PATH), "probe")
        with pytest.raises(SourceFailed, match="not encrypted"):
            plain(safe, tmp_path / "pull")
    assert server.requests == []


# Stopping, resuming, and the disk


def test_a_name_that_is_looked_up_for_ever_does_not_keep_a_pull_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        asked.set()
        answer.wait(20)
        raise socket.gaierror("at last")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    wanted = parse("https://models.invalid/m.gguf", endpoint=None, token=None, sha256=None)
    work = Work()
    stopper = threading.Thread(target=lambda: (asked.wait(20), work.stop()))
    stopper.start()
    with pytest.raises(Cancelled):
        fetch(wanted, tmp_path, work, limits=QUICK)
    assert not answer.is_set()
    answer.set()
    stopper.join()


def test_what_is_stopped_is_resumed(server: LyingServer, tmp_path: Path) -> None:
    server.script(PATH, *[lie.honest] * 4)
    server.always(PATH, lie.stall(100))
    work = Work()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            plain(server, tmp_path, work=work, limits=replace(QUICK, stall=60))
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    server.wait(lambda: len(server.asked(PATH)) == 8)
    with pytest.raises(Conflict):
        plain(server, tmp_path)
    work.stop()
    thread.join(5)
    assert len(errors) == 1
    assert names(tmp_path) == {"m.gguf.part", "m.gguf.state"}
    resumed(server, tmp_path, least=4 * PIECE)


def recorded(folder: Path) -> list[tuple[int, int]]:
    return msgspec.json.decode((folder / "m.gguf.state").read_bytes(), type=State).ranges


def resumed(server: LyingServer, folder: Path, *, least: int) -> None:
    """Pulls again, from a server that is honest now, and no byte that was written down twice."""
    had = recorded(folder)
    assert sum(end - start for start, end in had) >= least
    before = len(server.asked(PATH))
    server.always(PATH, lie.honest)
    [found] = plain(server, folder)
    assert found.path.read_bytes() == DATA
    for one in server.asked(PATH)[before:]:
        assert one.range is not None
        start, end = one.range
        assert not any(start < until and have < end for have, until in had), (one.range, had)


CHILD = """
import sys
from pathlib import Path
from tests.process.test_pull import QUICK
from dataclasses import replace
from hxd.daemon.store.pull import fetch, parse
from hxd.daemon.store.work import Work
wanted = parse(sys.argv[1], endpoint=None, token=None, sha256=None)
fetch(wanted, Path(sys.argv[2]), Work(), limits=replace(QUICK, stall=60))
"""


@pytest.mark.parametrize("honest", [1, 6, 9])
def test_what_is_killed_is_resumed(server: LyingServer, tmp_path: Path, honest: int) -> None:
    server.script(PATH, *[lie.honest] * honest)
    server.always(PATH, lie.stall(0))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url + PATH, str(tmp_path)], cwd=ROOT
    )
    try:
        # A connection asks for its next piece when the last one is written down.
        asked = honest + min(4, 11 - honest)
        server.wait(lambda: len(server.asked(PATH)) == asked)
    finally:
        child.kill()
        child.wait()
    assert "m.gguf" not in names(tmp_path)
    resumed(server, tmp_path, least=PIECE)


def test_a_finished_file_is_checked_again_but_not_fetched(
    server: LyingServer, tmp_path: Path
) -> None:
    plain(server, tmp_path)
    before = len(server.asked(PATH))
    [found] = plain(server, tmp_path)
    assert (found.sha256, len(server.asked(PATH))) == (SHA256, before)


def test_a_resumed_part_that_was_damaged_is_fetched_anew(
    server: LyingServer, tmp_path: Path
) -> None:
    plain(server, tmp_path)
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    [found] = plain(server, tmp_path, sha256=SHA256)
    assert found.path.read_bytes() == DATA


@pytest.mark.parametrize(
    "state",
    [b"", b"{}", b"\xff\x00garbage", b"[" * 100_000, b"null"],
    ids=["empty", "bare", "garbage", "deep", "null"],
)
def test_a_state_that_is_garbage_begins_anew(
    server: LyingServer, tmp_path: Path, state: bytes
) -> None:
    (tmp_path / "m.gguf.part").write_bytes(OTHER)
    (tmp_path / "m.gguf.state").write_bytes(state)
    [found] = plain(server, tmp_path)
    assert found.path.read_bytes() == DATA
    assert len(server.asked(PATH)) == 11


class SmallDisk(Medium):
    """Takes `writes` writes, then is full; says that there are `free` bytes."""

    def __init__(self, writes: int = 1 << 30, free: int = 1 << 50) -> None:
        self.writes = writes
        self.free = free

    def room(self, folder: Path) -> int:
        return self.free

    def write(self, descriptor: int, data: bytes, at: int) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, at)


def test_too_little_room_is_told_before_anything_is_fetched(
    server: LyingServer, tmp_path: Path
) -> None:
    with pytest.raises(StoreBroken, match=r"needs 41\.1 kB more and there are 1\.5 kB free"):
        plain(server, tmp_path, medium=SmallDisk(free=1500))
    assert server.asked(PATH) == []


def test_a_disk_that_fills_up_keeps_what_arrived(server: LyingServer, tmp_path: Path) -> None:
    with pytest.raises(
        StoreBroken,
        match=r"can.t write m\.gguf, of which everything that arrived is kept: No space",
    ):
        plain(server, tmp_path, medium=SmallDisk(writes=4))
    resumed(server, tmp_path, least=PIECE)


def test_a_server_that_never_ends_does_not_fill_the_disk(
    server: LyingServer, tmp_path: Path
) -> None:
    server.always(PATH, lie.close_delimited, "probe")
    server.always(PATH, lie.close_delimited)
    with pytest.raises(StoreBroken, match="does not say how long"):
        plain(server, tmp_path, medium=SmallDisk(free=100), limits=replace(QUICK, reserve=101))


def test_a_file_of_unknown_length_leaves_the_reserve_to_the_last_byte(
    server: LyingServer, tmp_path: Path
) -> None:
    class Shrinking(SmallDisk):
        def write(self, descriptor: int, data: bytes, at: int) -> None:
            super().write(descriptor, data, at)
            self.free -= len(data)

    server.always(PATH, lie.close_delimited, "probe")
    server.always(PATH, lie.close_delimited)
    disk = Shrinking(free=20_000)
    # What is there is written down once a day: the disk is looked at all the same.
    seldom = replace(QUICK, reserve=5000, save_seconds=86400)
    with pytest.raises(StoreBroken, match="does not say how long"):
        plain(server, tmp_path, medium=disk, limits=seldom)
    assert disk.free >= 5000


def test_a_connection_that_is_refused_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with LyingServer() as server:
        url = server.url + PATH
    with pytest.raises(SourceFailed, match=r"can't connect to 127\.0\.0\.1: Connection refused;"):
        plain(server, tmp_path, text=url)


def test_progress_is_told_and_ends_with_everything(server: LyingServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    plain(server, tmp_path, work=Work(lambda *step: seen.append(step)))
    downloads = [(done, total) for step, done, total in seen if step == "download"]
    assert downloads[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in downloads] == sorted(done for done, _ in downloads)
    assert seen[-1] == ("verify", len(DATA), len(DATA))


def test_no_secret_of_a_url_is_in_an_error(server: LyingServer, tmp_path: Path) -> None:
    server.always(PATH, lie.status(404), "probe")
    url = server.url.replace("http://", "http://me:hidden@") + PATH + "?key=hidden"
    with pytest.raises(SourceFailed) as caught:
        plain(server, tmp_path, text=url)
    assert "hidden" not in str(caught.value)


faults = st.one_of(
    st.integers(0, 9000).map(lie.cut),
    st.integers(0, 9000).map(lie.stall),
    st.sampled_from(
        [
            lie.honest,
            lie.refuse_connection,
            lie.ignore_range,
            lie.shorter,
            lie.status(503),
            lie.status(429, Retry_After="3"),
            lie.with_headers(Content_Range=None),
        ]
    ),
)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schedule=st.lists(faults, max_size=8), ranges=st.booleans())
def test_any_schedule_of_failures_ends_with_the_right_bytes(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[Behaviour], ranges: bool
) -> None:
    with LyingServer() as server:
        server.serve(PATH, DATA)
        if not ranges:
            server.always(PATH, lie.ignore_range, "probe")
            server.always(PATH, lie.ignore_range)
        server.script(PATH, *schedule)
        # As many tries as there are failures, so that every schedule can be overcome.
        limits = replace(QUICK, stall=0.03, tries=len(schedule) + 2)
        [found] = plain(server, tmp_path_factory.mktemp("any"), limits=limits)
        assert found.path.read_bytes() == DATA

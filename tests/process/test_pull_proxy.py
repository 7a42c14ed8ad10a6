"""Pulls through a proxy: a real one, which leads names that do not exist to the test's server."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hxd.config.settings import Pull
from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull import Fetched, fetch, parse, proxies
from hxd.daemon.store.work import Work
from tests import lying_server as lie
from tests.connect_proxy import ConnectProxy
from tests.lying_server import LyingServer
from tests.process.test_pull import DATA, PATH, QUICK, Instant

HOST = "models.example"
LOGIN = "me:p@ss"


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    """What a server of the name `HOST` needs; pulls trust it."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hxd test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(HOST), x509.DNSName("cdn.example")]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, own = folder / "ca.pem", folder / "own.pem"
    trusted.write_bytes(made.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    own.write_bytes(trusted.read_bytes() + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(trusted))
        yield context


def pull(
    folder: Path, url: str, proxy: str, *, token: str | None = None, **settings: Any
) -> list[Fetched]:
    hub = f"https://{HOST}" if token else "https://hub.invalid"
    wanted = parse(url, endpoint=hub, token=token, sha256=None, allow_http=True)
    through = proxies(Pull(proxy=proxy, **settings), {})
    return fetch(wanted, folder, Work(), proxies=through, limits=QUICK, clock=Instant())


def with_login(proxy: ConnectProxy) -> str:
    return f"http://me:p%40ss@{proxy.address}"


def test_an_encrypted_file_comes_through_tunnels_that_show_its_host_only(
    encrypted: ssl.SSLContext, tmp_path: Path
) -> None:
    with LyingServer(encrypted) as server, ConnectProxy(server.url, login=LOGIN) as proxy:
        server.serve(PATH, DATA)
        server.script(PATH, lie.cut(100), lie.refuse_connection)
        [found] = pull(tmp_path, f"https://{HOST}{PATH}", with_login(proxy), token="hf_secret")
        assert found.path.read_bytes() == DATA
        assert {(method, target) for method, target, _ in proxy.asked} == {
            ("CONNECT", f"{HOST}:443")
        }
        assert "hf_secret" not in str(proxy.asked) and PATH not in str(proxy.asked)
        assert all("proxy-authorization" not in one.headers for one in server.requests)
        assert all(one.headers["authorization"] == "Bearer hf_secret" for one in server.requests)
    assert "p@ss" not in (tmp_path / "m.gguf.state").read_text()


def test_the_proxy_is_asked_for_where_a_redirect_leads_and_gets_no_token(
    encrypted: ssl.SSLContext, tmp_path: Path
) -> None:
    with LyingServer(encrypted) as server, ConnectProxy(server.url) as proxy:
        server.serve("/cdn", DATA)
        for kind in ("head", "probe", "data"):
            server.always(PATH, lie.redirect("https://cdn.example/cdn"), kind)
        [found] = pull(tmp_path, f"https://{HOST}{PATH}", proxy.url, token="hf_secret")
        assert found.path.read_bytes() == DATA
        assert {target for _, target, _ in proxy.asked} == {f"{HOST}:443", "cdn.example:443"}
        assert all("authorization" not in one.headers for one in server.asked("/cdn"))


def test_what_is_not_encrypted_is_asked_for_by_its_whole_url(tmp_path: Path) -> None:
    with LyingServer() as server, ConnectProxy(server.url, login=LOGIN) as proxy:
        server.serve(PATH, DATA)
        [found] = pull(tmp_path, f"http://{HOST}{PATH}", with_login(proxy))
        assert found.path.read_bytes() == DATA
        assert ("GET", f"http://{HOST}{PATH}") in {one[:2] for one in proxy.asked}
        assert all("proxy-authorization" not in one.headers for one in server.requests)


def test_loopback_and_what_no_proxy_lists_are_asked_directly(tmp_path: Path) -> None:
    with LyingServer() as server, ConnectProxy(server.url) as proxy:
        server.serve(PATH, DATA)
        pull(tmp_path / "loopback", server.url + PATH, proxy.url)
        with pytest.raises(SourceFailed, match=f"the name {HOST} is not found"):
            pull(tmp_path / "listed", f"http://{HOST}{PATH}", proxy.url, no_proxy=("example",))
        assert proxy.asked == []


def test_a_redirect_to_this_machine_is_not_followed_to_it_nor_through_the_proxy(
    tmp_path: Path,
) -> None:
    with LyingServer() as server, ConnectProxy(server.url) as proxy:
        port = server.url.rpartition(":")[2]
        server.serve("/own", DATA)
        for host in ("127.0.0.1", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost."):
            server.always(PATH, lie.redirect(f"http://{host}:{port}/own"), "probe")
            with pytest.raises(SourceFailed, match="not followed"):
                pull(tmp_path, f"http://{HOST}{PATH}", proxy.url)
        assert server.asked("/own", "probe") == []


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_wants_another_password_is_told_without_it(
    tmp_path: Path, scheme: str
) -> None:
    with LyingServer() as server, ConnectProxy(server.url, login=LOGIN) as proxy:
        url = f"{scheme}://{HOST}{PATH}"
        with pytest.raises(SourceFailed, match=r"wants a user and a password \(407\).*pull\.proxy"):
            pull(tmp_path, url, proxy.url)
        with pytest.raises(SourceFailed, match="refuses the user and password") as refused:
            pull(tmp_path, url, f"http://me:hidden@{proxy.address}")
        assert f"the proxy {proxy.url} " in str(refused.value)
        assert "hidden" not in str(refused.value)
        assert server.requests == []


@pytest.mark.parametrize(
    ("status", "words", "asked"),
    [
        (403, r"does not let it through \(403\)", 1),
        (302, r"does not let it through \(302\)", 1),
        (503, r"can't reach the server \(503\)", QUICK.tries),
    ],
)
def test_a_proxy_that_does_not_connect_is_told_apart_from_the_server(
    tmp_path: Path, status: int, words: str, asked: int
) -> None:
    with ConnectProxy("http://127.0.0.1:1", status=status) as proxy:
        with pytest.raises(SourceFailed, match=words):
            pull(tmp_path, f"https://{HOST}{PATH}", proxy.url)
        assert len(proxy.asked) == asked


def test_a_proxy_that_is_not_there_is_told(tmp_path: Path) -> None:
    with ConnectProxy("http://127.0.0.1:1") as proxy:
        gone = proxy.address
    with pytest.raises(SourceFailed, match=rf"can't connect to the proxy {gone}: "):
        pull(tmp_path, f"https://{HOST}{PATH}", f"http://me:hidden@{gone}")

"""Through which proxy a URL is asked for, and what an operator may write."""

from __future__ import annotations

import base64

import pytest

from hxd.config import kinds
from hxd.config.masking import masked
from hxd.config.settings import Pull
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.pull.address import is_loopback
from hxd.daemon.store.pull.proxy import proxies

MODEL = "https://models.example/m.gguf"


def through(url: str, settings: Pull | None = None, **environment: str) -> str | None:
    found = proxies(settings or Pull(), environment).for_url(url)
    return None if found is None else found.url


def test_the_environment_names_a_proxy_for_each_scheme() -> None:
    both = {"HTTPS_PROXY": "http://one:1", "HTTP_PROXY": "http://two:2"}
    assert through(MODEL, **both) == "http://one:1"
    assert through("http://models.example/", **both) == "http://two:2"
    assert through(MODEL, https_proxy="http://small:1", HTTPS_PROXY="http://LARGE:1") == (
        "http://small:1"
    )
    assert through(MODEL, ALL_PROXY="proxy.example:3128/") == "http://proxy.example:3128"
    assert through(MODEL, http_proxy="http://two:2") is None
    assert through(MODEL, HTTPS_PROXY=" ") is None
    assert through(MODEL) is None


def test_the_setting_comes_before_the_environment() -> None:
    environment = {"HTTPS_PROXY": "http://other:1", "NO_PROXY": "*"}
    assert through(MODEL, Pull(proxy="http://mine:3128"), **environment) == "http://mine:3128"
    assert through(MODEL, Pull(proxy="none"), HTTPS_PROXY="http://other:1") is None


def test_user_and_password_are_decoded_and_not_shown() -> None:
    setting = Pull(proxy="http://me:p%40ss%3A@proxy.example:3128")
    found = proxies(setting, {}).for_url(MODEL)
    assert found is not None
    assert base64.b64decode((found.authorization or "").removeprefix("Basic ")) == b"me:p@ss:"
    assert repr(found) == "Proxy(url='http://proxy.example:3128', said_by='pull.proxy')"
    assert masked("proxy", setting.proxy) == "http://•••@proxy.example:3128"
    assert masked("proxy", "http://me:p@ss@proxy.example") == "http://•••@proxy.example"


@pytest.mark.parametrize(
    ("listed", "host", "direct"),
    [
        ("models.example", "models.example", True),
        ("example", "models.example", True),
        (".example", "models.EXAMPLE.", True),
        ("*.example", "models.example", True),
        ("xample", "models.example", False),
        ("models.example:8443", "models.example", False),
        ("models.example:8443", "models.example:8443", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "models.example", False),
        ("fd00::/8", "[fd00::1]", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("a, *", "models.example", True),
        ("", "models.example", False),
    ],
)
def test_some_hosts_are_asked_directly(listed: str, host: str, direct: bool) -> None:
    url = f"https://{host}/m.gguf"
    found = through(url, HTTPS_PROXY="http://proxy:1", NO_PROXY=listed)
    assert (found is None) == direct
    if "," not in listed and listed:
        setting = Pull(proxy="http://proxy:1", no_proxy=kinds.hosts([listed]))
        assert (through(url, setting) is None) == direct


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "0.0.0.0", "[::1]", "[::]",
             "[::ffff:127.0.0.1]", "localhost.", "x.LOCALHOST"],
)  # fmt: skip
def test_this_machine_is_never_asked_through_a_proxy(host: str) -> None:
    assert is_loopback(host.strip("[]"))
    assert through(f"http://{host}:8420/", Pull(proxy="http://proxy:1")) is None


@pytest.mark.parametrize("host", ["10.0.0.1", "example.com", "127.example.com", "::2", "1.2.3"])
def test_others_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("proxy.example:3128", "not the URL of a proxy"),
        ("socks5://me:hidden@proxy:1080", "not socks5://"),
        ("https://me:hidden@proxy:1", "not https://"),
        ("http://me:hid@den@proxy:1", "percent-encoded"),
        ("http://me:hid/den@proxy:1", "not the URL|percent-encoded"),
        ("http://me:hid#den@proxy:1", "not the URL|percent-encoded"),
        ("http://m%3Ae:hidden@proxy:1", "percent-encoded"),
        ("http://me:hidd\u00e9n@proxy:1", "percent-encoded"),
        ("http://me:hid den@proxy:1", "percent-encoded"),
        ("http://me:hidden@proxy:99999", "not the URL"),
        ("http://me:hidden@:1", "no host"),
        ("http://[::1", "not the URL"),
    ],
)
def test_a_proxy_that_is_none_is_refused_without_showing_it(value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        kinds.proxy(value)
    assert "hid" not in str(refused.value)
    if "://" in value:
        with pytest.raises(StoreError, match="HTTPS_PROXY in the daemon's environment") as told:
            proxies(Pull(), {"HTTPS_PROXY": value})
        assert "hid" not in str(told.value)


@pytest.mark.parametrize("item", ["https://x/", "a b", "10.0.0.0/99", "a,b", "*x"])
def test_what_is_no_host_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        kinds.hosts([item])

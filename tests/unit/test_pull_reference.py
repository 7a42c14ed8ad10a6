"""What is taken as the name of something to pull, and what is asked for then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.store.faults import BadName
from hxd.daemon.store.pull.reference import Wanted, at_commit, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def wanted(text: str, **settings: object) -> Wanted:
    given = {"endpoint": None, "token": None, "sha256": None, **settings}
    return parse(text, **given)  # type: ignore[arg-type]


def url(text: str, **settings: object) -> str:
    [file] = wanted(text, **settings).files
    return file.url


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("hf:o/r/m.gguf", "o/r/resolve/main/m.gguf"),
        ("hf:o/r/Q4/m.gguf", "o/r/resolve/main/Q4/m.gguf"),
        ("hf:o/r/m.gguf@v1.0", "o/r/resolve/v1.0/m.gguf"),
        ("hf:o/r/m.gguf@refs/pr/1", "o/r/resolve/refs%2Fpr%2F1/m.gguf"),
        ("hf:o/r/a model?#.gguf", "o/r/resolve/main/a%20model%3F%23.gguf"),
        ("hf:o-o/r.r_1/m.gguf", "o-o/r.r_1/resolve/main/m.gguf"),
    ],
)
def test_a_reference_to_the_hub_becomes_its_url(text: str, path: str) -> None:
    assert url(text) == f"https://huggingface.co/{path}"
    assert url(text, endpoint="https://mirror/hf/") == f"https://mirror/hf/{path}"


@pytest.mark.parametrize(
    "text",
    [
        "", "m.gguf", "hf:", "hf:o", "hf:o/r", "hf:o/r/", "hf:/r/m.gguf", "hf:o//m.gguf",
        "hf:../r/m.gguf", "hf:o/../m.gguf", "hf:o/r/../m.gguf", "hf:o/r/./m.gguf",
        "hf:o/r/a//m.gguf", "hf:o/r/a\\m.gguf", "hf:o/r/m.gguf@", "hf:o/r/m.gguf@a b",
        "hf:o/r/m.gguf@../..", "hf:o/r/.hidden", "hf:o/r/m\n.gguf", "hf:o?x/r/m.gguf",
        "file:///etc/passwd", "ftp://h/m.gguf", "https://", "https:///m.gguf", "https://h",
        "https://h/", "https://h/a/", "https://h/%2e%2e", "https://h/a%2fb", "https://h/a%00b",
        "https://h:port/m.gguf", "https://[::1/m.gguf", "https://h/" + "m" * 300,
        "http://example.org/m.gguf", "https://h/a b\tc", "hf:o/r/m-00003-of-00002.gguf",
        "hf:o/r/m-00000-of-00002.gguf", "hf:o/r/m-00001-of-99999.gguf",
        "https://huggingface.co/o/r/blob/main/m.gguf",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        wanted(text)


@given(st.text(max_size=80), st.sampled_from(["", "hf:", "hf:o/r/", "https://", "https://h/"]))
def test_no_text_breaks_the_parser(text: str, start: str) -> None:
    try:
        found = wanted(start + text)
    except BadName:
        return
    for file in found.files:
        assert file.url.isascii()
        assert file.url.startswith("https://")
        assert "/" not in file.name
        assert file.name not in ("", ".", "..")


def test_plain_http_is_for_this_machine_unless_it_is_allowed() -> None:
    for host in ("127.0.0.1:80", "[::1]", "localhost", "models.localhost"):
        assert url(f"http://{host}/m.gguf") == f"http://{host}/m.gguf"
    for host in ("10.0.0.1", "example.org", "127.0.0.1.example.org", "localhost.example.org"):
        with pytest.raises(BadName, match="https"):
            wanted(f"http://{host}/m.gguf")
        assert url(f"http://{host}/m.gguf", allow_http=True) == f"http://{host}/m.gguf"
    with pytest.raises(BadName, match="https"):
        wanted("hf:o/r/m.gguf", endpoint="http://mirror.example.org")


def test_a_signed_url_stays_byte_by_byte_and_loses_its_fragment() -> None:
    text = "https://h/a%2Bb/m.gguf?X-Sig=a%2fB+c==&e=1"
    assert url(text + "#top") == text


def test_all_shards_are_wanted_whichever_is_named() -> None:
    found = wanted("hf:o/r/q/m-00002-of-00003.gguf@v1")
    assert [file.name for file in found.files] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert all(
        file.url == f"https://huggingface.co/o/r/resolve/v1/q/{file.name}" for file in found.files
    )


def test_each_shard_may_have_its_sha256() -> None:
    found = wanted("https://h/m-00001-of-00002.gguf?k=1", sha256="A" * 64 + ", " + "b" * 64)
    assert [file.sha256 for file in found.files] == ["a" * 64, "b" * 64]
    assert [file.url for file in found.files] == [
        f"https://h/m-0000{number}-of-00002.gguf?k=1" for number in (1, 2)
    ]
    with pytest.raises(BadName, match="1 sha256 for 2 files"):
        wanted("https://h/m-00001-of-00002.gguf", sha256="a" * 64)
    with pytest.raises(BadName, match="sha256"):
        wanted("https://h/m.gguf", sha256="abc")


def test_the_token_is_for_the_hub_alone() -> None:
    home = {"https://huggingface.co:443": "Bearer hf_x"}
    assert wanted("hf:o/r/m.gguf", token="hf_x\n").authorization == home
    # A redirect to the hub may need it, so it is there; `Web` looks at where it asks.
    assert wanted("https://h/m.gguf", token="hf_x").authorization == home
    assert wanted("https://h/m.gguf", token="hf_x").hub is None
    link = "https://huggingface.co/o/r/resolve/main/m.gguf"
    assert wanted(link, token="hf_x").hub == "https://huggingface.co:443"
    with pytest.raises(BadName, match="HF_TOKEN"):
        wanted("hf:o/r/m.gguf", token="a\r\nHost: b")


def test_secrets_are_in_no_text_of_what_is_wanted() -> None:
    found = wanted("https://me:hidden@h/m.gguf?k=hidden", token="hidden")
    assert found.authorization["https://h:443"] == "Basic bWU6aGlkZGVu"
    assert "@" not in found.files[0].url
    assert "hidden" not in repr(found) + found.shown
    for wrong in ("me:hidden@h/m.gguf", "https://me:hidden@h:x/m.gguf", "https://me:hidden@h/"):
        with pytest.raises(BadName) as caught:
            wanted(wrong)
        assert "hidden" not in str(caught.value)


def test_a_commit_takes_the_place_of_a_branch() -> None:
    assert at_commit(url("hf:o/r/a/m.gguf@refs/pr/1"), COMMIT) == (
        f"https://huggingface.co/o/r/resolve/{COMMIT}/a/m.gguf"
    )
    assert at_commit(url("hf:o/resolve/resolve/x.gguf"), COMMIT) == (
        f"https://huggingface.co/o/resolve/resolve/{COMMIT}/resolve/x.gguf"
    )
    for other in (None, "main", "../../x", COMMIT.upper()):
        assert at_commit(url("hf:o/r/m.gguf"), other) == url("hf:o/r/m.gguf")

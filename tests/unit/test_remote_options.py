"""Options of a remote model and its key: what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugins.remote import client, key, options
from plugins.remote.main import hxd_backend, hxd_describe

URL = "http://127.0.0.1:8000/v1"
SECRET = "sk-0123456789"


def refusal(**given: Any) -> str:
    with pytest.raises(ValueError) as caught:
        options.read({"url": URL, **given})
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_the_plugin_needs_no_file() -> None:
    assert hxd_describe().formats == {"none"}


def test_only_the_url_is_needed() -> None:
    read = options.read({"url": URL + "/"})
    assert (read.url, read.root, read.place) == (URL, "http://127.0.0.1:8000", "127.0.0.1:8000")
    with pytest.raises(ValueError, match="option url: it is needed"):
        options.read({})


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://h/v1", "http://", "http:///v1", "http://h:0/v1", "http://h:x/v1",
     "http://h:99999/v1", "http://h/v 1", "http://h/\n", "http://[::1/v1", 8000, None, ["http://h"],
     "http://hö/v1"],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: Any) -> None:
    assert refusal(url=url).startswith("option url: ")


@pytest.mark.parametrize(
    "url",
    [f"http://user:{SECRET}@h/v1", f"http://{SECRET}@h/v1", f"http://h/v1?key={SECRET}",
     f"http://h/v1#{SECRET}"],
)  # fmt: skip
def test_a_url_with_a_secret_in_it_says_where_keys_go(url: str) -> None:
    assert "key_env" in refusal(url=url)


@pytest.mark.parametrize("name", ["key", "api_key", "token", "password", "secret"])
def test_a_key_in_the_config_is_refused_with_the_right_place(name: str) -> None:
    said = refusal(**{name: SECRET})
    assert said.startswith(f"option {name}: a key never stands in the config")
    assert "key_env" in said
    assert "key_file" in said


@pytest.mark.parametrize(
    "name", ["Authorization", "X-API-Key", "api-key", "Cookie", "proxy-authorization"]
)
def test_a_key_among_the_headers_is_refused_with_the_right_place(name: str) -> None:
    assert f"{name}: a key never stands" in refusal(headers={name: SECRET})


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Host": "other"}, "hxd sets this one itself"),
        ({"content-length": "7"}, "hxd sets this one itself"),
        ({"X Y": "a"}, "not the name of a header"),
        ({"X": "a\r\nY: b"}, "printable"),
        ({"X": 7}, "printable"),
        ("X: a", "expected a table"),
    ],
)
def test_headers_that_can_not_be_sent_are_refused(headers: Any, words: str) -> None:
    said = refusal(headers=headers)
    assert said.startswith("option headers: ")
    assert words in said


def test_a_key_in_place_of_a_variables_name_is_not_repeated() -> None:
    assert "name of an environment variable" in refusal(key_env=SECRET)


def test_one_place_for_the_key_is_enough() -> None:
    assert "not both" in refusal(key_env="A", key_file="/b")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modell": "x"}, "unknown option 'modell'. Did you mean 'model'?"),
        ({"model": ""}, "option model: must not be empty"),
        ({"connect": "soon"}, "option connect: 'soon' is not a duration"),
        ({"first_byte": 0}, "option first_byte: 0 s is out of range"),
        ({"stall": True}, "option stall: expected a number"),
        ({"retries": 99}, "option retries: 99 is out of range; 0 to 5"),
        ({"retries": "2"}, "option retries: expected an integer"),
        ({"ca_file": "ca.pem"}, "option ca_file: 'ca.pem' must begin with"),
        ({"omit": ["sed"]}, "option omit: 'sed' is not possible. Did you mean 'seed'?"),
        ({"omit": ["messages"]}, "option omit: 'messages' is not possible."),
        ({"omit": "seed"}, "option omit: expected a list"),
        ({"capabilities": ["embedd"]}, "option capabilities: 'embedd' is not possible. Did you"),
    ],
)
def test_every_option_is_checked_by_name(given: dict[str, Any], words: str) -> None:
    assert words in refusal(**given)


def test_durations_are_read_as_in_the_config() -> None:
    read = options.read({"url": URL, "connect": "250ms", "first_byte": "2m", "stall": 7})
    assert (read.connect, read.first_byte, read.stall) == (0.25, 120.0, 7.0)


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    for file, text in ((tmp_path / "gone.pem", None), (tmp_path / "empty.pem", "nothing")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ValueError, match=f"option ca_file: {file}: can't be used"):
            client.trust(options.read({"url": URL, "ca_file": str(file)}))


# Keys.


def found(environment: Mapping[str, str] | None = None, **places: str) -> key.Key:
    made = key.find(places.get("key_env"), places.get("key_file"), environment or {})
    assert made is not None
    return made


def test_without_an_option_there_is_no_key() -> None:
    assert key.find(None, None, {"OPENAI_API_KEY": SECRET}) is None


def test_a_key_from_the_environment_goes_into_the_header_and_nowhere_else() -> None:
    made = found({"K": SECRET + "\n"}, key_env="K")
    assert made.header() == f"Bearer {SECRET}"
    assert SECRET not in f"{made!r} {made}"
    assert made.hide(f"the key {SECRET}!") == "the key [key]!"


def test_a_variable_that_is_missing_names_the_setting_that_passes_it() -> None:
    with pytest.raises(ValueError, match=r'option key_env: .*K; .*environment = \["K"\]'):
        found({}, key_env="K")


def test_the_hook_reads_the_environment_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_REMOTE_KEY", raising=False)
    with pytest.raises(ValueError, match=r'environment = \["TEST_REMOTE_KEY"\]'):
        hxd_backend(options={"url": URL, "key_env": "TEST_REMOTE_KEY"})


@pytest.mark.parametrize("value", ["", "  \n", "two words", "a\nb", "a\x7fb"])
def test_what_is_no_key_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(ValueError, match="option key_env: the value of K: ") as caught:
        found({"K": value}, key_env="K")
    assert not value.strip() or value not in str(caught.value)


def key_file(folder: Path, mode: int = 0o600, text: str = SECRET + "\n") -> Path:
    file = folder / "remote.key"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    assert found(key_file=str(key_file(tmp_path))).header() == f"Bearer {SECRET}"


def test_a_relative_name_is_a_credential_of_systemd(tmp_path: Path) -> None:
    file = key_file(tmp_path, 0o440)
    made = found({"CREDENTIALS_DIRECTORY": str(tmp_path)}, key_file=file.name)
    assert made.header() == f"Bearer {SECRET}"
    with pytest.raises(ValueError, match="CREDENTIALS_DIRECTORY is not set"):
        found({}, key_file=file.name)
    with pytest.raises(ValueError, match="leads out of"):
        found({"CREDENTIALS_DIRECTORY": str(tmp_path)}, key_file="../" + file.name)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o606, 0o601])
def test_a_key_file_that_everybody_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ValueError, match="everybody may read it; chmod o= "):
        found(key_file=str(key_file(tmp_path, mode)))


def test_a_key_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: can't be read: No such file"):
        found(key_file=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="not a file"):
        found(key_file=str(tmp_path))
    with pytest.raises(ValueError, match="larger than 16384 bytes"):
        found(key_file=str(key_file(tmp_path, text="x" * 20_000)))
    with pytest.raises(ValueError, match="not ASCII"):
        found(key_file=str(key_file(tmp_path, text="schlüssel")))


def test_a_file_that_changes_gives_the_new_key_and_hides_both(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    made = found(key_file=str(file))
    assert not made.renew()
    file.write_text("sk-new")
    assert made.renew()
    assert made.header() == "Bearer sk-new"
    assert made.hide(f"{SECRET} sk-new") == "[key] [key]"
    file.unlink()
    assert not made.renew()
    assert made.header() == "Bearer sk-new"

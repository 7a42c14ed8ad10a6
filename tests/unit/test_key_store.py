import stat
from pathlib import Path

import pytest

from hxd.daemon.request.identify import Role
from hxd.daemon.store.keys import FILE, KeyFileError, KeyStore


def test_a_key_opens_until_it_is_revoked_also_after_a_restart(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key, stored = store.create("app", Role.INFERENCE, 1.0)
    again = KeyStore(tmp_path)
    again.load()
    assert again.role_of(key) == store.role_of(key) == (stored.id, Role.INFERENCE)
    store.revoke(stored.id, 2.0)
    again.load()
    assert again.role_of(key) is store.role_of(key) is None


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "x", lambda k: k.upper()])
def test_a_key_that_is_nearly_right_opens_nothing(tmp_path: Path, change: object) -> None:
    assert callable(change)
    store = KeyStore(tmp_path)
    key, _ = store.create("app", Role.ADMIN, 1.0)
    assert store.role_of(change(key)) is None


@pytest.mark.parametrize("key", ["", "-", "hxd", "hxd--", "hxd-00000000-", "\udcff", "x" * 10_000])
def test_nonsense_opens_nothing(tmp_path: Path, key: str) -> None:
    assert KeyStore(tmp_path).role_of(key) is None


def test_the_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key, _ = KeyStore(tmp_path).create("app", Role.INFERENCE, 1.0)
    file = tmp_path / FILE
    assert key.rpartition("-")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[" * 100_000, '[{"id": "x"}]'])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(KeyFileError, match=FILE):
        KeyStore(tmp_path).load()


def test_a_save_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key, _ = store.create("app", Role.INFERENCE, 1.0)
    (tmp_path / ".keys.json.part").mkdir()
    with pytest.raises(OSError):
        store.create("other", Role.ADMIN, 2.0)
    assert [stored.name for stored in store.all()] == ["app"]
    assert store.role_of(key) is not None

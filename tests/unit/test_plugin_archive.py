"""Archives that were made to harm: each is refused whole, and nothing of it is on the disk."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.daemon.store import plugin_archive, plugin_package
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.work import Work
from tests.plugin_packages import below, contents, plugin, tarred, wheel, zipped

END = b"PK\5\6"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return contents(plugin(tmp_path / "source"))


def refused(tmp_path: Path, data: bytes, words: str) -> None:
    """`data` is refused with these words, and leaves no trace."""
    store = PluginStore(tmp_path / "store")
    store.prepare()
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=words):
        store.install(archive, Work(), trust=True)
    after = [path for path in sorted(tmp_path.rglob("*")) if path.name != ".tmp"]
    assert after == before


PATHS = [
    "../evil.py",
    "../../etc/ld.so.preload",
    "/etc/ld.so.preload",
    "lib/../../evil.py",
    "lib//evil.py",
    "lib/./evil.py",
    "..",
    "lib\\evil.py",
    "C:\\evil.py",
    "evil\n.py",
    "evil\x1b[2J.py",
    "evil\u202eyp.py",
    "x" * 1025,
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_name_that_is_no_plain_path_is_refused(
    pack: Callable[..., bytes], name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    refused(tmp_path, pack({**files, name: b"evil"}), "is not a plain path inside the archive")


def test_a_name_with_a_nul_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    # zipfile would cut it off there. Neither library writes one, so it is put in afterwards.
    data = zipped({**files, "evil.py#.txt": b""}).replace(b"evil.py#.txt", b"evil.py\0.txt")
    refused(tmp_path, data, "is not a plain path|differ")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("short")
        member.pax_headers = {"path": "evil.py\0.txt"}
        archive.addfile(member)
    refused(tmp_path, buffer.getvalue(), "is not a plain path")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is a link, a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "special kind"),
        (tarfile.CONTTYPE, "special kind"),
        (tarfile.GNUTYPE_SPARSE, "special kind|damaged"),
    ],
)
def test_a_special_member_of_a_tar_is_refused(
    kind: bytes, words: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    member = tarfile.TarInfo("special")
    member.type, member.linkname = kind, "/etc/passwd"
    refused(tmp_path, tarred(files, member), words)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140666, 0o040755])
def test_a_special_entry_of_a_zip_is_refused(
    mode: int, files: dict[str, bytes], tmp_path: Path
) -> None:
    buffer = io.BytesIO(zipped(files))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo("special")
        entry.create_system, entry.external_attr = 3, mode << 16
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path, buffer.getvalue(), "is a link or a device")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_name_that_stands_twice_is_refused(
    pack: Callable[..., bytes], files: dict[str, bytes], tmp_path: Path
) -> None:
    # Two spellings of one name, so that a dictionary has both.
    refused(tmp_path, pack({**files, "./main.py": b"evil"}), "stands in it twice")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_name_that_is_a_file_and_a_folder_is_refused(
    pack: Callable[..., bytes], names: tuple[str, str], files: dict[str, bytes], tmp_path: Path
) -> None:
    refused(tmp_path, pack({**files, **dict.fromkeys(names, b"")}), "twice|a file and a folder")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_more_entries_than_an_honest_plugin_has_are_refused(
    pack: Callable[..., bytes], files: dict[str, bytes], tmp_path: Path
) -> None:
    many = {f"{number}.py": b"" for number in range(plugin_archive.MAX_ENTRIES)}
    refused(tmp_path, pack({**files, **many}), "more than 10000 entries")


def test_a_tar_of_nothing_but_its_own_folder_ends(tmp_path: Path) -> None:
    member = tarfile.TarInfo("./")
    member.type = tarfile.DIRTYPE
    refused(tmp_path, tarred({}, *[member] * 10_001), "more than 10000 entries")


def central(data: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """The zip file with bytes changed in the entry of `name` in its table of contents."""
    start = data.rindex(b"PK\1\2", 0, data.rindex(name))
    return data[: start + at] + value + data[start + at + len(value) :]


def test_a_zip_that_unpacks_to_too_much_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    size = struct.pack("<I", plugin_archive.MAX_BYTES)
    refused(tmp_path, central(zipped(files), b"lib/fast.so", 24, size), "more than 256 MiB")


def test_a_tar_that_unpacks_to_too_much_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    for size in (plugin_archive.MAX_BYTES, 1 << 62):
        member = tarfile.TarInfo("big.so")
        member.size = size
        refused(tmp_path, tarred(files, member), "more than 256 MiB")


def test_a_long_name_of_many_megabytes_is_not_read_into_memory(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = kind, 200 << 20
        data = gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
        refused(tmp_path, data, "name or header is too long")


def test_headers_upon_headers_end(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    data = gzip.compress((member.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5_000)
    refused(tmp_path, data, "damaged")


@pytest.mark.parametrize(("flag", "words"), [(1, "is encrypted"), (0x40, "is encrypted")])
def test_an_encrypted_entry_is_refused(
    flag: int, words: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    refused(tmp_path, central(zipped(files), b"main.py", 8, struct.pack("<H", flag)), words)


def test_a_compression_that_takes_much_memory_is_refused(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    refused(
        tmp_path, central(zipped(files), b"main.py", 10, struct.pack("<H", 14)), "than by deflate"
    )


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_wrong_size_in_a_zip_is_refused(
    change: int, files: dict[str, bytes], tmp_path: Path
) -> None:
    size = struct.pack("<I", len(files["main.py"]) + change)
    data = central(zipped(files), b"main.py", 24, size)
    refused(tmp_path, data, "another size|damaged|sha256 differs")


def test_a_zip_whose_table_claims_too_much_is_refused_before_it_is_read(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    data = zipped(files)
    at = data.rindex(END)
    huge = data[: at + 12] + struct.pack("<I", 0xFFFFFFF0) + data[at + 16 :]
    refused(tmp_path, huge, "not the table it claims")
    refused(tmp_path, data[:at] + b"PK\6\7" + bytes(16) + data[at:], "zip64")
    refused(tmp_path, data[:at], "no whole zip")


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\3\4", b"\x1f\x8b", b"MZ\0\0", b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    refused(tmp_path, data, "no folder, wheel|damaged|no whole zip|there is no plugin.toml")


def test_a_cut_off_archive_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    for pack in (zipped, tarred):
        data = pack(files)
        refused(tmp_path, data[: len(data) // 2], "damaged|no whole zip|not in it|no plugin.toml")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_flipped_byte_anywhere_gives_the_same_files_or_a_refusal(
    pack: Callable[..., bytes], files: dict[str, bytes], tmp_path: Path
) -> None:
    """Some fields of both formats mean nothing to us; no flip may give other contents unnoticed by
    the digests, or any other exception than ours."""
    data = pack(files)
    archive = tmp_path / "archive"
    drawn = random.Random(7)
    for _ in range(400):
        at = drawn.randrange(len(data))
        archive.write_bytes(
            data[:at] + bytes([data[at] ^ 1 << drawn.randrange(8)]) + data[at + 1 :]
        )
        try:
            with plugin_package.opened(archive) as package:
                for name in package.names:
                    package.read(name)
        except StoreError:
            continue


def test_a_pipe_in_place_of_an_archive_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = PluginStore(tmp_path / "store")
    with pytest.raises(StoreError, match="neither a folder nor a file"):
        store.install(tmp_path / "pipe", Work())


@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe"])
def test_a_folder_with_more_than_files_in_it_is_refused(kind: str, tmp_path: Path) -> None:
    home = plugin(tmp_path / "source")
    match kind:
        case "link":
            (home / "main.py").rename(tmp_path / "main.py")
            (home / "main.py").symlink_to(tmp_path / "main.py")
        case "linked folder":
            (home / "lib").rename(tmp_path / "lib")
            (home / "lib").symlink_to(tmp_path / "lib")
        case _:
            os.mkfifo(home / "lib/pipe")
    with pytest.raises(Corrupt, match="is a link, a pipe or a device"):
        PluginStore(tmp_path / "store").install(home, Work())


def test_the_plugin_is_found_at_the_top_and_in_a_folder(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    for pack in (zipped, tarred):
        for prefix in (".", "says-1.0", "says-1.0/plugins"):
            archive = tmp_path / "archive"
            archive.write_bytes(pack(below(prefix, files)))
            with plugin_package.opened(archive) as package:
                assert {name: package.read(name) for name in package.names} == files


def test_what_lies_beside_the_plugins_folder_is_refused(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    refused(tmp_path, zipped({**below("says", files), "other.py": b""}), "lies beside says")
    two = {**below("a", files), **below("b", files)}
    refused(tmp_path, tarred(two), "install one plugin at a time")
    refused(tmp_path, zipped({"main.py": b""}), "there is no plugin.toml in it")


def test_a_wheel_gives_its_package_and_what_it_requires(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    file = wheel(tmp_path, "says", "1.0", "numpy>=2", **below("says", files))
    with plugin_package.opened(file) as package:
        assert set(package.names) == files.keys()
        assert package.requires() == ["numpy>=2"]

"""Plugins for tests of the plugin store, and archives of them, honest and hostile."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hxd import pluginfile

CODE = '''
from hxd.hookspecs import Advance, Description, ModelInfo, hookimpl
{more}
class Says:
    """Answers every prompt with the same words, one byte per token."""

    def load(self, request):
        self.answers = {{}}
        return ModelInfo(request.context, "bytes", "{{{{ messages[-1].content }}}}")

    def tokenize(self, text, *, add_special, parse_special):
        return list(text.encode())

    def token_bytes(self, token, *, special=False):
        return bytes([token])

    def gauges(self):
        return {{}}

    def add(self, sequence):
        self.answers[sequence.id] = iter(({answer}).encode())

    def step(self):
        ahead = [(id, next(answer, None)) for id, answer in self.answers.items()]
        return [Advance(id, [byte or 0], ended=byte is None) for id, byte in ahead]

    def remove(self, id):
        del self.answers[id]

    def close(self):
        self.answers.clear()

@hookimpl
def hxd_describe():
    return Description(formats=frozenset({{"none"}}))

@hookimpl
def hxd_backend(options):
    return Says()
'''


def plugin(
    home: Path,
    *,
    name: str = "says",
    version: str = "1.0",
    answer: str = "'hello'",
    more: str = "",
    requirements: tuple[str, ...] = (),
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """A plugin that works, with a native library that is none. `answer` is an expression, `more`
    goes before the class."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "main.py").write_text(CODE.format(answer=answer, more=more))
    for file, data in {"lib/fast.so": b"\x7fELF like", **(files or {})}.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_bytes(data)
    wanted = f"requirements = {list(requirements)!r}\n" if requirements else ""
    (home / "plugin.toml").write_text(
        f'name = "{name}"\nversion = "{version}"\napi = 1\nentry = "main"\nformats = ["none"]\n'
        f"{wanted}[files]\n"
        + "".join(f'"{file}" = "{digest}"\n' for file, digest in digests(home).items())
    )
    return home


def digests(home: Path) -> dict[str, str]:
    return {
        file: hashlib.sha256((home / file).read_bytes()).hexdigest()
        for file in pluginfile.present(home)
    }


def contents(home: Path) -> dict[str, bytes]:
    return {
        file.relative_to(home).as_posix(): file.read_bytes()
        for file in sorted(home.rglob("*"))
        if file.is_file()
    }


def sign(home: Path, key: Ed25519PrivateKey, *, raw: bool = False) -> None:
    signature = key.sign((home / "plugin.toml").read_bytes())
    (home / "plugin.toml.sig").write_bytes(signature if raw else base64.b64encode(signature))


def public(key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Names as they are, honest or not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], *special: tarfile.TarInfo) -> bytes:
    """Gzipped; `special` are members without contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in special:
            archive.addfile(member)
    return buffer.getvalue()


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def wheel(folder: Path, name: str, version: str, *requires: str, **files: bytes) -> Path:
    """One that pip installs: a module NAME.py that knows its version, unless `files` are given."""
    code = {f"{name}.py": f"version = {version!r}\n".encode()}
    info = f"{name}-{version}.dist-info"
    head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    head += [f"Requires-Dist: {one}" for one in requires]
    tables = {
        "METADATA": "\n".join(head) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    every = {**(files or code), **below(info, {n: t.encode() for n, t in tables.items()})}
    record = "".join(f"{name},,\n" for name in [*every, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    file.write_bytes(zipped({**every, f"{info}/RECORD": record.encode()}))
    return file

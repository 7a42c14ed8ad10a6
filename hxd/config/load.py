"""From TOML files to a `Config`. Finds every fault before it gives up; never touches the models."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hxd.config import kinds
from hxd.config.masking import visible
from hxd.config.settings import SECTIONS, Config, ModelSettings, RouteSettings
from hxd.errors import ConfigError, nearest

MAX_FILE = 1 << 20
# A set of files is a mapping by these names: MAIN, whatever the file of `--config` is called, and
# "conf.d/NAME.toml".
MAIN = "hxd.toml"
FOLDER = "conf.d"
# What lies below is named by the operator, and each name is declared once.
TABLES = ("models.", "routes.")


class _Findings:
    """Collects `FILE: key.path: what`, and knows which file a key came from."""

    def __init__(self, main: Path) -> None:
        self.main = main
        self.lines: list[str] = []
        self.origin: dict[str, Path] = {}

    def add(self, key: str, what: str, file: Path | None = None) -> None:
        parts = key.split(".")
        while file is None and parts:
            file = self.origin.get(".".join(parts))
            parts.pop()
        where = f"{file or self.main}: {key}: " if key else f"{file or self.main}: "
        # A key may have any character in it, and a finding is one line.
        self.lines.append(visible(where + what))


def load(path: Path) -> Config:
    """The configuration in `path` and in `conf.d/*.toml` beside it.

    Raises `ConfigError` with all findings.
    """
    path = path.absolute()
    findings = _Findings(path)
    files = [path, *sorted((path.parent / FOLDER).glob("*.toml"))]
    return _combine(path, ((file, _read(file, findings)) for file in files), findings)


def load_as(files: Mapping[str, bytes], origin: Path) -> Config:
    """The configuration that `load(origin)` would give if these files lay there.

    Raises `ConfigError` with all findings.
    """
    origin = origin.absolute()
    findings = _Findings(origin)
    for what in misnamed(files):
        findings.add("", what)
    names = [name for name in (MAIN, *sorted(files.keys() - {MAIN})) if name in files]
    places = ((origin if name == MAIN else origin.parent / name, files[name]) for name in names)
    read = ((file, _parse(data, file, findings)) for file, data in places)
    return _combine(origin, read, findings)


def misnamed(names: Iterable[str]) -> list[str]:
    """What is wrong with the names of a set of files."""
    names = list(names)
    found = [
        f"{name!r} is not a file of a configuration; there are {MAIN} and {FOLDER}/NAME.toml"
        for name in names
        if name != MAIN and not (name.isprintable() and re.fullmatch(r"conf\.d/[^/]+\.toml", name))
    ]
    return found if MAIN in names else [f"{MAIN} is missing", *found]


def _combine(
    origin: Path, files: Iterable[tuple[Path, dict[str, Any]]], findings: _Findings
) -> Config:
    merged: dict[str, Any] = {}
    for file, table in files:
        _merge(merged, table, file, findings, "")
    config = _build(origin, merged, findings)
    if findings.lines:
        raise ConfigError(findings.lines)
    return config


def _read(file: Path, findings: _Findings) -> dict[str, Any]:
    try:
        data = read(file)
    except ConfigError as error:
        findings.lines += error.findings
        return {}
    return _parse(data, file, findings)


def read(file: Path, *, wait: bool = False) -> bytes:
    """At most `MAX_FILE` bytes. `wait`: also of what is no file, such as a pipe that somebody
    writes into. Raises `ConfigError`."""
    try:
        with open(file, "rb", opener=None if wait else _at_once) as stream:
            if not wait and not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError([visible(f"{file}: can't be read: not a regular file")])
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([visible(f"{file}: can't be read: {error.strerror}")]) from None
    if len(data) > MAX_FILE:
        raise ConfigError([visible(f"{file}: larger than {MAX_FILE} bytes")])
    return data


def _at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes into would keep the daemon waiting for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(data: bytes, file: Path, findings: _Findings) -> dict[str, Any]:
    if len(data) > MAX_FILE:
        findings.add("", f"larger than {MAX_FILE} bytes", file)
        return {}
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        findings.add("", f"not UTF-8 at byte {error.start}", file)
    except tomllib.TOMLDecodeError as error:
        findings.add("", _twice(str(error), data.decode()) or f"not valid TOML: {error}", file)
    except RecursionError:
        findings.add("", "not valid TOML: nested too deeply", file)
    return {}


def _twice(message: str, text: str) -> str | None:
    """A repeated table is the most usual slip: name it as the operator wrote it."""
    match = re.match(r"Cannot (?:declare|mutate).*\(at line (\d+)", message)
    if not match:
        return None
    line = text.splitlines()[int(match[1]) - 1].strip()
    return f"{line.strip('[]')}: declared twice (line {match[1]})"


def _merge(
    into: dict[str, Any], new: dict[str, Any], file: Path, findings: _Findings, prefix: str
) -> None:
    for key, value in new.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict) and prefix not in TABLES:
            _merge(into[key], value, file, findings, f"{path}.")
        elif key in into:
            findings.add(path, f"declared twice; it stands in {findings.origin[path]} too", file)
        else:
            into[key] = value if not isinstance(value, dict) or prefix in TABLES else {}
            findings.origin[path] = file
            if into[key] is not value:
                _merge(into[key], value, file, findings, f"{path}.")


def _build(path: Path, raw: dict[str, Any], findings: _Findings) -> Config:
    known = [*SECTIONS, "models", "routes"]
    for key in raw:
        if key not in known:
            findings.add(key, _unknown(key, known))
    values: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        table = raw.get(name, {})
        if type(table) is dict:
            values[name] = _section(section, table, name, findings)
        else:
            findings.add(name, f"expected a table, found {kinds.found(table)}")
    models = _models(raw.get("models", {}), findings)
    routes = _routes(raw.get("routes", {}), models, findings)
    config = Config(origin=path, models=models, routes=routes, places=findings.origin, **values)
    if "auth" in values and "listen" in values:
        _check_open(config, findings)
    return config


def _unknown(key: str, known: list[str]) -> str:
    guess = nearest(key, known)
    return "unknown key" + (f", did you mean {guess.split('Did you mean ')[1]}" if guess else "")


def _section(section: type[Any], table: dict[str, Any], prefix: str, findings: _Findings) -> Any:
    declared = {field.name: field for field in fields(section)}
    values = {}
    for key, value in table.items():
        if key not in declared:
            findings.add(f"{prefix}.{key}", _unknown(key, list(declared)))
            continue
        try:
            value = declared[key].metadata["kind"](value)
        except ValueError as error:
            findings.add(f"{prefix}.{key}", str(error))
            continue
        if isinstance(value, Path):
            value = findings.main.parent / value
        values[key] = value
    return section(**values)


def _models(raw: Any, findings: _Findings) -> dict[str, ModelSettings]:
    models = {}
    for name, table in _named("models", raw, findings):
        key = f"models.{name}"
        model: ModelSettings = _section(ModelSettings, table, key, findings)
        if model.source is None and model.plugin == "auto":
            findings.add(
                key, 'no source; write source = "builtin:demo" or the path of a model file'
            )
        if len(model.weights) > model.replicas:
            findings.add(f"{key}.weights", f"{len(model.weights)} for {model.replicas} replicas")
        models[name] = model
    return models


def _named(section: str, raw: Any, findings: _Findings) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables below `section`, whose names clients may send."""
    if type(raw) is not dict:
        findings.add(section, f"expected tables, found {kinds.found(raw)}")
        return
    for name, table in raw.items():
        key = f"{section}.{name}"
        try:
            kinds.model_name(name)
        except ValueError as error:
            findings.add(key, str(error))
            continue
        if type(table) is not dict:
            findings.add(key, f"expected a table, found {kinds.found(table)}")
            continue
        yield name, table


def _routes(
    raw: Any, models: dict[str, ModelSettings], findings: _Findings
) -> dict[str, RouteSettings]:
    routes: dict[str, RouteSettings] = {}
    for name, table in _named("routes", raw, findings):
        routes[name] = _section(RouteSettings, table, f"routes.{name}", findings)
    for name, route in routes.items():
        key = f"routes.{name}"
        if name in models:
            findings.add(key, "there is a model of this name")
        if not route.chain:
            findings.add(f"{key}.chain", 'must name a model at least, such as ["a", "b"]')
        for link in route.chain:
            if link not in models and link not in routes:
                known = [*models, *routes]
                findings.add(
                    f"{key}.chain",
                    f"no model or route {link!r} is configured.{nearest(link, known)}",
                )
    for name in routes:
        if cycle := _cycle(name, routes):
            findings.add(f"routes.{name}.chain", f"leads back to itself: {' → '.join(cycle)}")
    return routes


def _cycle(start: str, routes: dict[str, RouteSettings]) -> list[str] | None:
    """The way from `start` back to itself, if there is one."""
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop()
        for link in routes[way[-1]].chain if way[-1] in routes else ():
            if link == start:
                return [*way, link]
            if link not in seen:
                seen.add(link)
                ways.append([*way, link])
    return None


def _check_open(config: Config, findings: _Findings) -> None:
    if not config.auth.required and not config.listen.http.loopback:
        findings.add(
            "auth.required",
            f"false is refused while listen.http is {config.listen.http}: keys may be switched off "
            "only when every listener is on loopback",
        )

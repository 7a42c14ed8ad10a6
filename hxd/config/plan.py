"""What changing from one configuration to another means: which settings, for which workers, in
which order. Pure: it looks at two configurations, never at the box.

To add a setting, say in `CONSEQUENCES` what changing it costs; a test compares the table with
`settings.py`.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from datetime import date, time
from typing import Any, NamedTuple

from hxd.config.masking import masked, visible
from hxd.config.settings import SECTIONS, Config, ModelSettings, RouteSettings


class Consequence(enum.StrEnum):
    """What it takes until a changed setting holds."""

    NOW = "now"  # in place; no worker notices
    SCALE = "scale"  # workers are added or drained; the others stay
    WORKERS = "workers"  # new workers beside the old ones, which drain
    BUDGET = "budget"  # everything is weighed again; touches no worker by itself
    LISTEN = "listen"  # the new address first, then no more at the old one; connections stay
    RESTART = "restart"  # at the next start of the daemon


_NOW, _WORKERS, _RESTART = Consequence.NOW, Consequence.WORKERS, Consequence.RESTART
_WITH_WORKERS = (Consequence.SCALE, Consequence.WORKERS)
CONSEQUENCES: dict[str, Consequence] = {
    "listen.http": Consequence.LISTEN,
    "listen.names": _NOW,
    "auth.required": _NOW,
    "paths.state": _RESTART,
    "paths.runtime": _RESTART,
    "paths.logs": _RESTART,
    "paths.cache": _RESTART,
    "limits.body": _NOW,
    "limits.body_time": _NOW,
    "limits.header_time": _NOW,
    "limits.keepalive": _NOW,
    "limits.write_stall": _NOW,
    "limits.drain": _NOW,
    "memory.budget": Consequence.BUDGET,
    "plugins.folders": Consequence.BUDGET,
    "pull.proxy": _NOW,  # asked when a pull begins
    "pull.no_proxy": _NOW,
    "log.level": _NOW,
    "models.NAME.source": _WORKERS,
    "models.NAME.plugin": _WORKERS,
    "models.NAME.replicas": Consequence.SCALE,
    "models.NAME.policy": _NOW,
    "models.NAME.weights": _NOW,
    "models.NAME.slots": _WORKERS,
    "models.NAME.context": _WORKERS,
    "models.NAME.variants": _WORKERS,
    "models.NAME.threads": _WORKERS,
    "models.NAME.queue": _NOW,
    "models.NAME.queue_time": _NOW,
    "models.NAME.prefix_cache": _NOW,
    "models.NAME.load_time": _NOW,  # asked at the next load only
    "models.NAME.stall_time": _NOW,
    "models.NAME.memory_limit": _WORKERS,  # a resource limit, set before the plugin is imported
    "models.NAME.reserve": _NOW,
    "models.NAME.environment": _WORKERS,
    "models.NAME.grace": _NOW,  # asked when a swap ends
    "models.NAME.required": _NOW,
    "models.NAME.options": _WORKERS,
    "routes.NAME.chain": _NOW,
}


class Fate(enum.StrEnum):
    """What becomes of one model."""

    STAYS = "stays"
    CHANGES = "changes in place"
    SCALES = "scales"
    REPLACED = "replaced"
    STARTS = "starts"
    ENDS = "ends"


class Act(enum.StrEnum):
    """The kinds of steps, in the order in which they are taken: nothing that a route needs ends
    before what takes its place has started."""

    SET = "set"  # in place; the name is a model's, or empty for the box
    START = "start"
    GROW = "grow"
    REPLACE = "replace"
    ROUTE = "route"
    SHRINK = "shrink"
    END = "end"
    LISTEN = "listen"  # where clients connect; last, so that nothing else can fail after it


@dataclass(frozen=True)
class Change:
    """One setting that differs. `old` and `new` are fit for JSON and have their secrets covered;
    None where there is none. Each of a plugin's options is a setting of its own here."""

    setting: str
    old: Any
    new: Any
    consequence: Consequence
    spelled: tuple[str, str]

    def __str__(self) -> str:
        old, new = self.spelled
        later = "; holds from the next start" if self.consequence is _RESTART else ""
        # With its secret covered, a changed option would look unchanged.
        other = " (another one)" if old == new else ""
        return f"{visible(self.setting)}: {old} → {new}{other}{later}"

    def body(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "old": self.old,
            "new": self.new,
            "takes_effect": self.consequence.value,
        }


class Workers(NamedTuple):
    """How many stay, start and drain."""

    stay: int = 0
    start: int = 0
    drain: int = 0

    def __str__(self) -> str:
        parts: list[str] = []
        for count, verb in zip(self, self._fields, strict=True):
            if count:
                noun = "" if parts else "worker " if count == 1 else "workers "
                parts.append(f"{count} {noun}{verb}{'s' if count == 1 else ''}")
        return ", ".join(parts) or "no workers"


@dataclass(frozen=True)
class ModelPlan:
    """`before` and `after` are workers."""

    name: str
    fate: Fate
    before: int
    after: int
    changes: tuple[Change, ...] = ()

    @property
    def workers(self) -> Workers:
        before, after = self.before, self.after
        if self.fate is Fate.REPLACED:
            return Workers(0, after, before)
        return Workers(min(before, after), max(0, after - before), max(0, before - after))

    def __str__(self) -> str:
        span = f" from {self.before} to {self.after}" if self.fate is Fate.SCALES else ""
        return f"models.{visible(self.name)}: {self.fate}{span}; {self.workers}"

    def body(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fate": self.fate.value,
            "before": self.before,
            "after": self.after,
            "workers": self.workers._asdict(),
            "changes": [change.body() for change in self.changes],
        }


@dataclass(frozen=True)
class Step:
    """`name` is a model; empty for the box itself and for the routes, which change at once."""

    act: Act
    name: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`changes` are the box's, `routes` those of the routes; a model's stand with the model."""

    changes: tuple[Change, ...]
    models: tuple[ModelPlan, ...]
    routes: tuple[Change, ...]

    @property
    def nothing(self) -> bool:
        stay = all(model.fate is Fate.STAYS for model in self.models)
        return stay and not self.changes and not self.routes

    @property
    def workers(self) -> Workers:
        return Workers(
            *(sum(column) for column in zip(*(m.workers for m in self.models), strict=True))
        )

    @property
    def sentence(self) -> str:
        return "nothing changes" if self.nothing else str(self.workers)

    @property
    def needs_restart(self) -> list[str]:
        """The settings that hold from the next start of the daemon."""
        return [c.setting for c in self.changes if c.consequence is _RESTART]

    def every_change(self) -> Iterator[Change]:
        yield from self.changes
        for model in self.models:
            yield from model.changes
        yield from self.routes

    def steps(self) -> list[Step]:
        """What to do, in this order; every change but those that need a restart is in one."""
        apart = (_RESTART, Consequence.LISTEN)
        steps = [Step(Act.SET, "", tuple(c for c in self.changes if c.consequence not in apart))]
        for model in self.models:
            # What no worker has to hear of, such as a count of replicas that there are already.
            alone = () if _act(model) else _WITH_WORKERS
            steps.append(Step(Act.SET, model.name, _of(model.changes, Consequence.NOW, *alone)))
        steps = [step for step in steps if step.changes]
        steps += self._workers(Act.START, Act.GROW, Act.REPLACE)
        if self.routes:
            steps.append(Step(Act.ROUTE, "", self.routes))
        steps += self._workers(Act.SHRINK, Act.END)
        if listen := _of(self.changes, Consequence.LISTEN):
            steps.append(Step(Act.LISTEN, "", listen))
        return steps

    def _workers(self, *acts: Act) -> Iterator[Step]:
        for act in acts:
            for model in self.models:
                if _act(model) is act:
                    yield Step(act, model.name, _of(model.changes, *_WITH_WORKERS))

    def lines(self) -> list[str]:
        """For people: each model that does not stay as it is, each setting, and the sum."""
        lines = [str(change) for change in self.changes]
        for model in self.models:
            if model.fate is not Fate.STAYS:
                lines += [str(model), *(f"  {change}" for change in model.changes)]
        return [*lines, *map(str, self.routes), self.sentence]

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nothing": self.nothing,
            "sentence": self.sentence,
            "needs_restart": self.needs_restart,
            "workers": self.workers._asdict(),
            "changes": [change.body() for change in self.changes],
            "models": [model.body() for model in self.models],
            "routes": [change.body() for change in self.routes],
            "steps": [
                {"act": s.act.value, "name": s.name, "settings": [c.setting for c in s.changes]}
                for s in self.steps()
            ],
        }


def plan(
    old: Config, new: Config, served: Mapping[str, int], refused: Collection[str] = ()
) -> Plan:
    """What to do so that `new` holds where `old` does now.

    `served` has the workers of each model that is served now, those included that are being
    restarted. A model that is configured and not served starts, so that a reload tries again,
    unless it is in `refused`: the models of `new` that can't be served.
    """
    return Plan(
        tuple(_box(old, new)),
        tuple(_models(old, new, served, refused)),
        tuple(_routes(old, new)),
    )


def _box(old: Config, new: Config) -> Iterator[Change]:
    for name, section in SECTIONS.items():
        yield from _changes(section, name, name, getattr(old, name), getattr(new, name))


def _routes(old: Config, new: Config) -> Iterator[Change]:
    for name in _names(old.routes, new.routes):
        was, is_ = old.routes.get(name), new.routes.get(name)
        yield from _changes(RouteSettings, "routes.NAME", f"routes.{name}", was, is_)


def _models(
    old: Config, new: Config, served: Mapping[str, int], refused: Collection[str]
) -> Iterator[ModelPlan]:
    for name in _names(old.models, new.models, served):
        was, is_ = old.models.get(name), new.models.get(name)
        before = served.get(name, 0)
        if is_ is None:
            yield ModelPlan(name, Fate.ENDS, before, 0)
            continue
        after = is_.replicas if before or name not in refused else 0
        changes: tuple[Change, ...] = ()
        if was is not None:
            path = f"models.{name}"
            changes = tuple(_changes(ModelSettings, "models.NAME", path, was, is_))
        yield ModelPlan(name, _fate(before, after, was, changes), before, after, changes)


def _fate(before: int, after: int, was: ModelSettings | None, changes: Iterable[Change]) -> Fate:
    if not before and (after or was is None):
        return Fate.STARTS
    if before and any(change.consequence is _WORKERS for change in changes):
        return Fate.REPLACED
    if before != after:
        return Fate.SCALES
    return Fate.CHANGES if changes else Fate.STAYS


def _act(model: ModelPlan) -> Act | None:
    match model.fate:
        case Fate.STARTS:
            return Act.START if model.after else None
        case Fate.REPLACED:
            return Act.REPLACE
        case Fate.SCALES:
            return Act.GROW if model.after > model.before else Act.SHRINK
        case Fate.ENDS:
            return Act.END
    return None


def _of(changes: Iterable[Change], *kinds: Consequence) -> tuple[Change, ...]:
    return tuple(change for change in changes if change.consequence in kinds)


def _names(*tables: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


# --- one setting ------------------------------------------------------------------------------


def _changes(section: type[Any], row: str, path: str, old: Any, new: Any) -> Iterator[Change]:
    """What differs between two of a section, either of which may be absent."""
    for setting in fields(section):
        consequence = CONSEQUENCES[f"{row}.{setting.name}"]
        was, is_ = getattr(old, setting.name, None), getattr(new, setting.name, None)
        name = f"{path}.{setting.name}"
        if isinstance(was, dict) and isinstance(is_, dict):
            for key in _names(was, is_):
                pair = was.get(key), is_.get(key)
                if not _same(*pair):
                    yield _change(f"{name}.{key}", key, pair, consequence, None)
        elif not _same(was, is_):
            yield _change(name, "", (was, is_), consequence, setting)


def _change(
    name: str,
    key: str,
    pair: tuple[Any, Any],
    consequence: Consequence,
    setting: Field[Any] | None,
) -> Change:
    # Of hxd's own settings a text may be a URL with a password; none is a secret as a whole.
    old, new = (
        masked(key, value) if setting is None or isinstance(value, str) else value for value in pair
    )
    return Change(
        name, _plain(old), _plain(new), consequence, (_spell(old, setting), _spell(new, setting))
    )


def _same(old: Any, new: Any) -> bool:
    """As TOML sees it: 1, 1.0 and true are three values, and nan is one."""
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and math.isnan(old):
        return math.isnan(new)
    return bool(old == new)


def _plain(value: Any) -> Any:
    """What JSON can carry."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list) or type(value) is tuple:
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _spell(value: Any, setting: Field[Any] | None) -> str:
    """As an operator would write it."""
    if value is None:
        return (setting.metadata["show"] if setting is not None else None) or "none"
    kind = setting.metadata["kind"].__qualname__ if setting is not None else ""
    if kind.startswith("seconds"):
        return f"{value:g}s"
    if kind.startswith(("size", "budget")):
        for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
            if value and value % 1024**power == 0:
                return f"{value // 1024**power}{unit}"
        return f"{value}B"
    return visible(json.dumps(_plain(value), ensure_ascii=False))

"""What changing the configuration means: each setting's consequence, and the order of the steps."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.config.kinds import Address
from hxd.config.masking import SECRET, masked_lines
from hxd.config.plan import CONSEQUENCES, Act, Consequence, Fate, Plan, plan
from hxd.config.settings import (
    SECTIONS,
    Config,
    Limits,
    Listen,
    Log,
    Memory,
    ModelSettings,
    Plugins,
    Pull,
    RouteSettings,
)
from hxd.config.text_diff import diff

ORIGIN = Path("/etc/hxd/hxd.toml")
NAMES = ("a", "b", "c", "org/d-1.5", "monkey")


def rows() -> dict[str, type[Any]]:
    return {**SECTIONS, "models.NAME": ModelSettings, "routes.NAME": RouteSettings}


def test_the_table_has_every_setting_and_no_other() -> None:
    declared = [f"{row}.{f.name}" for row, section in rows().items() for f in fields(section)]
    assert sorted(CONSEQUENCES) == sorted(declared)


def test_no_setting_has_a_name_that_hides_its_value() -> None:
    assert [name for name in CONSEQUENCES if SECRET.search(name)] == []


# --- any two configurations -------------------------------------------------------------------

option = st.one_of(
    st.booleans(), st.integers(0, 2), st.floats(), st.text(max_size=3), st.lists(st.integers(0, 1))
)
models = st.builds(
    ModelSettings,
    source=st.sampled_from(["x.gguf", "y.gguf"]),
    replicas=st.integers(1, 3),
    queue=st.integers(0, 1),
    slots=st.integers(1, 2),
    weights=st.sampled_from([(), (1.0,)]),
    memory_limit=st.sampled_from([None, 1 << 30]),
    options=st.dictionaries(st.sampled_from(["rate", "api_key", "x.y"]), option),
)
configs = st.builds(
    Config,
    origin=st.just(ORIGIN),
    listen=st.builds(Listen, http=st.builds(Address, st.just("127.0.0.1"), st.integers(1, 2))),
    limits=st.builds(Limits, body=st.sampled_from([1 << 20, 4 << 20])),
    memory=st.builds(Memory, budget=st.sampled_from([None, 1 << 30])),
    plugins=st.builds(Plugins, folders=st.sampled_from([(), ("/p",)])),
    log=st.builds(Log, level=st.sampled_from(["info", "debug"])),
    models=st.dictionaries(st.sampled_from(NAMES), models),
    routes=st.dictionaries(
        st.sampled_from(["r", "s"]), st.builds(RouteSettings, chain=st.sampled_from([("a",), ()]))
    ),
)


def full(config: Config) -> dict[str, int]:
    return {name: model.replicas for name, model in config.models.items()}


@given(configs)
def test_a_configuration_and_itself_read_again_differ_in_nothing(config: Config) -> None:
    again = replace(
        config, models={n: replace(m, options={**m.options}) for n, m in config.models.items()}
    )
    found = plan(config, again, full(config))
    assert found.nothing and found.sentence == "nothing changes"
    assert found.steps() == [] and found.needs_restart == []
    assert found.workers == (sum(full(config).values()), 0, 0)


def differing(old: Config, new: Config) -> list[str]:
    """Found another way than the plan does: by what each value looks like."""

    def leaves(config: Config) -> dict[str, str]:
        tables = {name: getattr(config, name) for name in SECTIONS}
        tables |= {f"models.{n}": m for n, m in config.models.items()}
        tables |= {f"routes.{n}": r for n, r in config.routes.items()}
        found = {}
        for path, table in tables.items():
            for setting in fields(table):
                value = getattr(table, setting.name)
                if setting.name == "options":
                    found |= {f"{path}.options.{key}": repr(v) for key, v in value.items()}
                else:
                    found[f"{path}.{setting.name}"] = repr(value)
        return found

    was, is_ = leaves(old), leaves(new)
    ended = [f"models.{n}." for n in old.models.keys() ^ new.models.keys()]
    names = [name for name in was | is_ if was.get(name) != is_.get(name)]
    return sorted(name for name in names if not name.startswith(tuple(ended)))


@given(configs, configs)
def test_every_setting_that_differs_is_told_once_and_is_in_one_step(
    old: Config, new: Config
) -> None:
    found = plan(old, new, full(old))
    told = [change.setting for change in found.every_change()]
    # -0.0 and 0.0 look different and are equal; such an option may be told or not.
    assert sorted(told) == differing(old, new) or "-0.0" in repr((old, new))
    done = Counter(change.setting for step in found.steps() for change in step.changes)
    assert sorted([*done.elements(), *found.needs_restart]) == sorted(told)


@given(configs, configs, st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4)))
def test_the_numbers_of_workers_add_up(old: Config, new: Config, served: dict[str, int]) -> None:
    found = plan(old, new, served)
    assert sum(served.values()) == found.workers.stay + found.workers.drain
    assert sum(full(new).values()) == found.workers.stay + found.workers.start
    for model in found.models:
        assert model.after == full(new).get(model.name, 0)
        if any(c.consequence is Consequence.WORKERS for c in model.changes):
            assert model.workers.stay == 0
    json.dumps(found.body(), allow_nan=False)


@given(configs, configs)
def test_steps_come_in_the_order_of_acts(old: Config, new: Config) -> None:
    acts = [step.act for step in plan(old, new, full(old)).steps()]
    assert acts == sorted(acts, key=list(Act).index)


# --- one change at a time ---------------------------------------------------------------------

BASE = Config(
    ORIGIN,
    models={"a": ModelSettings(source="x", replicas=2), "b": ModelSettings(plugin="echo")},
    routes={"r": RouteSettings(("a", "b"))},
)
SERVED = {"a": 2, "b": 1}


def changed(**settings: Any) -> Plan:
    """The plan for other settings of the model `a`."""
    a = replace(BASE.models["a"], **settings)
    return plan(BASE, replace(BASE, models={**BASE.models, "a": a}), SERVED)


@pytest.mark.parametrize(
    ("setting", "fate", "sentence"),
    [
        ({"queue": 1}, Fate.CHANGES, "3 workers stay"),
        ({"load_time": 1.0}, Fate.CHANGES, "3 workers stay"),
        ({"replicas": 3}, Fate.SCALES, "3 workers stay, 1 starts"),
        ({"replicas": 1, "queue": 1}, Fate.SCALES, "2 workers stay, 1 drains"),
        ({"slots": 8}, Fate.REPLACED, "1 worker stays, 2 start, 2 drain"),
        ({"slots": 8, "replicas": 1}, Fate.REPLACED, "1 worker stays, 1 starts, 2 drain"),
    ],
)
def test_a_model_meets_the_fate_of_its_setting(
    setting: dict[str, Any], fate: Fate, sentence: str
) -> None:
    found = changed(**setting)
    assert (found.models[0].fate, found.models[1].fate) == (fate, Fate.STAYS)
    assert found.sentence == sentence


def test_what_a_route_needs_starts_before_and_ends_after_the_route_changes() -> None:
    models = {"b": replace(BASE.models["b"], queue=1), "c": ModelSettings(source="z")}
    new = replace(BASE, models=models, routes={"r": RouteSettings(("c", "b"))})
    found = plan(BASE, new, SERVED)
    assert [(step.act, step.name) for step in found.steps()] == [
        (Act.SET, "b"),
        (Act.START, "c"),
        (Act.ROUTE, ""),
        (Act.END, "a"),
    ]


def test_what_needs_a_restart_touches_nothing_now() -> None:
    new = replace(BASE, paths=replace(BASE.paths, logs=Path("/elsewhere")))
    found = plan(BASE, new, SERVED)
    assert found.needs_restart == ["paths.logs"]
    assert found.steps() == [] and not found.nothing
    assert found.lines()[0].endswith(' → "/elsewhere"; holds from the next start')


def test_the_address_is_the_last_to_change() -> None:
    models = {"b": BASE.models["b"], "c": ModelSettings(source="z")}
    new = replace(BASE, listen=Listen(http=Address("127.0.0.1", 1), names=("x",)), models=models)
    steps = plan(BASE, new, SERVED).steps()
    assert [step.act for step in steps] == [Act.SET, Act.START, Act.END, Act.LISTEN]
    assert [change.setting for change in steps[-1].changes] == ["listen.http"]


def test_a_model_that_could_not_be_served_is_tried_again_unless_it_is_refused_again() -> None:
    again = plan(BASE, BASE, {"b": 1})
    assert (again.models[0].fate, again.sentence) == (Fate.STARTS, "1 worker stays, 2 start")
    assert plan(BASE, BASE, {"b": 1}, refused=["a"]).nothing


def test_options_differ_as_toml_sees_it() -> None:
    old, new = ({"x": 1, "y": math.nan}, {"x": True, "y": float("nan")})
    was = replace(BASE, models={"a": ModelSettings(source="x", options=old)})
    is_ = replace(BASE, models={"a": ModelSettings(source="x", options=new)})
    found = plan(was, is_, {"a": 1})
    assert [change.setting for change in found.models[0].changes] == ["models.a.options.x"]


def test_values_are_shown_as_an_operator_writes_them() -> None:
    new = replace(BASE, memory=Memory(3 << 30), limits=Limits(body=5 << 20, drain=0.5))
    assert plan(BASE, new, SERVED).lines() == [
        "limits.body: 4MiB → 5MiB",
        "limits.drain: 30s → 0.5s",
        "memory.budget: auto → 3GiB",
        "3 workers stay",
    ]


# --- secrets ----------------------------------------------------------------------------------

secret = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=12)
OPTIONS = """
[models.monkey]
source = "shown"   # api_key = "{0}"
[models.remote.options]
api_key = "{0}"
"Auth-T\\u006fken" = '{0}'
password = '''
{0}
  more: {0}'''
headers = {{ "X-Secret" = "{0}", accept = "shown" }}
url = "https://user:{0}@host/shown"
nested.secrets.deep = ["{0}", {{ x = "{0}" }}]
use_key = true
[models.remote.options.tokens]
any = "{0}"
"""


@given(secret, secret)
def test_no_secret_is_in_a_plan_or_a_diff_and_yet_a_changed_one_shows(old: str, new: str) -> None:
    files = [{"hxd.toml": OPTIONS.format(value).encode()} for value in (old, new)]
    text = diff(*files)
    plans = [
        replace(
            BASE,
            pull=Pull(proxy=f"http://me:{value}@proxy.example:3128"),
            models={"a": ModelSettings(options=read["models"]["remote"]["options"])},
        )
        for value, read in (
            (old, tomllib.loads(files[0]["hxd.toml"].decode())),
            (new, tomllib.loads(OPTIONS.format(new))),
        )
    ]
    found = plan(plans[0], plans[1], {"a": 1})
    told = "\n".join(found.lines()) + json.dumps(found.body(), ensure_ascii=False) + text
    assert old not in told and new not in told
    assert bool(text) == (not found.nothing) == (old != new)
    if text:
        assert "-api_key = •••" in text and "+api_key = •••" in text


@given(secret, st.integers(0, 400))
def test_a_file_that_is_not_valid_hides_its_secrets_too(value: str, cut: int) -> None:
    text = OPTIONS.format(value)
    for broken in (text[cut:] + "\n=", "x = [\n" + text, 'x = "' + text):
        lines = masked_lines(broken)
        assert len(lines) == len(broken.split("\n"))
        assert not any(value in line for line in lines)


@given(st.text())
def test_a_covered_text_has_as_many_lines_as_before(text: str) -> None:
    assert len(masked_lines(text)) == text.count("\n") + 1


def test_a_file_without_secrets_is_shown_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "etc/hxd.toml").read_text("utf-8")
    assert "\n".join(masked_lines(text)) == text


def test_a_diff_shows_files_that_come_and_go_and_spells_out_what_a_terminal_obeys() -> None:
    old = {"hxd.toml": b"a = 1\nb = 2\n", "conf.d/x.toml": b"x = 1\n"}
    new = {"hxd.toml": b"a = 1\nb = '\xe2\x80\xae'", "conf.d/\x1b": b"# \x1b[31m\xff\n"}
    assert diff(old, new) == (
        "--- /dev/null\n+++ conf.d/\\x1b\n@@ -0,0 +1,1 @@\n+•••\n"
        "--- conf.d/x.toml\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-x = 1\n"
        "--- hxd.toml\n+++ hxd.toml\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n"
        "+b = '\\u202e'  \\ no newline at the end\n"
    )
    assert diff(old, old) == ""


@pytest.mark.parametrize(
    "line", ["#" + "key" * 50_000, " " * 900_000, "a" * 900_000, "[" * 900_000]
)
def test_a_hostile_line_is_covered_in_linear_time(line: str) -> None:
    assert len(masked_lines(line)) == len(masked_lines(f"x = 1 {line}")) == 1

"""What `hxd check` and `hxd serve` say of a bad configuration: exit 78, and where to look."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import ROOT, echo, get, run_hxd, running, write_config

DEMO_FILE = ROOT / "hxd/demo/2/hxd-demo-f16.gguf"


def check(folder: Path, text: str) -> tuple[int, str]:
    file = folder / "hxd.toml"
    file.write_text(text)
    done = run_hxd("check", "--config", str(file))
    return done.returncode, done.stderr.replace(f"{file}: ", "FILE: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.x]\nslot = 4", "FILE: models.x.slot: unknown key, did you mean 'slots'?"),
        ("[model.x]", "FILE: model: unknown key, did you mean 'models'?"),
        ("[listen]\nhttp = 8420", "FILE: listen.http: expected a string, found an integer"),
        ("[listen]\nhttp = 'here'", "FILE: listen.http: 'here' is not an address"),
        ("[models.x]\nplugin='echo'\nslots = 0", "FILE: models.x.slots: 0 is out of range"),
        ("[models.x]\nplugin='echo'\nslots = true", "FILE: models.x.slots: expected an integer"),
        ("[models.x]\nplugin='echo'\n[models.x]\nplugin='echo'", "FILE: models.x: declared twice"),
        ("[models.x]\nplugin='ehco'", "models.x.plugin: no plugin 'ehco'. Did you mean 'echo'"),
        ("[models.x]", "FILE: models.x: no source"),
        ("[models.'../x']\nplugin='echo'", "FILE: models.../x: a"),
        ("[models.x]\nsource='nowhere.gguf'", "FILE: models.x.source: no such file"),
        ("[models.x]\nsource='builtin:demo@9'", "FILE: models.x.source: no version '9'"),
        ("[models.x]\nsource='builtin:dmeo'", "models.x.source: 'builtin:dmeo' is not"),
        ("[models.x]\nsource='hxd.toml'", "FILE: models.x.source: not a model file"),
        ("models = 3", "FILE: models: expected tables, found an integer"),
        ("[auth]\nrequired=false\n[listen]\nhttp='0.0.0.0:1'", "auth.required: false is refused"),
        ("[models.x]\nplugin='echo'\nqueue_time='soon'", "models.x.queue_time: 'soon' is not"),
        ("x = ", "FILE: not valid TOML"),
        ("[a\n" * 1000, "FILE: not valid TOML"),
    ],
)  # fmt: skip
def test_a_bad_config_exits_78_and_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    code, stderr = check(tmp_path, text)
    assert code == 78
    assert said in stderr
    assert "Traceback" not in stderr


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    code, stderr = check(tmp_path, "a = 1\n[models.x]\nslot = 1\n[limits]\nbody = 'big'")
    assert code == 78
    assert len(stderr.strip().splitlines()) == 4


def test_a_model_in_two_files_is_reported_with_both(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/more.toml").write_text("[models.x]\nplugin = 'echo'")
    code, stderr = check(tmp_path, "[models.x]\nplugin = 'echo'")
    assert code == 78
    assert "more.toml: models.x: declared twice; it stands in" in stderr


def test_a_fault_is_told_of_the_file_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    more = tmp_path / "conf.d/more.toml"
    more.write_text('[models.m]\nsource = "nowhere.gguf"\n')
    config = write_config(tmp_path, echo())
    said = run_hxd("check", "--config", str(config)).stderr
    assert said.startswith(f"{more}: models.m.source: no such file")


def test_a_name_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, '[models."a\\n\\u001b[2Jb"]\nplugin = "echo"\n')
    said = run_hxd("check", "--config", str(config)).stderr
    assert said.startswith(f"{config}: models.a\\n\\x1b[2Jb: a model's name has")
    assert len(said.splitlines()) == 1


def test_a_pipe_in_conf_d_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    pipe = tmp_path / "conf.d/pipe.toml"
    os.mkfifo(pipe)
    config = write_config(tmp_path, echo())
    result = run_hxd("check", "--config", str(config))
    assert (result.returncode, result.stderr) == (
        78, f"{pipe}: can't be read: not a regular file\n",
    )  # fmt: skip


def test_files_in_conf_d_add_to_the_main_file(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/more.toml").write_text("[models.y]\nplugin = 'echo'\n[limits]\ndrain = 5")
    assert check(tmp_path, "[models.x]\nplugin = 'echo'\n[limits]\nbody = 4096")[0] == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[:100], "truncated: the file is cut off inside its header"),
        (lambda data: data[:-1000], "truncated: the tensor"),
        (lambda data: b"PK\x03\x04" + data[4:], "not a model file: it is a zip archive"),
        (lambda data: b"tjgg" + data[4:], "width is 0 in the header"),
        (lambda data: data[:4] + b"\x09" + data[5:], "GGUF version 9 is not known"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "the header announces"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "a string of 18446744073709551615"),
    ],
    ids=["empty", "short", "cut", "zip", "ggml", "version", "counts", "string"],
)
def test_a_bad_model_file_is_refused_by_what_was_found(
    tmp_path: Path, damage: object, said: str
) -> None:
    assert callable(damage)
    (tmp_path / "m.gguf").write_bytes(damage(DEMO_FILE.read_bytes()))
    code, stderr = check(tmp_path, "[models.x]\nsource = 'm.gguf'")
    assert code == 78
    assert f"FILE: models.x.source: {said}" in stderr or f"FILE: models.x.plugin: {said}" in stderr


def test_serve_refuses_to_start_when_nothing_could_be_served(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[models.x]\nsource = 'nowhere.gguf'")
    done = run_hxd("serve", "--config", str(config))
    assert done.returncode == 78
    assert "models.x.source: no such file" in done.stderr


async def test_serve_starts_with_what_can_be_served_and_says_what_cannot(tmp_path: Path) -> None:
    models = echo() + "[models.x]\nsource = 'nowhere.gguf'"
    async with running(write_config(tmp_path, models), ready=False) as daemon:
        await daemon.wait_log("replica=echo-1 from=warming to=ready")
        status, body = await get(daemon.url + "/readyz")
        assert status == 503
        assert "model x: source: no such file" in str(body["problems"])


def test_a_config_that_is_not_there_exits_78(tmp_path: Path) -> None:
    done = run_hxd("check", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 78
    assert "none.toml: can't be read: No such file" in done.stderr

"""Plugin folders: what is listed, what is refused, and that only verified bytes are imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from hxd import pluginfile
from hxd.daemon.store import plugins
from hxd.pluginfile import PluginError
from tests.support import ROOT

CODE = """
from hxd.hookspecs import Description, hookimpl
{more}
@hookimpl
def hxd_describe():
    return Description(formats=frozenset({{"none"}}))

@hookimpl
def hxd_backend(options):
    return None
"""


def plugin(folder: Path, *, more: str = "", **manifest: str) -> Path:
    """A plugin `mine` with a right manifest, `manifest` overriding TOML values."""
    home = folder / "mine"
    home.mkdir(exist_ok=True)
    (home / "main.py").write_text(CODE.format(more=more))
    write_manifest(home, **manifest)
    return home


def write_manifest(home: Path, **manifest: str) -> None:
    fields = {"name": '"mine"', "version": '"1"', "api": "1", "entry": '"main"'}
    fields |= {"formats": '["none"]', **manifest}
    lines = [f"{key} = {value}" for key, value in fields.items()]
    lines += ["[files]"]
    lines += [
        f'"{name}" = "{hashlib.sha256((home / name).read_bytes()).hexdigest()}"'
        for name in pluginfile.present(home)
    ]
    (home / "plugin.toml").write_text("\n".join(lines))


def chosen(folder: Path) -> plugins.Plugin:
    installed, refused = plugins.scan([folder])
    return plugins.choose("mine", None, installed, refused)


def imported(home: Path) -> subprocess.CompletedProcess[str]:
    """The worker's import of `home` in a process of its own."""
    _, digest = pluginfile.read(home)
    script = (
        "import sys; from pathlib import Path\n"
        "from hxd.worker.load import import_plugin, describe\n"
        "manager, manifest = import_plugin(Path(sys.argv[1]), sys.argv[2])\n"
        "print(describe(manager, manifest).formats)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, str(home), digest], capture_output=True, text=True, cwd=ROOT
    )


def test_the_built_in_plugins_match_their_manifests() -> None:
    installed, refused = plugins.scan([plugins.builtin_folder()])
    assert refused == {}
    assert {"echo", "llama_cpp"} <= installed.keys()
    for name in installed:
        plugins.choose(name, None, installed, refused)


def test_a_good_plugin_is_chosen_and_imported(tmp_path: Path) -> None:
    home = plugin(tmp_path)
    assert chosen(tmp_path).folder == home
    assert "none" in imported(home).stdout


def test_of_two_plugins_the_one_that_names_a_format_first_loads_it(tmp_path: Path) -> None:
    for name, formats in (("a_both", '["ggml", "gguf"]'), ("b_one", '["gguf"]')):
        home = tmp_path / name
        home.mkdir()
        (home / "main.py").write_text("")
        write_manifest(home, name=f'"{name}"', formats=formats)
    installed, refused = plugins.scan([tmp_path])
    assert plugins.choose("auto", "gguf", installed, refused).manifest.name == "b_one"
    assert plugins.choose("auto", "ggml", installed, refused).manifest.name == "a_both"
    with pytest.raises(PluginError, match="no plugin loads onnx files"):
        plugins.choose("auto", "onnx", installed, refused)


def test_a_file_goes_to_the_plugin_that_is_made_for_it() -> None:
    installed, refused = plugins.scan([plugins.builtin_folder()])
    assert plugins.choose("auto", "gguf", installed, refused).manifest.name == "llama_cpp"
    assert plugins.choose("auto", "ggml", installed, refused).manifest.name == "ctransformers"


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    home = plugin(tmp_path)
    (home / "main.py").write_text("import os")
    with pytest.raises(PluginError, match=r"main\.py is not the file .* sha256 differs"):
        chosen(tmp_path)


@pytest.mark.parametrize("name", ["extra.py", "extra.so", "extra.pth", "sub/extra.py"])
def test_a_file_that_is_not_listed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    home = plugin(tmp_path)
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_text("")
    with pytest.raises(PluginError, match=f"{name} is not listed"):
        chosen(tmp_path)


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    home = plugin(tmp_path)
    (home / "main.py").rename(tmp_path / "elsewhere.py")
    (home / "main.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(PluginError, match="symbolic link"):
        chosen(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"api": "2"}, "plugin API 2; this hxd has 1"),
        ({"name": '"../x"'}, "use a-z"),
        ({"entry": '"os.path"'}, "not the name of a module"),
        ({"entry": '"other"'}, "other.py, the entry, is not listed"),
        ({"formats": '"none"'}, "formats"),
        ({"surprise": "1"}, "surprise"),
        ({"requirements": '["no-such-package-anywhere>=1"]'}, "needs no-such-package-anywhere"),
        ({"requirements": '["pluggy>=99"]', "extra": '"llama"'}, r"install hxd\[llama\]"),
        ({"requirements": '["pluggy @ file:///x"]'}, "is not NAME"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_reason(
    tmp_path: Path, manifest: dict[str, str], words: str
) -> None:
    plugin(tmp_path, **manifest)
    installed, refused = plugins.scan([tmp_path])
    with pytest.raises(PluginError, match=words):
        plugins.choose("mine" if installed else next(iter(refused)), None, installed, refused)


@pytest.mark.parametrize("path", ["../main.py", "/etc/passwd", "a/../main.py", "./main.py"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    home = plugin(tmp_path)
    with (home / "plugin.toml").open("a") as manifest:
        manifest.write(f'\n"{path}" = "{"0" * 64}"\n')
    _, refused = plugins.scan([tmp_path])
    assert "is not a path inside the folder" in refused["mine"]


def test_a_manifest_that_changed_after_the_check_is_not_imported(tmp_path: Path) -> None:
    home = plugin(tmp_path)
    digest = chosen(tmp_path).digest
    (home / "main.py").write_text("print('evil')")
    write_manifest(home)
    script = (
        "import sys; from pathlib import Path; from hxd.worker.load import import_plugin\n"
        "import_plugin(Path(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home), digest], capture_output=True, text=True, cwd=ROOT
    )
    assert "changed since the daemon verified it" in done.stderr
    assert "evil" not in done.stdout


def test_stale_bytecode_is_never_run(tmp_path: Path) -> None:
    home = plugin(tmp_path)
    cache = home / "__pycache__"
    cache.mkdir()
    evil = tmp_path / "evil.py"
    evil.write_text("print('evil')")
    subprocess.run(
        [sys.executable, "-c", f"import py_compile; py_compile.compile({str(evil)!r}, "
         f"{str(cache / f'main.{sys.implementation.cache_tag}.pyc')!r})"],
        check=True,
    )  # fmt: skip
    done = imported(home)
    assert done.returncode == 0
    assert "evil" not in done.stdout


def test_a_misspelt_hook_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    home = plugin(tmp_path, more="@hookimpl\ndef hxd_bakend(options): ...\n")
    assert "hxd_bakend" in imported(home).stderr


def test_a_plugin_that_describes_itself_otherwise_than_its_manifest_is_refused(
    tmp_path: Path,
) -> None:
    home = plugin(tmp_path, formats='["gguf"]')
    assert "names the formats ['none']" in imported(home).stderr

"""kill -9 at any moment of the store's work leaves whole versions, labels that lead somewhere, and
snapshots that can be restored from. `HXD_SEED` repeats a run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from hxd.daemon.store.backup import backup, restore, snapshots
from hxd.daemon.store.doctor import examine
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import Label, ModelName, Reference
from tests.support import ROOT

KILLS = 25
SEED = int(os.environ.get("HXD_SEED", random.SystemRandom().randrange(1 << 32)))

# Works until it is killed, and prints a line after each thing it has done.
WORKER = """
import random, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from hxd.daemon.store import removal
from hxd.daemon.store.backup import backup
from hxd.daemon.store.derived import add_variant
from hxd.daemon.store.faults import Conflict, NotThere
from hxd.daemon.store.library import Library
from hxd.daemon.store.stage import Stage
from tests import tiny

root, target, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
library = Library(root)
with library.lock():
    library.prepare()
    print("prepared", flush=True)
    for turn in range(10_000):
        name = draw.choice(["a", "a/b", "c"])
        there = library.versions(name)
        act = draw.choice(["publish", "publish", "split", "label", "remove", "variant", "backup"])
        try:
            if act in ("publish", "split") or not there:
                folder = library.workspace("source")
                if act == "split":
                    files = tiny.write_split(folder, 2, seed=draw.randrange(1 << 30))
                else:
                    files = [tiny.write(folder / "m.gguf", draw.randrange(1 << 30), size=1 << 18)]
                take = draw.choice(["share", "move"])
                with Stage.of(library, files, name, take=take) as stage:
                    stage.publish({"turn": turn}, golden=b"turn %d" % turn,
                                  labels=draw.choice([None, ["stable"], ["stable", "canary"]]))
                library.drop(folder)
            elif act == "label":
                library.set_label(name, draw.choice(["stable", "canary"]), draw.choice(there))
            elif act == "remove":
                removal.remove(library, name, draw.choice(there))
            elif act == "variant":
                folder = library.workspace("quantize")
                file = tiny.write(folder / "q.gguf", draw.randrange(1 << 30), file_type=2)
                add_variant(library, library.version(name, draw.choice(there)), "q4_0", file,
                            made_by="x")
                library.drop(folder)
            else:
                backup(library, target, names=[name])
        except (Conflict, NotThere):
            pass
        print(act, flush=True)
"""


def killed(root: Path, target: Path, draw: random.Random) -> list[str]:
    """Lets a worker do some things and kills it in the middle of the next; returns what it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, root, target, str(draw.randrange(1 << 30))],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []
    with child:
        assert child.stdout is not None
        for _ in range(draw.randrange(5)):
            said.append(child.stdout.readline().strip())
        # Somewhere inside the next act, which takes some milliseconds, or in the start itself.
        timer = threading.Timer(draw.uniform(0, 0.03), child.send_signal, [signal.SIGKILL])
        timer.start()
        said += [line.strip() for line in child.stdout]
    assert child.returncode == -signal.SIGKILL
    return said


def check(root: Path, before: dict[str, int], when: str) -> None:
    """After a start, everything is whole; `before` has the highest number that each model had."""
    library = Library(root)
    library.prepare()
    assert examine(library) == [], when
    assert library.versions("hxd-demo") == [1, 2] and "stable" in library.labels("hxd-demo")
    for name in library.names():
        versions = library.versions(name)
        for label, number in library.labels(name).items():
            assert number in versions, (name, label, when)
            found = library.resolve(Reference(ModelName(name), selector=Label(label)))
            for variant in found.variants():
                assert ensure(library, found, variant).is_file()
        if name != "hxd-demo":
            assert library.resolve(Reference.parse(name)).number in versions, when
            assert library.golden(name) is not None, when
        highest = library.labelled(ModelName(name)).next
        assert max([highest, *(number + 1 for number in versions)]) >= before.get(name, 0), when
        before[name] = max(before.get(name, 0), highest, *versions)
    assert [path.name for path in library.workspaces.folder.iterdir()] == ["pull"], when


def test_a_killed_store_is_whole_and_no_number_is_given_twice(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    root, target = tmp_path / "store", tmp_path / "backup"
    before: dict[str, int] = {}
    done: list[str] = []
    for kill in range(KILLS):
        done += killed(root, target, draw)
        check(root, before, f"HXD_SEED={SEED}, after kill {kill}")
    # The kills came at all stages of the work, not only before it began.
    assert {"prepared", "publish", "label"} <= set(done), f"HXD_SEED={SEED}"
    for one in snapshots(target):
        assert one.fault is None, f"HXD_SEED={SEED}"
        empty = Library(tmp_path / f"restored-{one.id}")
        assert sorted(restore(empty, target, snapshot=one.id).versions) == sorted(one.versions)
        assert examine(empty) == []
    library = Library(root)
    library.prepare()
    assert backup(library, target).problems == []


def test_work_that_is_killed_before_any_of_its_changes_is_done_or_undone(tmp_path: Path) -> None:
    # In memory where that can be had: what a process left is there either way, and syncs are free.
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.crashing", folder],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name: wrong for name, (_, wrong) in report.items() if wrong} == {}
    assert all(moments >= 3 for moments, _ in report.values()), report

"""Compiled kernels between processes: found again, never trusted blindly, never in the way."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron import places
from fastneuron.kernels.numba_cpu import cache, jit
from fastneuron.kernels.numba_cpu.announce import Announcer
from fastneuron.warmup import DTYPES, warm_up

PACKAGE = Path(places.__file__).parent
POSIX = hasattr(os, "getuid")

# Prints hits and misses of one small kernel. `patience`: seconds before a compilation is announced.
SMALL_KERNEL = """
import sys
import numpy as np
from fastneuron.kernels.numba_cpu import SLOTS, cache
cache._announcer = cache.Announcer(float(sys.argv[1]))
for dtype in sys.argv[2:]:
    z = np.array([[1.0, -2.0]], dtype)
    got = SLOTS["bias_act_forward"](z, None, "relu")
    assert got.dtype == dtype and got.tolist() == [[1.0, 0.0]], got
print(sum(r.found for r in cache.records), sum(not r.found for r in cache.records))
"""


def start(folder: Path, *dtypes: str, patience: float = 1e9) -> subprocess.Popen[str]:
    environment = {**os.environ, "FASTNEURON_CACHE_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_KERNEL, str(patience), *(dtypes or ("float32",))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, int, str]:
    """Return cache hits, cache misses, and standard error of the process."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    hits, misses = map(int, stdout.split())
    return hits, misses, stderr


def run(folder: Path, *dtypes: str, **options: Any) -> tuple[int, int, str]:
    return finish(start(folder, *dtypes, **options))


def kernel_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{places.KERNEL_SUFFIX}"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the small kernel in both dtypes."""
    folder = tmp_path_factory.mktemp("filled")
    assert run(folder, *DTYPES) == (0, 2, "")
    return folder


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    for path in kernel_files(filled):
        target = tmp_path / path.relative_to(filled)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def test_the_next_process_finds_it(filled: Path) -> None:
    assert run(filled, *DTYPES) == (2, 0, "")
    assert [p.parent for p in kernel_files(filled)] == [filled / cache._folder().name] * 2
    assert not list(filled.rglob("*.tmp"))


def test_nothing_is_written_beside_the_sources(filled: Path) -> None:
    """So an installation that cannot be written makes no difference."""
    kinds = (".nbi", ".nbc", ".tmp", places.KERNEL_SUFFIX)
    assert [p for p in PACKAGE.rglob("*") if p.suffix in kinds] == []


@pytest.mark.parametrize("damage", ["empty", "header", "half", "one bit", "garbage", "folder"])
def test_a_damaged_file_is_compiled_anew(copy: Path, damage: str) -> None:
    path = kernel_files(copy)[0]
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {
            "empty": b"",
            "header": content[:40],
            "half": content[: len(content) // 2],
            "one bit": content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
            "garbage": b'{"key": 1}\n' + bytes(5000),
        }
        path.write_bytes(changed[damage])
    hits, misses, stderr = run(copy, *DTYPES)
    assert (hits, misses) == (1, 1)
    if damage == "folder":  # which no file can replace
        assert stderr.count("RuntimeWarning") == 1
    else:
        assert stderr == ""
        assert run(copy, *DTYPES) == (2, 0, "")


def test_the_file_of_another_signature_is_not_taken(copy: Path) -> None:
    first, second = kernel_files(copy)
    first.write_bytes(second.read_bytes())
    assert run(copy, *DTYPES) == (1, 1, "")


def test_four_first_starts_at_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, *DTYPES) for _ in range(4)]
    for hits, misses, stderr in map(finish, processes):
        assert (hits + misses, stderr) == (2, "")
    assert run(tmp_path, *DTYPES) == (2, 0, "")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_place_that_is_no_folder_costs_one_warning(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    hits, misses, stderr = run(blocker, *DTYPES)
    assert (hits, misses) == (0, 2)
    assert stderr.count("FASTNEURON_CACHE_DIR") == 1
    assert "Traceback" not in stderr


def test_a_folder_that_cannot_be_written_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked of the class, as the administrator can write everywhere."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "_write", refuse)
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(cache, "_warned", False)

    @jit.kernel
    def double(x):  # type: ignore[no-untyped-def]
        return x + x

    with pytest.warns(RuntimeWarning, match=r"Permission denied.*FASTNEURON_CACHE_DIR"):
        assert double(2) == 4
    assert double(2.0) == 4.0  # no second warning
    assert [r.kept for r in cache.records[-2:]] == [False, False]
    jit.kernels.remove(double)


@pytest.mark.skipif(not POSIX, reason="Windows keeps the user's own folders from others")
def test_what_others_can_write_is_not_trusted(copy: Path) -> None:
    path = kernel_files(copy)[0]
    path.chmod(0o666)
    assert run(copy, *DTYPES) == (1, 1, "")  # and replaced by one that only we can write
    assert run(copy, *DTYPES) == (2, 0, "")
    for mode in (0o1777, 0o775):
        path.parent.chmod(mode)
        assert f"can be written by other users (mode {mode:o})" in str(places.distrust(path.parent))
    hits, misses, stderr = run(copy, *DTYPES)
    assert (hits, misses) == (0, 2)
    assert stderr.count("RuntimeWarning") == 1
    assert "can be written by other users" in stderr
    path.parent.chmod(0o755)
    copy.chmod(0o777)
    assert f"{copy} can be written by every user" in str(places.distrust(path.parent))
    copy.chmod(0o1777)  # as /tmp: others cannot take our folder away
    assert places.distrust(path.parent) is None


@pytest.mark.skipif(not POSIX or os.getuid() != 0, reason="only the administrator gives files away")
def test_another_users_folder_is_not_trusted(tmp_path: Path) -> None:
    assert places.distrust(tmp_path) is None
    os.chown(tmp_path, 12345, -1)
    assert "belongs to another user (uid 12345)" in (places.distrust(tmp_path) or "")


def test_a_folder_to_be_made_is_judged_by_those_above(tmp_path: Path) -> None:
    assert places.distrust(tmp_path / "a" / "b") is None
    tmp_path.chmod(0o777)
    if POSIX:
        assert str(tmp_path) in (places.distrust(tmp_path / "a" / "b") or "")


def test_folders_of_other_versions_go_when_nobody_uses_them(tmp_path: Path) -> None:
    day = 24 * 3600
    ages = {"0": 1, "1": 2, "2": 40, "3": 50, "4": 60}
    for digit, days in ages.items():
        folder = tmp_path / f"numba0.63.0-py311-{digit * 16}"
        folder.mkdir()
        for name in ("a.kernel", "b.nbi", "c.nbc", "d.kernel.1.tmp"):
            (folder / name).touch()
        os.utime(folder, (time.time() - days * day,) * 2)
    holder = tmp_path / f"numba0.63.0-py311-{'5' * 16}"
    holder.mkdir()
    (holder / "letter.txt").touch()
    foreign = tmp_path / "numba0.63.0-py311-mine"
    foreign.mkdir()
    os.utime(foreign, (0, 0))
    os.utime(holder, (0, 0))
    own = tmp_path / f"numba0.63.0-py311-{'f' * 16}"
    own.mkdir()
    os.utime(own, (0, 0))
    cache._remove_stale.__wrapped__(own)
    left = {path.name[-16:][:1] for path in tmp_path.iterdir()}
    # The newest three with our own; of the rest those that were used within 30 days, that hold
    # something else, or that are not called like ours.
    assert left == {"f", "0", "1", "5", foreign.name[-16:][:1]}
    assert (holder / "letter.txt").exists()


def test_three_folders_stay_however_old(tmp_path: Path) -> None:
    for digit in "0123":
        folder = tmp_path / f"numba0.63.0-py311-{digit * 16}"
        folder.mkdir()
        os.utime(folder, (int(digit), int(digit)))
    own = tmp_path / f"numba0.63.0-py311-{'f' * 16}"
    own.mkdir()
    cache._remove_stale.__wrapped__(own)
    assert {path.name[-1] for path in tmp_path.iterdir()} == {"f", "3", "2"}


def test_use_renews_a_folder(copy: Path) -> None:
    folder = kernel_files(copy)[0].parent
    os.utime(folder, (0, 0))
    run(copy)
    assert time.time() - folder.stat().st_mtime < 24 * 3600


def test_the_digest_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTNEURON_CACHE_DIR", str(tmp_path))
    folder = places.kernel_folder("0.63.0")
    assert folder.parent == tmp_path
    assert places.kernel_digest() in folder.name
    assert cache._FOLDER_NAME.fullmatch(folder.name)


def test_the_digest_covers_what_kernels_take_from_elsewhere() -> None:
    covered = set(places._CONSTANTS)
    # Python around the compiled code, of which nothing is compiled in.
    covered |= {"places.py", "kernels/blocked.py", "kernels/panel_slots.py"}
    for path in (PACKAGE / "kernels" / "numba_cpu").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastneuron"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}".removeprefix("fastneuron.")
                    file = inner.replace(".", "/") + ".py"
                    if not (PACKAGE / file).exists():
                        file = inner.rpartition(".")[0].replace(".", "/") + ".py"
                    if not file.startswith("kernels/numba_cpu"):
                        assert file in covered, f"{path.name} imports {file}"


def test_the_header_tells_what_is_kept(filled: Path) -> None:
    folder = kernel_files(filled)[0].parent
    headers = places.kept_kernels(folder)
    assert [(h["kernel"], h["dtype"]) for h in headers] == [("bias_act", d) for d in DTYPES]
    (folder / f"x{places.KERNEL_SUFFIX}").write_text("[1]\n")
    assert places.kept_kernels(folder) == headers
    (folder / f"x{places.KERNEL_SUFFIX}").unlink()


def test_warming_up_meets_every_kernel() -> None:
    for _ in warm_up("numba"):
        pass
    own = [k for k in jit.kernels if k.py_func.__module__.startswith("fastneuron.")]
    for kernel in own:
        met = {cache._dtype(signature) for signature in kernel.signatures}
        assert met >= set(DTYPES), kernel
    assert len(own) > 5


def test_warming_up_what_compiles_nothing() -> None:
    assert list(warm_up("numpy")) == []


def test_what_was_warmed_up_is_found() -> None:
    """In the cache of this test run, where most of it is already."""
    command = [sys.executable, "-m", "fastneuron", "warmup", "--json"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        kernels = json.loads(done.stdout)["kernels"]
        assert {k["dtype"] for k in kernels} == set(DTYPES)
        assert all(k["kept"] for k in kernels)
    assert all(k["found"] for k in kernels)


def test_what_cannot_be_kept_makes_the_command_fail(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-c", FAILING_WARMUP],
        env={**os.environ, "FASTNEURON_CACHE_DIR": str(blocker)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "1 of 1 kernels could not be kept" in done.stderr.splitlines()[-1]


# The command with one small kernel instead of all.
FAILING_WARMUP = """
import sys
import fastneuron.warmup
from fastneuron.cli import main
def use(backend, dtypes):
    import numpy as np
    backend.slots["bias_act_forward"](np.ones((1, 1)), None)
    yield
fastneuron.warmup._uses = use
sys.exit(main(["warmup"]))
"""


def test_a_long_compilation_is_announced_once(filled: Path, tmp_path: Path) -> None:
    _hits, misses, stderr = run(tmp_path, *DTYPES, patience=0)
    assert misses == 2
    assert stderr.startswith("fastneuron: compiling kernels for this machine, once")
    assert stderr.count("\n") == 1
    assert run(filled, *DTYPES, patience=0) == (2, 0, "")  # nothing was compiled


def say(announcer: Announcer, goes_on: bool = True) -> None:
    announcer.begin(lambda: goes_on, kept=True)
    assert announcer._timer is not None
    announcer._timer.join(10)


def test_nothing_is_announced_of_what_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    announcer = Announcer(1e6)
    announcer.begin(lambda: True, kept=True)
    announcer.end()
    say(Announcer(0), goes_on=False)
    assert capsys.readouterr().err == ""


def test_the_patience_is_for_all_kernels_together(capsys: pytest.CaptureFixture[str]) -> None:
    announcer = Announcer(1e6)
    announcer.begin(lambda: True, kept=True)
    announcer._start -= 1e6
    announcer.end()
    announcer.begin(lambda: True, kept=False)
    assert announcer._timer is not None
    announcer._timer.join(10)
    assert capsys.readouterr().err.count("for this process") == 1


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_stderr_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: bool
) -> None:
    with (tmp_path / "err").open("w") as stream:
        pass
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    say(Announcer(0))

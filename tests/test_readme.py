"""README does what it says: its Python runs, its commands exist, its facts agree with the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastneuron.cli import main

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)


def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) >= 5
    namespace: dict[str, object] = {}
    text = README.read_text("utf-8")
    for block in found:
        line = text[: text.index(block)].count("\n")
        # Blank lines before it, so that a traceback shows README's own line numbers.
        exec(compile("\n" * line + block, str(README), "exec"), namespace)


def test_the_first_two_shell_blocks_install_and_run() -> None:
    first, second = blocks("bash")[:2]
    assert "pip install" in first
    assert first.splitlines()[-1] == "fastneuron demo"
    assert "pip install" in second
    assert second.splitlines()[-1] == "python -m pytest"


def test_every_fastneuron_command_shown_is_well_formed(capsys: pytest.CaptureFixture[str]) -> None:
    """Files that do not exist are a failure (1), but arguments that do not exist are usage (2)."""
    shown = re.findall(r"^fastneuron ((?:train|predict) .*)$", README.read_text("utf-8"), re.M)
    assert len(shown) == 2
    for arguments in shown:
        assert main(shlex.split(arguments)) == 1
        assert "No such file" in capsys.readouterr().err


def test_every_variable_that_the_code_reads_is_listed() -> None:
    root = README.parent
    sources = [*root.glob("fastneuron/**/*.py"), root / "setup.py"]
    text = "".join(path.read_text("utf-8") for path in sources)
    used = set(re.findall(r"FASTNEURON_[A-Z_]+[A-Z]", text))
    listed = set(re.findall(r"^\| `(FASTNEURON_[A-Z_]+)` \|", README.read_text("utf-8"), re.M))
    assert used == listed

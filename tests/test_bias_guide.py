"""docs/bias.md says what the code computes: its Python runs, and every number in it is compared."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal
from pathlib import Path

import pytest

from fastneuron import backends
from fastneuron.cli import main
from fastneuron.elision import Elision
from fastneuron.explain import TOPICS
from fastneuron.layers import BatchNorm, Dense, Dropout
from fastneuron.spec import NetworkSpec

GUIDE = Path(__file__).parents[1] / "docs" / "bias.md"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def blocks() -> list[tuple[int, str, str]]:
    """Every fenced block: its first line's number, its language with marks, its text."""
    text = GUIDE.read_text("utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    return [(text[: match.start()].count("\n") + 1, match[1], match[2]) for match in found]


def assert_same(got: str, want: str, numbers: bool = True) -> None:
    """The words are equal; each number is, but for one unit of its last printed digit.

    That unit is what rounding in another order may turn over.
    """
    shape = [" ".join(NUMBER.sub("#", text).split()) for text in (got, want)]
    assert shape[0] == shape[1]
    if not numbers:
        return
    pairs = zip(NUMBER.findall(got), NUMBER.findall(want), strict=True)
    for value, printed in ((Decimal(got), Decimal(want)) for got, want in pairs):
        exponent = printed.as_tuple().exponent
        assert isinstance(exponent, int)
        unit = Decimal(1).scaleb(exponent) if exponent < 0 else 0
        assert abs(value - printed) <= unit, (value, printed)


@pytest.mark.parametrize(
    ("got", "want", "fits"),
    [
        ("slope 2.599", "slope 2.598", True),
        ("slope 2.599", "slope 2.597", False),
        ("slope 3", "slope 2", False),
        ("slope 2.599", "shift 2.599", False),
        ("1.2e-07", "1.3e-07", True),
        ("1.2e-07", "1.4e-07", False),
        ("a  b", "a b", True),
        ("1 2", "1", False),
    ],
)
def test_the_comparison_itself(got: str, want: str, fits: bool) -> None:
    if fits:
        assert_same(got, want)
    else:
        with pytest.raises(AssertionError):
            assert_same(got, want)


def test_every_command_prints_what_the_guide_shows(
    backend: backends.Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for _, mark, text in blocks():
        if not mark.startswith("console"):
            continue
        command, want = text.split("\n", 1)
        assert command.startswith("$ fastneuron explain ")
        arguments = shlex.split(command.removeprefix("$ fastneuron "))
        assert main([*arguments, "--backend", backend.name]) == 0
        # Times belong to a machine: of "measured" blocks the words alone are compared.
        assert_same(capsys.readouterr().out, want, numbers="measured" not in mark)
        shown.append(arguments[1])
    assert shown == list(TOPICS)


def test_every_python_block_runs_and_prints_what_stands_under_it(
    backend: backends.Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks()
    namespace: dict[str, object] = {}
    compared = 0
    for i, (line, mark, text) in enumerate(found):
        if mark != "python":
            continue
        # Blank lines before it, so that a traceback shows the guide's own line numbers.
        with backends.use(backend.name):
            exec(compile("\n" * line + text, str(GUIDE), "exec"), namespace)
        printed = capsys.readouterr().out
        want = found[i + 1][2] if i + 1 < len(found) and found[i + 1][1] == "text" else ""
        assert_same(printed, want)
        compared += bool(want)
    assert compared >= 6


def test_the_blocks_that_draw_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plots)")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    with backends.use("numpy"):
        for line, mark, text in blocks():
            if mark.startswith("python"):
                exec(compile("\n" * line + text, str(GUIDE), "exec"), namespace)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "activations.png",
        "biases.png",
        "boundary.png",
        "learning.png",
    ]


def test_every_figure_that_is_named_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plots)")
    assert main(["explain", "--figures", str(tmp_path), "--backend", "numpy"]) == 0
    lines = re.findall(r"^Figures?: (.*?)\.$", GUIDE.read_text("utf-8"), re.M | re.S)
    named = [name for line in lines for name in re.findall(r"`(\S+\.png)`", line)]
    assert sorted(named) == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_line_about_elision_is_the_one_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = [Dense(64, 32), BatchNorm(activation="relu"), Dropout(0.1), Dense(out_features=10)]
    Elision().note(layers, NetworkSpec.chain(layers))
    shown = re.search(r"^    (fastneuron: .*?)\n\n", GUIDE.read_text("utf-8"), re.M | re.S)
    assert shown is not None
    assert " ".join(shown[1].split()) == capsys.readouterr().err.strip()


def test_lines_fit_a_page() -> None:
    assert max(map(len, GUIDE.read_text("utf-8").splitlines())) <= 110

"""Every fact of the guide, on every backend: what is wanted comes from the mathematics."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastneuron import backends, cli, explain
from fastneuron.activations import ACTIVATIONS
from fastneuron.cli import main
from fastneuron.datasets import make_linear
from fastneuron.errors import UnknownNameError
from fastneuron.explain import TOPICS, shift, training

EPS = 2.0**-23  # of float32, in which the topics compute


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_readable_and_says_who_computed_it(
    topic: str, backend: backends.Backend
) -> None:
    found = explain.run(topic, backend.name)
    assert (found.topic, found.title) == (topic, TOPICS[topic].title)
    assert found.backend == backend.name
    assert max(map(len, (*found.lines, found.title))) <= 80
    assert all(line == line.rstrip() and line.isascii() for line in found.lines)
    json.dumps(found.values, allow_nan=False)


def test_threshold(backend: backends.Backend) -> None:
    got = explain.run("threshold", backend.name).values
    assert got["thresholds"] == [0.0, -0.5]
    assert got["below"] < -0.5 < got["above"]
    # No float32 lies between: the midpoint rounds to one of them.
    assert np.float32((got["above"] - 0.5) / 2) in (np.float32(-0.5), np.float32(got["above"]))
    for b in (0, 1):
        # 2 x + b is exact for these x, so z and its sign are those of the real numbers.
        z = [2 * x + b for x in got["x"]]
        assert got[f"z_b{b}"] == z
        assert got[f"a_b{b}"] == [max(0.0, value) for value in z]
    at = {x: a > 0 for x, a in zip(got["x"], got["a_b1"], strict=True)}
    assert not at[-0.5]
    assert not at[got["below"]]
    assert at[got["above"]]
    assert got["z_b1"][got["x"].index(-0.5)] == 0


def test_hyperplane(backend: backends.Backend) -> None:
    got = explain.run("hyperplane", backend.name).values
    for b, foot, distance in zip(got["biases"], got["feet"], got["distances"], strict=True):
        assert 3 * foot[0] + 4 * foot[1] + b == 0
        assert math.hypot(*foot) == distance == -b / 5
    assert got["z_on_boundary"] == [[0.0] * 3] * 3
    # z(4x) = 4 z(x) without a bias, to the bit: exactly one of each pair is right.
    assert got["accuracy"] == {"with": 1.0, "without": 0.5}
    # The class that is far off lies beyond the boundary, the near one before it: corners of boxes.
    assert math.hypot(0.5, 0.5) < got["distance_learnt"] < math.hypot(4, 4)
    want = -got["bias"] / math.hypot(*got["weight"])
    assert got["distance_learnt"] == pytest.approx(want, rel=1e-12)


def test_two_boxes_cannot_be_told_apart_by_any_weights(backend: backends.Backend) -> None:
    X, y = shift.two_boxes(50)
    rng = np.random.default_rng(1)
    with backends.use(backend.name):
        for _ in range(20):
            w = rng.standard_normal((2, 1)).astype(np.float32)
            z = shift.ops.dense_forward(X, w)[:, 0]
            assert np.array_equal(z[y == 1], 4 * z[y == 0])
            assert np.mean((z > 0) == y) == 0.5


def test_zeros(backend: backends.Backend) -> None:
    got = explain.run("zeros", backend.name).values
    f0 = dict.fromkeys(ACTIVATIONS, 0.0) | {"sigmoid": 0.5, "softplus": math.log(2)}
    sigmoid = 1 / (1 + math.exp(-1))
    fb = dict.fromkeys(ACTIVATIONS, 1.0) | {
        "sigmoid": sigmoid,
        "silu": sigmoid,
        "gelu": 0.5 * (1 + math.erf(math.sqrt(0.5))),
        "softplus": math.log(1 + math.e),
        "tanh": math.tanh(1),
    }
    for name, entry in ACTIVATIONS.items():
        bound = entry.ulp * EPS  # in ulps of the result, all of them below 2
        assert abs(got["f0"][name] - f0[name]) <= bound
        assert abs(got["fb"][name] - fb[name]) <= 2 * bound + EPS
    assert got["dw"] == [0.0] * 5
    assert got["db"] == [4.0]


def test_line(backend: backends.Backend) -> None:
    got = explain.run("line", backend.name).values
    X, y = (array.astype(np.float64)[:, 0] for array in make_linear(256, slope=2.0, intercept=3.0))
    slope = (X @ y) / (X @ X)
    want = np.mean(np.square(y - slope * X))
    # Descent shrinks an error by 1/6 a step at least, 200 times; what stays is float32's rounding
    # of a gradient of 256 rows, of values up to 5, divided by the curvature of 2/3.
    rounding = 256 * 5 * EPS
    assert got["slope"]["with"] == pytest.approx(2, abs=rounding)
    assert got["bias"] == pytest.approx(3, abs=rounding)
    assert got["error"]["with"] <= rounding**2
    assert got["slope"]["without"] == pytest.approx(slope, abs=rounding)
    assert got["error"]["without"] == pytest.approx(want, abs=5 * rounding)


def test_intercept(backend: backends.Backend) -> None:
    got = explain.run("intercept", backend.name).values
    rounding = 256 * 8 * EPS  # as above; |y| is below 8
    np.testing.assert_allclose(got["trained"], got["least_squares"], rtol=0, atol=rounding)
    # Where dL/db is 0 the residuals' mean is 0: what least squares with an intercept is about.
    assert abs(got["mean_residual"]) <= rounding
    assert got["kinks_f"] == [
        max(x, 0) - 2 * max(x - 1, 0) + 2 * max(x - 2, 0) for x in got["kinks_x"]
    ]
    assert got["homogeneous"] is True


def test_gradient(backend: backends.Backend) -> None:
    got = explain.run("gradient", backend.name).values
    # All numbers are small multiples of a power of two: nothing rounds.
    delta = np.array(got["delta"])
    x = np.array([[1, 2], [3, -1], [0, 2], [-2, 1]])
    w, b = np.array([[1, -1], [2, 1]]), np.array([1, -2])
    y = np.array([[2, 0], [1, 1], [4, -2], [0, 1]])
    # L is the mean over 4 rows of the mean over 2 outputs of (z - y)^2.
    assert np.array_equal(delta, 2 * (x @ w + b - y) / 8)
    assert got["dw"] == (x.T @ delta).tolist()
    want = delta.sum(axis=0).tolist()
    assert got["db"] == got["by_ones"] == got["by_rows"] == got["by_differences"] == want


def test_ones(backend: backends.Backend) -> None:
    got = explain.run("ones", backend.name).values
    assert got["same"] == {"forward": True, "dw": True, "db": True}
    assert 0 <= got["worst_of_bound"] <= 1
    assert 0 < got["equal_share"] <= 1
    assert set(got["seconds"]) == {"fused", "ready", "built"}
    assert min(got["seconds"].values()) > 0


def _sigmoid(b: float) -> float:
    return 1 / (1 + math.exp(-b))


#: dL/db of the neurons of `training.RUNS` at z = b.
SLOPES = {
    "relu": lambda b: 2 * b if b > 0 else 0.0,
    "sigmoid": lambda b: 2 * _sigmoid(b) ** 2 * (1 - _sigmoid(b)),
    "sigmoid on logits": _sigmoid,
    "dead relu": lambda b: 2 * (b - 1) if b > 0 else 0.0,
}


def test_saturation(backend: backends.Backend) -> None:
    got = explain.run("saturation", backend.name).values
    zs = (-8, 0, 2, 8, 16)
    want = [_sigmoid(z) * (1 - _sigmoid(z)) for z in zs]
    # a (1 - a) from an a that is rounded: a few ulps of 1, absolutely.
    np.testing.assert_allclose(got["slopes"]["sigmoid"], want, rtol=1e-5, atol=4 * EPS)
    assert got["slopes"]["relu"] == [0, 0, 1, 1, 1]
    assert set(SLOPES) == set(training.RUNS)
    for name, (*_, start) in training.RUNS.items():
        b = start
        for _ in range(100):
            b -= 0.1 * SLOPES[name](b)
        # Each step rounds b, whose ulp is at most 8 EPS, and a gradient that errs by some ulps of
        # 1 times at most 16.
        assert got["last"][name] == pytest.approx(b, abs=100 * (4 + 0.1 * 64) * EPS)
    assert got["last"]["dead relu"] == -8
    assert got["first"]["dead relu"] == 0
    moved = {name: abs(got["last"][name] - 8) for name in ("relu", "sigmoid", "sigmoid on logits")}
    # Steps of at most 0.1 times the first slope, since the sigmoid falls only towards its middle.
    assert moved["sigmoid"] < 0.01
    assert moved["relu"] > 7.9
    assert moved["sigmoid on logits"] > 8


def test_symmetry(backend: backends.Backend) -> None:
    got = explain.run("symmetry", backend.name).values
    assert got["largest"]["zero"] == 0  # to the bit, after 600 steps
    assert got["accuracy"]["zero"] == pytest.approx(1 / 3)
    # Only the output bias learns: the best it can do is the entropy of three equal classes. It
    # swings about that a little, by the share of each batch.
    assert got["zero_loss"] == pytest.approx(math.log(3), abs=0.02)
    assert got["distinct"]["random"] == 32
    assert got["distinct"]["zero"] == 1
    assert got["largest"]["equal"] > 0
    assert got["accuracy"]["random"] > 0.95
    # One neuron of two inputs sees one direction: it cannot follow three arms.
    assert got["accuracy"]["equal"] < 0.8
    if backend.name != "numpy":  # whose order of sums is the BLAS's, column by column
        assert got["distinct"]["equal"] == 1


def test_batchnorm(backend: backends.Backend) -> None:
    got = explain.run("batchnorm", backend.name).values
    # All of these are exact: z has mean 4 + b and variance 16, and sums of dL/da are whole numbers.
    assert got["difference"] == got["difference_predicted"] == 0
    assert got["db_with"] == [[0.0, 0.0]] * 3
    assert got["db_without"] == got["dbeta"] == [[8.0, 8.0]] * 3
    assert got["running_mean"] == [[4.0, 4.0], [5.0, 5.0], [-60.0, -60.0]]
    assert got["mean_with_beta"] == 3
    assert got["biases"] == {"kept": 4 * 32 + 3, "left out": 2 * 32 + 3}
    kept, without = (np.array(got["losses"][name]) for name in ("kept", "left out"))
    # A bias that moves by rounding alone moves outputs by rounding alone. 100 steps of float32
    # keep that below a thousandth of a loss that falls to a tenth.
    np.testing.assert_allclose(kept, without, rtol=1e-3)
    assert kept[-1] < kept[0] / 4
    # What the kept bias was moved by: sums of 30 deltas below 1, 100 steps of rate 1 in all.
    assert got["largest_kept"] <= 100 * 30 * EPS


def test_prior(backend: backends.Backend) -> None:
    got = explain.run("prior", backend.name).values
    entropy = -(0.02 * math.log(0.02) + 0.98 * math.log(0.98))
    assert got["entropy"] == pytest.approx(entropy, rel=1e-12)
    # 100 of 5,000 rows are positive, half a row more is counted for each answer.
    want = math.log(100.5 / 4900.5)
    assert got["bias"] == {"bias 0": 0, "class prior": pytest.approx(want, rel=EPS)}
    assert abs(got["first"]["class prior"] - 0.02) < 0.01
    assert got["first"]["bias 0"] > 0.4
    loss = got["losses"]
    slow, sooner = loss["Adam(0.001), bias 0"], loss["Adam(0.001), class prior"]
    assert slow[0] == pytest.approx(math.log(2), rel=0.02)
    assert sooner[0] == pytest.approx(entropy, rel=0.02)
    # What the text says of them.
    assert min(slow) > sooner[0]
    assert (np.array(sooner) < slow).all()
    fast, at_once = (loss[f"SGD(0.1, momentum=0.9), {start}"] for start in got["bias"])
    assert at_once[1] < fast[1] < at_once[0]
    assert at_once[-1] == pytest.approx(fast[-1], rel=0.05)


def test_an_unknown_topic_lists_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'zeros'.*threshold.*, prior"):
        explain.run("zero")


# The command


def test_the_command_knows_the_topics() -> None:
    assert tuple(TOPICS) == cli.TOPICS


def test_without_a_topic_the_topics_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TOPICS)
    assert all(TOPICS[line.split()[0]].title in line for line in lines[1:])
    assert max(map(len, lines)) <= 80
    assert main(["explain", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got == {name: topic.title for name, topic in TOPICS.items()}


def test_an_unknown_topic_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "sprials"]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in TOPICS)


def test_a_topic_and_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "zeros", "--backend", "numpy"]) == 0
    one = capsys.readouterr().out
    assert one.splitlines()[0] == TOPICS["zeros"].title
    assert main(["explain", "all", "--backend", "numpy"]) == 0
    every = capsys.readouterr().out
    assert one in every
    assert all(topic.title in every for topic in TOPICS.values())


def test_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "gradient", "--backend", "numpy", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    want = explain.run("gradient", "numpy").values
    assert list(got) == ["gradient"]
    assert got["gradient"]["values"] == want
    assert got["gradient"]["backend"] == "numpy"
    assert got["gradient"]["figures"] == []


def test_figures_without_matplotlib_are_one_line_that_names_the_extra(tmp_path: Path) -> None:
    """A matplotlib that cannot be imported stands for one that is missing."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from fastneuron.cli import main; "
        f"sys.exit(main(['explain', 'zeros', '--figures', {str(tmp_path / 'f')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(explain.__file__).parents[2],
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert 'pip install "fastneuron[plots]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "f").exists()


def test_a_folder_that_cannot_be_made_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plots)")
    (tmp_path / "file").write_text("")
    assert main(["explain", "zeros", "--figures", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1

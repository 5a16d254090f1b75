"""The command: what it prints, its exit codes, and one line for each failure."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastneuron
from fastneuron import backends, cli, demo, machine, network, places, warmup
from fastneuron.activations import ACTIVATIONS
from fastneuron.cli import main
from fastneuron.datasets import load_digits, make_linear
from fastneuron.elision import Elision
from fastneuron.initializers import BIAS_INITIALIZERS
from fastneuron.optimizers import OPTIMIZERS

#: The reference backend starts at once; what the others compute is tested elsewhere.
FAST = ["--backend", "numpy"]
SMALL = [*FAST, "--hidden", "8", "--epochs", "30", "--early-stopping", "0"]


def write_flowers(path: Path, n: int = 120) -> Path:
    """Write a table whose class follows from a number and a text: three classes."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["length", "colour", "weight", "species"])
        for _ in range(n):
            colour = str(rng.choice(["red", "blue"]))
            length = rng.uniform(0, 10)
            species = "moss" if colour == "blue" else ("oak" if length > 5 else "rose, wild")
            writer.writerow([f"{length:.3f}", colour, f"{rng.uniform(100, 200):.1f}", species])
    return path


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flowers(tmp_path_factory.mktemp("flowers") / "flowers.csv")


@pytest.fixture(scope="module")
def model(flowers: Path) -> Path:
    path = flowers.parent / "flowers.safetensors"
    arguments = ["train", str(flowers), "--target", "species", "--out", str(path), "--quiet"]
    assert main([*arguments, *FAST, "--hidden", "16", "--epochs", "60"]) == 0
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line on stderr of a command that exits with 1."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastneuron: ")
    assert captured.err.count("\n") == 1
    return captured.err


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastneuron", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


# Arguments


def test_help_imports_nothing_heavy() -> None:
    """What makes ``--help`` quick: neither numpy nor anything above it is imported."""
    code = (
        "import sys; from fastneuron.cli import main; code = main(['train', '--help']); "
        "heavy = {'numpy', 'numba', 'safetensors', 'tqdm'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--early-stopping" in done.stdout


def test_names_in_help_are_those_of_the_tables() -> None:
    assert tuple(ACTIVATIONS) == cli.ACTIVATIONS
    assert tuple(OPTIMIZERS) == cli.OPTIMIZERS
    assert tuple(BIAS_INITIALIZERS) == cli.BIAS_INITIALIZERS
    assert ("none", *network.NORMS) == cli.NORMS
    assert ("auto", *backends.NAMES) == cli.BACKENDS
    assert demo.EPOCHS == cli.DEMO_EPOCHS
    assert cli.DTYPES == warmup.DTYPES == machine.DTYPES


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["predict"], ["info"], ["warmup"], ["demo"], ["explain"]]
)
def test_help_is_readable_at_80_columns(
    verb: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*verb, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fastneuron.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "x.csv"],
        ["warmup", "--dtype", "float16"],
        ["warmup", "--dtype", ""],
        ["train", "x.csv", "--target", "y", "--epochs", "0"],
        ["train", "x.csv", "--target", "y", "--epochs", "1.5"],
        ["train", "x.csv", "--target", "y", "--epochs", "9" * 30],
        ["train", "x.csv", "--target", "y", "--batch-size", "-1"],
        ["train", "x.csv", "--target", "y", "--hidden", "8,,8"],
        ["train", "x.csv", "--target", "y", "--hidden", "0"],
        ["train", "x.csv", "--target", "y", "--activation", "rely"],
        ["train", "x.csv", "--target", "y", "--learning-rate", "nan"],
        ["train", "x.csv", "--target", "y", "--learning-rate", "0"],
        ["train", "x.csv", "--target", "y", "--validation", "1"],
        ["train", "x.csv", "--target", "y", "--seed", "-1"],
        ["predict", "model"],
        ["demo", "--threads", "0"],
        ["explain", "everything"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: fastneuron" in capsys.readouterr().err


# Training and predicting


def test_train_and_predict_from_the_raw_file(
    flowers: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert main(["predict", str(model), str(flowers), "--out", str(out), *FAST]) == 0
    assert capsys.readouterr().out == ""
    with flowers.open(encoding="utf-8", newline="") as file:
        want = [row["species"] for row in csv.DictReader(file)]
    with out.open(encoding="utf-8", newline="") as file:
        got = [row["species"] for row in csv.DictReader(file)]
    assert np.mean(np.array(want) == np.array(got)) > 0.9


def test_predict_finds_columns_by_name(
    flowers: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), str(flowers), *FAST]) == 0
    want = capsys.readouterr().out
    with flowers.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    other = tmp_path / "other.csv"
    with other.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["weight", "note", "length", "colour"], delimiter=";")
        writer.writeheader()
        for row in rows:
            del row["species"]
            writer.writerow(row | {"note": "?"})
    assert main(["predict", str(model), str(other), *FAST]) == 0
    assert capsys.readouterr().out == want


def test_probabilities_are_those_of_the_classes(
    flowers: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), str(flowers), "--proba", *FAST]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    classes = ["moss", "oak", "rose, wild"]
    assert list(rows[0]) == ["species", *(f"p({name})" for name in classes)]
    shares = np.array([[float(row[f"p({name})"]) for name in classes] for row in rows])
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert [row["species"] for row in rows] == [classes[i] for i in shares.argmax(axis=1)]


def test_the_same_seed_writes_the_same_file(flowers: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path, seed in zip(files, ("1", "1", "2"), strict=True):
        arguments = ["train", str(flowers), "--target", "species", "--out", str(path), "--quiet"]
        assert main([*arguments, *SMALL, "--seed", seed]) == 0
    first, second, third = (path.read_bytes() for path in files)
    assert first == second != third


def test_a_quantity_from_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    X, y = make_linear(200, slope=20.0, intercept=300.0)
    data, model = tmp_path / "line.npz", tmp_path / "line.safetensors"
    np.savez(data, X=X, y=y)
    arguments = ["train", str(data), "--target", "y", "--out", str(model), "--hidden", "none"]
    assert main([*arguments, *FAST, "--learning-rate", "0.02", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["validation"]["r2"] > 0.999
    assert result["epochs"] >= result["kept_epoch"] >= 1
    assert main(["predict", str(model), str(data), *FAST]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "y"
    np.testing.assert_allclose([float(row) for row in rows], y[:, 0], atol=1.0)
    assert "has no classes" in fails(capsys, "predict", model, data, "--proba")


def test_digits_from_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    X, y = load_digits()
    data, model = tmp_path / "digits.npz", tmp_path / "digits.safetensors"
    np.savez(data, X=X, digit=y)
    arguments = ["train", str(data), "--target", "digit", "--out", str(model), *FAST]
    assert main([*arguments, "--epochs", "15"]) == 0
    shown = capsys.readouterr()
    assert "10 classes" in shown.out
    assert shown.err == ""  # no progress bar where there is no terminal
    assert float(shown.out.split("validation: accuracy ")[1].split()[0]) > 0.94


@pytest.mark.parametrize("extra", [["--no-bias"], ["--validation", "0"], ["--optimizer", "sgd"]])
def test_other_options(
    flowers: Path, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    arguments = ["train", str(flowers), "--target", "species", "--out", str(out), *SMALL, *extra]
    assert main(arguments) == 0
    assert f"model written to {out}" in capsys.readouterr().out
    net = fastneuron.load(out)
    assert (net.layers[0].bias is None) == ("--no-bias" in extra)


@pytest.mark.parametrize(
    ("extra", "biases", "said"),
    [
        (["--norm", "batch"], [None, 8, 3], "network 4-8-3, batch normalisation, 75 parameters"),
        (["--norm", "batch", "--bias"], [8, 8, 3], "batch normalisation, 83 parameters"),
        (["--norm", "batch", "--no-bias"], [None, 8, None], "batch normalisation, 72 parameters"),
        (["--norm", "layer", "--dropout", "0.25"], [8, 8, None, 3], "layer normalisation, dropout"),
        (["--dropout", "0.25", "--bias-init", "class_prior"], [8, None, 3], "dropout 0.25, 67"),
    ],
)
def test_layers_between(
    flowers: Path,
    tmp_path: Path,
    extra: list[str],
    biases: list[int | None],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = Elision()  # that has said nothing yet
    monkeypatch.setattr("fastneuron.commands.ELISION", fresh)
    monkeypatch.setattr("fastneuron.network.ELISION", fresh)
    out = tmp_path / "m"
    arguments = ["train", str(flowers), "--target", "species", "--out", str(out), *SMALL, *extra]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert said in shown.out
    left_out = extra == ["--norm", "batch"]
    assert ("biases before a batch normalisation have no effect: left out" in shown.out) is left_out
    net = fastneuron.load(out)
    assert [None if layer.bias is None else len(layer.bias) for layer in net.layers] == biases
    assert main(["predict", str(out), str(flowers), *FAST]) == 0
    assert capsys.readouterr().out.startswith("species\n")
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_layers_that_do_not_fit_are_one_line(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", flowers, "--target", "species", "--out", tmp_path / "m", "--quiet", *FAST]
    shown = fails(capsys, *arguments, "--no-bias", "--bias-init", "class_prior")
    assert "bias_init='class_prior', but it has bias=False" in shown
    one = tmp_path / "one.csv"
    one.write_text("a,y\n1,2.5\n")
    arguments = ["train", one, "--target", "y", "--out", tmp_path / "m", "--quiet", *FAST]
    assert "2 rows or more" in fails(capsys, *arguments, "--norm", "batch")
    assert main(["train", str(flowers), "--target", "species", "--dropout", "1"]) == 2
    assert main(["train", str(flowers), "--target", "species", "--norm", "group"]) == 2


def test_one_row_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "one.csv"
    data.write_text("a,y\n1,2.5\n")
    assert main(["train", str(data), "--target", "y", "--out", str(tmp_path / "m"), *SMALL]) == 0
    assert "rows: 1 to learn from, 0 to watch" in capsys.readouterr().out


# Faults


def test_faults_of_training_data(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    data = tmp_path / "data.csv"

    def message(path: object, target: str = "y", *extra: str) -> str:
        line = fails(capsys, "train", path, "--target", target, "--out", out, *FAST, *extra)
        assert not out.exists()
        return line

    assert "No such file" in message(tmp_path / "none.csv")
    assert "Is a directory" in message(tmp_path)
    assert "no column 'y' (columns: 'length', 'colour'" in message(flowers)
    assert "no column 'q'" in message(flowers, "species", "--ignore", "q")
    for content, want in [
        (b"", "the file is empty"),
        (b"a,y\n", "no rows under the header"),
        (bytes(range(128, 192)) + b"\xff", "line 1: "),
        (b"a,a,y\n1,2,3\n", "two columns are named 'a'"),
        (b"a,y\n1,u\n", "every row has the same class"),
        (b"a,y\n1,u\n,v\n", "line 3, column 'a': the value is missing"),
        (b"y\n1\n2\n", "no column is left to predict 'y' from"),
    ]:
        data.write_bytes(content)
        assert want in message(data)


def test_faults_of_the_model_file(
    tmp_path: Path, flowers: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file" in fails(capsys, "predict", tmp_path / "none", flowers)
    assert str(flowers) in fails(capsys, "predict", flowers, flowers)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(model.read_bytes()[:-5])
    assert str(damaged) in fails(capsys, "predict", damaged, flowers)
    plain = tmp_path / "plain"
    fastneuron.mlp([2, 2], seed=0).save(plain)
    assert "says nothing about raw tables" in fails(capsys, "predict", plain, flowers)


def test_faults_of_data_to_predict(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.csv"
    for content, want in [
        ("length,colour\n1,red\n", "needs the columns 'weight', which are not there"),
        ("length,colour,weight\n1,green,2\n", "line 2, column 'colour': 'green' is a category"),
        ("length,colour,weight\n1,red,2\n1,red,two\n", "line 3, column 'weight': 'two' is not"),
        ("length,colour,weight\n1,red,1e300\n", "line 2, column 'weight': 1e300 is too large"),
    ]:
        data.write_text(content)
        assert want in fails(capsys, "predict", model, data, *FAST)


def test_what_cannot_be_written_is_said_before_training(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", flowers, "--target", "species", *FAST, "--out")
    assert "no such folder" in fails(capsys, *arguments, tmp_path / "none" / "model")
    assert "is a folder" in fails(capsys, *arguments, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "a model needs a file" in fails(capsys, *arguments, tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_predictions_go_into_a_pipe_and_do_not_replace_it(
    tmp_path: Path, flowers: Path, model: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        assert main(["predict", str(model), str(flowers), "--out", str(pipe), *FAST]) == 0
        got, _ = reader.communicate(timeout=60)
    assert got.startswith("species\n")
    assert pipe.is_fifo()


def test_a_backend_that_cannot_run_says_why(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = backends.available()["cuda"]
    if isinstance(problem, backends.Backend):
        pytest.skip("there is a card here, so every backend may run")
    arguments = ["train", flowers, "--target", "species", "--out", tmp_path / "m"]
    assert str(problem) in fails(capsys, *arguments, "--backend", "cuda")
    line = fails(capsys, *arguments, "--device", "cuda")
    assert line == f"fastneuron: device='cuda': {problem}\n"
    line = fails(capsys, *arguments, "--device", "cuda", "--backend", "numpy")
    assert "contradict each other" in line
    assert main([*map(str, arguments), "--device", "auto", "--epochs", "1"]) == 0
    assert "device auto: CUDA cannot be used: " in capsys.readouterr().out


def test_divergence_is_one_line(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "steep.csv"
    rows = "".join(f"{i},{i * i + 0.5}\n" for i in range(40))
    data.write_text("a,y\n" + rows)
    arguments = ["train", data, "--target", "y", "--out", tmp_path / "m", *FAST, "--quiet"]
    line = fails(capsys, *arguments, "--optimizer", "sgd", "--learning-rate", "1e9")
    assert "learning rate" in line
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes that close like this")
def test_a_closed_pipe_is_no_failure(flowers: Path, model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fastneuron", "predict", model, flowers, *FAST],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, not to a process")
def test_ctrl_c_is_one_line_and_writes_nothing(flowers: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "fastneuron", "train", flowers, "--target", "species",
            "--epochs", "1000000", "--early-stopping", "0", "--out", out, *FAST,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts tests in the background tells them, and theirs, to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while not process.stdout.readline().startswith("rows:"):
            pass  # the table is described: after that, training begins
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (1, "fastneuron: interrupted\n")
    assert not out.exists()


# Information and demo


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNEURON_NUM_THREADS", "3")
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["numpy"] == np.__version__
    assert found["threads"] == {"count": 3, "source": "FASTNEURON_NUM_THREADS"}
    assert found["backends"]["numpy"]["available"] is True
    assert found["backends"]["cuda"]["reason"]
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "threads    3 (FASTNEURON_NUM_THREADS)" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_info_survives_without_numba_and_with_nonsense_settings(tmp_path: Path) -> None:
    """A numba that cannot be imported stands for one that is missing or broken."""
    (tmp_path / "numba.py").write_text("raise ImportError('broken on purpose')")
    settings = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "FASTNEURON_NUM_THREADS": "many",
        "FASTNEURON_BACKEND": "abacus",
        "FASTNEURON_CACHE_DIR": "/proc/nowhere",
    }
    done = run("info", env=os.environ | settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FASTNEURON_NUM_THREADS must be a whole number" in " ".join(done.stdout.split())
    assert "unknown backend 'abacus'" in " ".join(done.stdout.split())


def test_info_shows_which_kernels_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setenv("FASTNEURON_CACHE_DIR", str(tmp_path))
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "float32: none; float64: none; fastneuron warmup compiles ahead" in shown
    assert main(["info", "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["kernels"]["folder"])
    assert folder.parent == tmp_path
    folder.mkdir()
    for dtype in ("float32", "float64"):
        header = {"kernel": "train", "dtype": dtype}
        (folder / f"train-{dtype}.kernel").write_text(json.dumps(header) + "\n")
    places._compiled.cache_clear()  # as in another process, which looks anew
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "compiled for this version: float32: train; float64: train backend" in shown
    if hasattr(os, "getuid"):
        folder.chmod(0o777)
        assert main(["info"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "not kept:" in shown
        assert "can be written by other users (mode 777)" in shown


def test_warming_up_heeds_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTNEURON_BACKEND", "numpy")
    assert main(["warmup"]) == 0
    assert capsys.readouterr().out == "backend numpy: nothing to compile\n"


def test_warming_up_a_backend_that_compiles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warmup", *FAST, "--dtype", "float64,float32"]) == 0
    assert capsys.readouterr().out == "backend numpy: nothing to compile\n"


def test_warming_up_tells_what_was_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it does is tested with the cache; here is what it says."""
    met = [
        warmup.Kernel("train", "float32", found=False, kept=True, seconds=8.0),
        warmup.Kernel("infer", "float32", found=True, kept=True, seconds=0.0625),
    ]
    monkeypatch.setattr(warmup, "warm_up", lambda backend, dtypes: iter(met))
    assert main(["warmup", *FAST]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["float32", "train", "compiled", "8.000", "s"]
    assert lines[1].split() == ["float32", "infer", "found", "0.062", "s"]
    assert lines[2].startswith("1 compiled, 1 found; ")
    assert main(["warmup", *FAST, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"][0] == met[0]._asdict()


def test_demo_reports_both_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--epochs", "3", *FAST]) == 0
    shown = capsys.readouterr().out
    for want in ("with bias", "without bias", "held-out accuracy", "samples/s", "9,610", "9,472"):
        assert want in shown
    assert "What the bias cost" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_demo_network_reaches_its_accuracy() -> None:
    """Five seeds, another split for each: at least 0.975 on the mean of the held-out quarters."""
    accuracies = []
    for seed in range(5):
        data, held_out = demo.prepare(seed)
        net = demo.train(data, seed=seed)
        accuracies.append(float(np.mean(net.predict(held_out.X) == held_out.y)))
    assert np.mean(accuracies) >= 0.975
    assert min(accuracies) >= 0.96

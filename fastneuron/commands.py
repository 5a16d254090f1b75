"""What `fastneuron train`, `fastneuron predict` and `fastneuron warmup` do."""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends, files, warmup
from fastneuron.callbacks import EarlyStopping
from fastneuron.datasets import stratified_split
from fastneuron.elision import ELISION
from fastneuron.errors import DataError, FastneuronError, ModelFileError
from fastneuron.fitting import History
from fastneuron.layers import Dense
from fastneuron.network import Sequential, load, mlp
from fastneuron.optimizers import OPTIMIZERS
from fastneuron.places import cache_directory
from fastneuron.preprocessing import (
    CategoryFeature,
    ClassTarget,
    NumberTarget,
    Preprocessing,
    fit_target,
)
from fastneuron.tables import Table, read_table

__all__ = ["predict", "train", "warm_up"]


def train(options: argparse.Namespace) -> None:
    """Train on a raw table, report, and write the model file."""
    files.check_writable(options.out)
    if Path(options.out).exists() and not Path(options.out).is_file():
        raise ModelFileError(f"{options.out}: is a device or a pipe; a model needs a file")
    # What cannot run is said before the table is read.
    found = backends.on_device(options.device, options.backend)
    if options.device != "auto":  # which may yet choose a card
        found.check_precision(options.precision, "float32")
    table = read_table(options.data)
    learn, watch = _split(table, options)
    preprocessing = Preprocessing.fit(
        table,
        options.target,
        rows=learn,
        task=options.task,
        ignore=options.ignore,
        text=options.text,
    )
    X, y = preprocessing.inputs(table), preprocessing.targets(table)
    ELISION.silence()  # `_describe_network` says it in the command's words
    widths = [preprocessing.n_features, *options.hidden, preprocessing.target.width]
    net = mlp(
        widths,
        activation=options.activation,
        bias="auto" if options.bias is None else options.bias,
        seed=options.seed,
        bias_init=options.bias_init,
        norm=None if options.norm == "none" else options.norm,
        dropout=options.dropout,
    )
    rate = {} if options.learning_rate is None else {"learning_rate": options.learning_rate}
    optimizer = OPTIMIZERS[options.optimizer](**rate)
    talk = not options.quiet and not options.json
    if talk:
        print(_describe_table(table, preprocessing))
        print(
            f"{_describe_network(net, widths, options)}\n"
            f"rows: {len(learn):,} to learn from, {len(watch):,} to watch",
            flush=True,
        )
    stopping = len(watch) and options.early_stopping
    history = net.fit(
        X[learn],
        y[learn],
        loss=preprocessing.loss,
        optimizer=optimizer,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=(X[watch], y[watch]) if len(watch) else None,
        early_stopping=EarlyStopping(options.early_stopping) if stopping else None,
        progress=talk,
        backend=options.backend,
        n_threads=options.threads,
        device=options.device,
        precision=options.precision,
    )
    net.save(options.out, preprocessing=preprocessing.to_json())
    result = _result(net, preprocessing, X, y, learn, watch, history)
    if options.json:
        print(json.dumps({"model": str(options.out), **result}, indent=2))
    elif talk:
        print(_describe_result(result))
        if options.device == "auto":
            print(f"why {history.backend}: {history.reason}")
        print(f"model written to {options.out}")


def predict(options: argparse.Namespace) -> None:
    """Predict each row of a raw table and write CSV."""
    files.check_writable(options.out or None)
    net, preprocessing = _load(options.model)
    target = preprocessing.target
    table = read_table(options.data)
    X = preprocessing.inputs(table, net.spec.dtype)
    with backends.use(options.backend):
        answers = target.decode(net.forward(X))
    header = [target.name]
    if isinstance(target, ClassTarget):
        columns = [list(answers)]
    else:
        columns = [[f"{answer:.9g}" for answer in answers]]
    if options.proba:
        if not isinstance(target, ClassTarget):
            raise DataError(f"--proba: {target.name!r} is a quantity, which has no classes")
        header += [f"p({name})" for name in target.classes]
        with backends.use(options.backend):
            columns += [[f"{p:.6g}" for p in column] for column in net.predict_proba(X).T]
    text = _csv_text(header, columns)
    if options.out:
        _write(Path(options.out), text)
    else:
        print(text, end="")


def warm_up(options: argparse.Namespace) -> None:
    """Compile and keep every kernel, and tell what was there and what it took.

    "auto", where nothing else says what it means, is the backend that compiles, if it runs here.
    """
    free = options.backend == "auto" and backends.current() == "auto"
    compiles = free and isinstance(backends.available()["numba"], backends.Backend)
    backend = backends.get("numba" if compiles else options.backend)
    start = time.perf_counter()
    kernels = []
    for kernel in warmup.warm_up(backend.name, options.dtype):
        kernels.append(kernel)
        if not options.json:
            state = "found" if kernel.found else "compiled"
            print(f"{kernel.dtype}  {kernel.name:18}{state:8} {kernel.seconds:8.3f} s", flush=True)
    seconds = time.perf_counter() - start
    if options.json:
        found = {"backend": backend.name, "place": str(cache_directory()), "seconds": seconds}
        print(json.dumps({**found, "kernels": [k._asdict() for k in kernels]}, indent=2))
    elif not kernels:
        print(f"backend {backend.name}: nothing to compile")
    else:
        compiled = sum(not kernel.found for kernel in kernels)
        print(f"{compiled} compiled, {len(kernels) - compiled} found; {seconds:.1f} s")
    lost = [kernel.name for kernel in kernels if not kernel.kept]
    if lost:
        raise FastneuronError(
            f"{len(lost)} of {len(kernels)} kernels could not be kept in {cache_directory()}"
        )


def _split(
    table: Table, options: argparse.Namespace
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to learn from and those held out, classes in equal shares."""
    target = fit_target(table, options.target, options.task)
    rows = np.arange(table.n_rows)
    if not options.validation:
        return rows, rows[:0]
    classes = isinstance(target, ClassTarget)
    groups = target.encode(table, np.float32) if classes else np.zeros_like(rows)
    return stratified_split(groups, options.validation, options.seed)


def _describe_table(table: Table, preprocessing: Preprocessing) -> str:
    numbers, texts = 0, []
    for feature in preprocessing.features:
        if isinstance(feature, CategoryFeature):
            texts.append(f"{feature.name} ({feature.width})")
        else:
            numbers += 1
    target = preprocessing.target
    what = f"{target.width} classes" if isinstance(target, ClassTarget) else "a quantity"
    lines = [f"{table.origin}: {table.n_rows:,} rows, target {target.name!r} ({what})"]
    if numbers:
        lines.append(f"columns of numbers, standardised: {numbers}")
    if texts:
        lines.append(f"columns of text, one input a category: {', '.join(texts)}")
    return "\n".join(lines)


def _describe_network(net: Sequential, widths: list[int], options: argparse.Namespace) -> str:
    text = f"network {'-'.join(map(str, widths))}"
    if options.norm != "none":
        text += f", {options.norm} normalisation"
    if options.dropout:
        text += f", dropout {options.dropout:g}"
    text += f", {net.spec.n_parameters:,} parameters"
    left_out = any(isinstance(layer, Dense) and not layer.bias for layer in net.spec.layers)
    if options.bias is None and left_out:
        text += "\nbiases before a batch normalisation have no effect: left out (--bias keeps them)"
    return text


def _result(
    net: Sequential,
    preprocessing: Preprocessing,
    X: NDArray[Any],
    y: NDArray[Any],
    learn: NDArray[np.int64],
    watch: NDArray[np.int64],
    history: History,
) -> dict[str, Any]:
    """Return what came out of training as JSON values."""
    best = history.best_epoch
    return {
        "backend": history.backend,
        "reason": history.reason,
        "epochs": len(history),
        "kept_epoch": len(history) if best is None else best + 1,
        "seconds": float(np.sum(history.seconds)),
        "training": _score(net, preprocessing, X[learn], y[learn]),
        "validation": _score(net, preprocessing, X[watch], y[watch]) if len(watch) else None,
    }


def _score(
    net: Sequential, preprocessing: Preprocessing, X: NDArray[Any], y: NDArray[Any]
) -> dict[str, float]:
    """Return accuracy, or the root mean square error in the target's unit and R squared."""
    target, out = preprocessing.target, net.forward(X)
    if not isinstance(target, NumberTarget):
        return {"accuracy": float(np.mean(np.argmax(out, axis=1) == y))}
    want, got = target.decode(y), target.decode(out)
    error, spread = np.mean((got - want) ** 2), np.var(want)
    return {"rmse": float(np.sqrt(error))} | ({"r2": float(1 - error / spread)} if spread else {})


def _describe_result(result: dict[str, Any]) -> str:
    lines = [
        f"{result['epochs']} epochs in {result['seconds']:.2f} s on backend {result['backend']}; "
        f"the parameters of epoch {result['kept_epoch']} are kept"
    ]
    for part in ("training", "validation"):
        if result[part]:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in result[part].items())
            lines.append(f"{part}: {scores}")
    return "\n".join(lines)


def _load(path: str) -> tuple[Sequential, Preprocessing]:
    """Read a model file that holds the preprocessing of raw tables."""
    net = load(path)
    if net.preprocessing is None:
        raise ModelFileError(
            f"{path}: the model says nothing about raw tables; only models that `fastneuron train` "
            "wrote can predict from files (in Python: fastneuron.load(path).predict(X))"
        )
    try:
        preprocessing = Preprocessing.from_json(net.preprocessing)
    except FastneuronError as error:
        raise ModelFileError(f"{path}: {error}") from None
    sizes = (preprocessing.n_features, preprocessing.target.width, preprocessing.loss)
    if sizes != (net.spec.in_features, net.spec.out_features, net.loss):
        raise ModelFileError(f"{path}: the network does not fit the stored preprocessing")
    return net, preprocessing


def _csv_text(header: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # a pipe or a device is written into, not replaced
        with path.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
    else:
        files.write_atomically(path, text.encode("utf-8"))

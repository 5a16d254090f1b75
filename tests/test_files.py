"""Model files: what comes back is what went in; anything else is a ModelFileError."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

import fastneuron as fn
from fastneuron import files

JSON = {"columns": ["a", "b"], "more": [1, 2.5, None]}


@pytest.fixture
def net() -> fn.Sequential:
    net = fn.Sequential(
        fn.Dense(3, 4, "gelu", bias_init="normal"), fn.Dense(out_features=2, bias=False), seed=1
    )
    net.parameters.loss = "cross_entropy"
    return net


def tensors(net: fn.Sequential) -> dict[str, np.ndarray[Any, Any]]:
    store = net.parameters
    return files._named(files.ModelFile(net.spec, store.pull(), store.pull_statistics()))


def description(net: fn.Sequential, **changes: Any) -> str:
    return json.dumps(
        {
            "format": "fastneuron-model",
            "version": 1,
            "network": net.spec.to_json(),
            "loss": None,
            "preprocessing": None,
        }
        | changes
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    net = fn.mlp([5, 4, 3], "silu", dtype=dtype, seed=2, bias_init="normal")
    X = np.random.default_rng(0).normal(size=(9, 5))
    fn.Trainer(net, "cross_entropy", backend="numpy").run(X, np.arange(9) % 3)
    net.save(tmp_path / "m.safetensors", preprocessing=JSON)
    got = fn.load(str(tmp_path / "m.safetensors"))
    assert got.spec == net.spec
    assert got.loss == "cross_entropy"
    assert got.preprocessing == JSON == net.preprocessing
    for a, b in zip(got.layers, net.layers, strict=True):
        assert a.weight.tobytes() == b.weight.tobytes()
        assert a.bias is not None
        assert b.bias is not None
        assert a.bias.tobytes() == b.bias.tobytes()
    np.testing.assert_array_equal(got.predict(X), net.predict(X))


def every_kind() -> fn.Sequential:
    net = fn.Sequential(
        fn.BatchNorm(3, momentum=0.25, epsilon=0.5, bias=False),
        fn.Dense(3, 5),
        fn.BatchNorm(activation="gelu", trainable="bias"),
        fn.Dropout(0.25),
        fn.Dense(out_features=4, activation="relu", bias=True, trainable=False),
        fn.BatchNorm(trainable=False),
        fn.LayerNorm(epsilon=0.25, trainable="weight"),
        fn.Dense(out_features=2, bias_init="class_prior"),
        seed=1,
    )
    rng = np.random.default_rng(3)
    for i in (0, 2, 5):
        features = net.layers[i].spec.out_features
        net.layers[i].weight = rng.normal(size=features)
        net.layers[i].running_mean = rng.normal(size=features)
        net.layers[i].running_variance = rng.uniform(0.5, 2, features)
    return net


def test_every_kind_of_layer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(9, 3))
    net = every_kind()
    fn.Trainer(net, "cross_entropy", backend="numpy").run(X, np.arange(9) % 2, epochs=2)
    net.save(tmp_path / "m")
    for got in (fn.load(tmp_path / "m"), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert got.spec == net.spec
        for a, b in zip(got.layers, net.layers, strict=True):
            for name in ("weight", "bias", "running_mean", "running_variance"):
                want = getattr(b, name)
                if want is None:
                    assert getattr(a, name) is None
                else:
                    assert getattr(a, name).tobytes() == want.tobytes()
        np.testing.assert_array_equal(got.forward(X), net.forward(X))
        trained = [
            fn.Trainer(twin, "cross_entropy", backend="numpy", seed=5).run(X, np.arange(9) % 2)
            for twin in (got, copy.deepcopy(net))
        ]
        np.testing.assert_array_equal(*trained)


def test_statistics_are_checked_like_parameters(tmp_path: Path) -> None:
    net = every_kind()
    good = tensors(net)
    mean, variance = good["layers.2.running_mean"], good["layers.2.running_variance"]
    metadata = {"fastneuron": description(net)}
    (tmp_path / "m").write_bytes(to_bytes(good, metadata))
    assert fn.load(tmp_path / "m").spec == net.spec
    for changed, message in [
        ({k: v for k, v in good.items() if k != "layers.2.running_mean"}, "layers.2.running_mean"),
        (good | {"layers.1.running_mean": mean}, "layers.1.running_mean"),
        (good | {"layers.1.bias": np.zeros(5, np.float32)}, "layers.1.bias"),
        (good | {"layers.0.bias": np.zeros(3, np.float32)}, "layers.0.bias"),
        (good | {"layers.3.weight": np.zeros(0, np.float32)}, "layers.3.weight"),
        (good | {"layers.2.running_mean": mean[:4]}, "shape"),
        (good | {"layers.2.running_mean": mean.astype(np.float64)}, "F64"),
        (good | {"layers.2.running_mean": mean * np.float32(np.nan)}, "NaN"),
        (good | {"layers.2.running_variance": variance - 3}, "below 0"),
    ]:
        refused(tmp_path / "t", to_bytes(changed, metadata), message)
    layers = net.spec.to_json()["layers"]
    for i, change, message in [
        (0, {"epsilon": 0}, "epsilon"),
        (0, {"momentum": 2}, "momentum"),
        (0, {"trainable": "all"}, "trainable"),
        (0, {"kind": "group_norm"}, "group_norm"),
        (0, {"more": 1}, "more"),
        (3, {"rate": 1}, "rate"),
        (1, {"bias_init": "class_prior"}, "output layer"),
    ]:
        hostile = [*layers]
        hostile[i] = hostile[i] | change
        network = net.spec.to_json() | {"layers": hostile}
        wrong = {"fastneuron": description(net, network=network)}
        refused(tmp_path / "t", to_bytes(good, wrong), message)


def test_a_file_of_the_first_version_loads(tmp_path: Path) -> None:
    """As networks of dense layers were written before there were other kinds."""
    network = {
        "dtype": "float32",
        "layers": [
            {
                "kind": "dense",
                "in_features": 2,
                "out_features": size,
                "activation": "identity",
                "bias": bias,
                "weight_init": "auto",
                "bias_init": "zeros",
            }
            for size, bias in ((2, True), (1, False))
        ],
    }
    metadata = {
        "format": "fastneuron-model",
        "version": 1,
        "network": network,
        "loss": "mse",
        "preprocessing": None,
    }
    old = {
        "layers.0.weight": np.array([[1, 2], [3, 4]], np.float32),
        "layers.0.bias": np.array([10, 20], np.float32),
        "layers.1.weight": np.array([[1], [2]], np.float32),
    }
    (tmp_path / "old").write_bytes(to_bytes(old, {"fastneuron": json.dumps(metadata)}))
    net = fn.load(tmp_path / "old")
    np.testing.assert_array_equal(net.predict([[1, 1]]), [[14 + 2 * 26]])
    assert net.spec.to_json() == network  # and they are still written so
    assert net.layers[0].trainable is True


def test_no_temporary_file_is_left(tmp_path: Path, net: fn.Sequential) -> None:
    path = tmp_path / "m.safetensors"
    net.save(path)
    net.save(path)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_permissions_and_links_are_kept(tmp_path: Path, net: fn.Sequential) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "m").write_bytes(b"old")
    (real / "m").chmod(0o640)
    (tmp_path / "link").symlink_to(real / "m")
    net.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((real / "m").stat().st_mode) == 0o640
    assert fn.load(real / "m").spec == net.spec


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "os.chmod"])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, net: fn.Sequential, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "m"
    net.save(path)
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(OSError, match="disk full"):
            fn.mlp([7, 7], seed=0).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m"]


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path, net: fn.Sequential) -> None:
    (bad, bias), *rest = net.parameters.pull()
    bad = bad.copy()
    bad[1, 2] = np.nan
    model = files.ModelFile(net.spec, [(bad, bias), *rest], [None] * 2)
    with pytest.raises(fn.ModelFileError, match=r"layers\.0\.weight holds NaN"):
        files.save(tmp_path / "m", model)
    with pytest.raises(fn.ModelFileError, match="description has"):
        net.save(tmp_path / "m", preprocessing={"a": "x" * (1 << 24)})
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fn.load(tmp_path / "none")
    with pytest.raises(fn.ModelFileError, match="no regular file"):
        fn.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(fn.ModelFileError, match="no regular file"):
            fn.load(tmp_path / "pipe")


def refused(path: Path, content: bytes, message: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(fn.ModelFileError, match=message) as caught:
        fn.load(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path, net: fn.Sequential) -> None:
    net.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for length in {*range(0, len(whole), 7), 0, 1, 7, 8, 9, len(whole) - 1}:
        refused(tmp_path / "cut", whole[:length])
    refused(tmp_path / "long", whole + b"\0")


def test_random_bytes_never_do_anything_else(tmp_path: Path, net: fn.Sequential) -> None:
    rng = np.random.default_rng(5)
    net.save(tmp_path / "m")
    whole = np.frombuffer((tmp_path / "m").read_bytes(), np.uint8)
    for n in (8, 64, 1000):
        refused(tmp_path / "r", rng.bytes(n))
        refused(tmp_path / "r", struct.pack("<Q", n - 8) + rng.bytes(n - 8))
    for _ in range(300):
        bad = whole.copy()
        at = rng.integers(len(bad), size=rng.integers(1, 4))
        bad[at] = rng.integers(256, size=len(at))
        (tmp_path / "b").write_bytes(bad.tobytes())
        try:
            got = fn.load(tmp_path / "b")
        except fn.ModelFileError:
            continue
        assert got.spec.n_parameters == net.spec.n_parameters


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"{}",
        b'{"__metadata__":{"fastneuron":"{}"}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,36893488147419103228]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    refused(tmp_path / "h", struct.pack("<Q", len(header)) + header)
    for length in (2**63, 2**64 - 1, 10**8):
        refused(tmp_path / "h", struct.pack("<Q", length) + header)


def test_descriptions_are_closed(tmp_path: Path, net: fn.Sequential) -> None:
    good = tensors(net)

    def check(metadata: dict[str, str] | None, message: str | None) -> None:
        refused(tmp_path / "d", to_bytes(good, metadata), message)

    check(None, "no fastneuron description")
    check({}, "no fastneuron description")
    check({"fastneuron": description(net), "more": "x"}, "no fastneuron description")
    check({"fastneuron": description(net, version=2)}, "its version is 2")
    check({"fastneuron": description(net, version=True)}, "its version is True")
    check({"fastneuron": description(net, version=1.0)}, "its version is 1.0")
    check({"fastneuron": description(net, format="other")}, "format")
    check({"fastneuron": description(net, more=1)}, "too many of the keys: more")
    check({"fastneuron": description(net, loss="nonsense")}, "loss 'nonsense'")
    check({"fastneuron": description(net, loss=["mse"])}, "loss")
    check({"fastneuron": description(net, preprocessing=[1])}, "preprocessing")
    check({"fastneuron": description(net, preprocessing={"a": float("nan")})}, "NaN")
    check({"fastneuron": description(net, network=None)}, "network description")
    check({"fastneuron": description(net)[:-1] + ', "loss": null}'}, "a key twice")
    check({"fastneuron": description(net)[:-1]}, "JSONDecodeError")
    check({"fastneuron": "[" * 1_000_000}, "RecursionError")
    check({"fastneuron": '{"version":' + "9" * 100_000 + "}"}, None)
    check({"fastneuron": " " * (1 << 24) + "{}"}, "longer than")
    hostile = net.spec.to_json()
    hostile["layers"][0]["activation"] = "__import__('os')"
    check({"fastneuron": description(net, network=hostile)}, "unknown activation")


def test_tensors_must_be_those_described(tmp_path: Path, net: fn.Sequential) -> None:
    good = tensors(net)
    metadata = {"fastneuron": description(net)}
    weight = good["layers.0.weight"]
    not_finite = weight.copy()
    not_finite[0, 0] = np.inf
    for changed, message in [
        ({k: v for k, v in good.items() if k != "layers.0.bias"}, "layers.0.bias"),
        (good | {"layers.1.bias": np.zeros(2, np.float32)}, "layers.1.bias"),
        (good | {"layers.0.weight": np.ascontiguousarray(weight.T)}, "shape"),
        (good | {"layers.0.weight": weight.reshape(-1)}, "shape"),
        (good | {"layers.0.weight": weight.astype(np.float64)}, "F64"),
        (good | {"layers.0.weight": weight.astype(np.float16)}, "F16"),
        (good | {"layers.0.weight": weight.view(np.int32)}, "I32"),
        (good | {"layers.0.weight": not_finite}, "infinity"),
    ]:
        refused(tmp_path / "t", to_bytes(changed, metadata), message)


def test_an_absurd_description_allocates_nothing(tmp_path: Path, net: fn.Sequential) -> None:
    huge = fn.Sequential(fn.Dense(3, 4), seed=0).spec.to_json()
    huge["layers"][0] |= {"in_features": 2**31 - 1, "out_features": 2**31 - 1}
    metadata = {"fastneuron": description(net, network=huge)}
    small = {
        "layers.0.weight": np.ones((3, 4), np.float32),
        "layers.0.bias": np.ones(4, np.float32),
    }
    refused(tmp_path / "t", to_bytes(small, metadata), "has shape")


def test_a_folder_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(fn.ModelFileError, match="no regular file"):
        files.write_atomically(tmp_path, b"content")
    assert tmp_path.is_dir()
    with pytest.raises(fn.ModelFileError, match="no regular file"):
        files.write_atomically(os.devnull, b"content")
    assert not Path(os.devnull).is_file()


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    files.check_writable(None, tmp_path / "new", str(tmp_path / "other"), "here")
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        files.check_writable(None, tmp_path)
    with pytest.raises(FileNotFoundError, match="make it first") as missing:
        files.check_writable(tmp_path / "new", tmp_path / "none" / "file")
    assert missing.value.filename == str(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    locked = tmp_path / "locked"
    locked.mkdir(0o500)
    if not os.access(locked, os.W_OK):  # an administrator may write everywhere
        with pytest.raises(PermissionError):
            files.check_writable(locked / "file")

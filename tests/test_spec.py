"""Descriptions: what fits together is accepted, what does not is refused with the place named."""

from __future__ import annotations

import json

import pytest

from fastneuron.errors import SpecError, UnknownNameError
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.registry import Registry
from fastneuron.spec import NetworkSpec


def test_left_out_sizes_come_from_the_layer_before() -> None:
    spec = NetworkSpec.chain([Dense(3, 5, "relu"), Dense(out_features=2, bias=False)], "float64")
    assert spec.sizes == (3, 5, 2)
    assert spec.layers[1].in_features == 5
    assert spec.n_parameters == 3 * 5 + 5 + 5 * 2
    assert spec.multiply_adds == 3 * (15 + 10) - 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs out_features"),
        ({"out_features": 0}, "from 1 to"),
        ({"out_features": 2.0}, "whole number"),
        ({"out_features": True}, "whole number"),
        ({"in_features": -1, "out_features": 2}, "in_features must be from 1"),
        ({"in_features": 2**31, "out_features": 2}, "in_features must be from 1"),
        ({"in_features": 2, "out_features": 2, "bias": "yes"}, "bias must be"),
    ],
)
def test_a_wrong_layer_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Dense(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["activation", "weight_init", "bias_init"])
def test_an_unknown_name_lists_those_that_exist(field: str) -> None:
    with pytest.raises(UnknownNameError, match="available: "):
        Dense(2, 2, **{field: "nonsense"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "dtype", "message"),
    [
        ([], "float32", "at least one layer"),
        ([Dense(out_features=2)], "float32", "first layer needs in_features"),
        ([Dense(2, 3), Dense(4, 1)], "float32", "layer 1 takes 4 features, but layer 0 gives 3"),
        ([Dense(2, 3), 7], "float32", "layer 1 is 7"),
        ([Dense(2, 3)], "float16", "dtype must be one of"),
        ([Dense(2, 3)], "nonsense", "dtype must be one of"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: list[Dense], dtype: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        NetworkSpec.chain(layers, dtype)


def test_the_json_description_comes_back_equal() -> None:
    spec = NetworkSpec.chain([Dense(3, 5, "gelu", bias=False), Dense(out_features=2)], "float64")
    got = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert got == spec


def test_the_json_description_is_closed() -> None:
    good = NetworkSpec.chain([Dense(3, 5)]).to_json()
    layer = good["layers"][0]
    for bad in (
        {},
        good | {"more": 1},
        good | {"layers": {}},
        good | {"layers": [7]},
        good | {"layers": [layer | {"kind": "conv"}]},
        good | {"layers": [layer | {"more": 1}]},
        good | {"layers": [{k: v for k, v in layer.items() if k != "bias"}]},
        good | {"layers": [layer | {"activation": ["relu"]}]},
        good | {"layers": [layer | {"bias": None}]},
        good | {"dtype": "int8"},
        good | {"dtype": None},
    ):
        with pytest.raises((SpecError, UnknownNameError)):
            NetworkSpec.from_json(bad)


def test_a_registry_hints_at_the_nearest_name() -> None:
    table: Registry[int] = Registry("thing")
    table.register("relu", 1)
    with pytest.raises(UnknownNameError, match="unknown thing 'rel'; did you mean 'relu'"):
        table["rel"]
    with pytest.raises(UnknownNameError, match="unknown thing"):
        table[["relu"]]  # type: ignore[index]
    with pytest.raises(SpecError, match="registered already"):
        table.register("relu", 2)


def test_what_is_not_trained_takes_no_products_of_its_own() -> None:
    def work(*layers: Layer) -> tuple[int, int]:
        spec = NetworkSpec.chain(layers)
        return spec.back_to, spec.multiply_adds

    frozen, trained = Dense(3, 5, trainable=False), Dense(3, 5)
    last = Dense(out_features=2)
    assert work(trained, last) == (1, 2 * 15 + 3 * 10)
    assert work(frozen, last) == (2, 15 + 2 * 10)
    assert work(trained, Dense(out_features=2, trainable=False)) == (1, 2 * 15 + 2 * 10)
    assert work(Dense(3, 5, trainable="bias"), last) == (1, 15 + 3 * 10)
    assert work(frozen, BatchNorm(), last) == (1, 15 + 3 * 10)
    assert work(frozen, BatchNorm(trainable=False), last) == (3, 15 + 2 * 10)
    assert work(BatchNorm(3), trained) == (0, 3 * 15)
    assert work(LayerNorm(3), trained) == (1, 3 * 15)
    assert work(frozen, Dropout()) == (2, 15)

"""Descriptions of layers: what they take and refuse, their JSON, and how they fit together."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import SpecError, UnknownNameError
from fastneuron.layers import (
    LAYERS,
    BatchNorm,
    Dense,
    Dropout,
    Layer,
    LayerNorm,
    from_json,
    to_json,
)
from fastneuron.spec import NetworkSpec

EXAMPLES: list[Layer] = [
    Dense(3, 4),
    Dense(3, 4, "gelu", False, "he_normal", "uniform", "weight"),
    Dense(3, 4, bias=True, trainable="bias"),
    Dense(3, 4, trainable=False),
    BatchNorm(),
    BatchNorm(5, "relu", 0.25, 1e-3, False),
    BatchNorm(5, momentum=0, trainable="bias"),
    BatchNorm(5, momentum=1, trainable=False),
    LayerNorm(),
    LayerNorm(5, "tanh", 0.5, False, "weight"),
    LayerNorm(5, trainable=False),
    Dropout(),
    Dropout(0.25, 7),
    Dropout(0),
]


@pytest.mark.parametrize("layer", EXAMPLES, ids=repr)
def test_the_json_description_comes_back_equal(layer: Layer) -> None:
    text = json.dumps(to_json(layer), allow_nan=False)
    got = from_json(json.loads(text), 0)
    assert got == layer
    assert type(got) is type(layer)
    assert hash(got) == hash(layer)
    assert ("trainable" in to_json(layer)) == (getattr(layer, "trainable", True) is not True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin == layer


def test_descriptions_of_before_come_back() -> None:
    """A dense layer's keys are what they were: files of an earlier version can be read."""
    keys = {"kind", "in_features", "out_features", "activation", "bias", "weight_init", "bias_init"}
    assert set(to_json(Dense(3, 4))) == keys
    assert set(LAYERS) == {"dense", "batch_norm", "layer_norm", "dropout"}


@pytest.mark.parametrize("layer", EXAMPLES, ids=repr)
def test_the_json_description_is_closed(layer: Layer) -> None:
    good = to_json(layer)
    for key in good:
        if key != "trainable":
            with pytest.raises(SpecError):
                from_json({k: v for k, v in good.items() if k != key}, 2)
    with pytest.raises(SpecError, match="layer 2: missing or unknown keys more"):
        from_json(good | {"more": 1}, 2)
    for wrong in (None, [], "dense", {"kind": 3}, {}):
        with pytest.raises(SpecError, match="layer 2: not a layer description"):
            from_json(wrong, 2)
    with pytest.raises(UnknownNameError, match="layer kind"):
        from_json({"kind": "group_norm"}, 0)


NORMS: list[Any] = [BatchNorm, LayerNorm]
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    *((kind, {"features": wrong}, "features must be") for kind in (*NORMS, Dropout)
      for wrong in (0, -1, 1.5, True, "3", 2**31)),
    *((kind, {"epsilon": wrong}, "epsilon must be") for kind in NORMS
      for wrong in (0, -1e-5, 2.0**-127, float("nan"), float("inf"), "small", True, None)),
    *((kind, {"bias": wrong}, "bias must be True or False") for kind in NORMS
      for wrong in ("auto", None, 1, "yes")),
    *((kind, {"trainable": wrong}, "trainable must be") for kind in (*NORMS, Dense)
      for wrong in (None, 1, 0, "all", [], {}, ("weight",))),
    *((kind, {"trainable": "bias", "bias": False}, "but it has bias=False")
      for kind in (*NORMS, Dense)),
    *((BatchNorm, {"momentum": wrong}, "momentum must be")
      for wrong in (-0.1, 1.1, float("nan"), "0.1", True)),
    *((Dropout, {"rate": wrong}, "rate must be")
      for wrong in (-0.1, 1, 1.5, float("nan"), "half", True, None)),
    (Dense, {"bias": "never"}, "bias must be True, False or 'auto'"),
    (Dense, {"bias": 1}, "bias must be"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "message"), REFUSED)
def test_what_is_wrong_is_refused_by_name(
    kind: Any, arguments: dict[str, Any], message: str
) -> None:
    if kind is Dense:
        arguments = {"in_features": 2, "out_features": 2, **arguments}
    with pytest.raises(SpecError, match=message) as caught:
        kind(**arguments)
    assert str(caught.value).startswith(kind.__name__)


@pytest.mark.parametrize("kind", NORMS)
def test_unknown_activations_list_those_there_are(kind: Any) -> None:
    with pytest.raises(UnknownNameError, match="relu"):
        kind(activation="rleu")


def test_numbers_of_numpy_are_taken() -> None:
    layer = BatchNorm(np.int32(5), momentum=np.float32(0.5), epsilon=np.float64(0.25),
                      bias=np.bool_(True), trainable=np.bool_(False))  # fmt: skip
    assert layer == BatchNorm(5, momentum=0.5, epsilon=0.25, trainable=False)
    kinds = [type(getattr(layer, field.name)) for field in fields(layer)]
    assert kinds == [int, str, float, float, bool, bool]
    json.dumps(to_json(layer))
    assert Dropout(np.float64(0.5), np.int64(3)) == Dropout(0.5, 3)


@pytest.mark.parametrize("layer", EXAMPLES, ids=repr)
def test_they_are_frozen(layer: Layer) -> None:
    with pytest.raises(FrozenInstanceError):
        layer.trainable = False


def test_shapes_and_counts() -> None:
    found = {
        repr(layer): (layer.weight_shape, layer.n_weights, layer.n_parameters)
        for layer in (
            Dense(3, 4, bias=True), Dense(3, 4, bias=False), BatchNorm(5), LayerNorm(5, bias=False),
            Dropout(features=5),
        )
    }  # fmt: skip
    want = [((3, 4), 12, 16), ((3, 4), 12, 12), ((5,), 5, 10), ((5,), 5, 5), ((0,), 0, 0)]
    assert list(found.values()) == want
    for layer in (BatchNorm(), Dropout()):
        with pytest.raises(SpecError, match="needs in_features"):
            _ = layer.n_parameters


def test_what_trains() -> None:
    for kind in (Dense, BatchNorm, LayerNorm):
        sizes = {"in_features": 2, "out_features": 2} if kind is Dense else {"features": 2}
        for trainable, want in {
            True: (True, True), False: (False, False), "weight": (True, False),
            "bias": (False, True),
        }.items():  # fmt: skip
            layer = kind(**sizes, bias=True, trainable=trainable)  # type: ignore[arg-type]
            assert (layer.trains_weight, layer.trains_bias) == want
            if trainable != "bias":
                layer = replace(layer, bias=False)
                assert (layer.trains_weight, layer.trains_bias) == (want[0], False)
    assert not Dropout().trains_weight
    assert not Dropout().trains_bias
    batch = {trainable: BatchNorm(2, trainable=trainable).uses_batch
             for trainable in (True, False, "weight", "bias")}  # fmt: skip
    assert batch == {True: True, False: False, "weight": True, "bias": True}


@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm, Dropout])
def test_widths_are_those_of_the_layer_before(kind: Any) -> None:
    spec = NetworkSpec.chain([Dense(3, 5), kind(), kind(), Dense(out_features=2)])
    assert spec.sizes == (3, 5, 5, 5, 2)
    assert spec.layers[2].in_features == spec.layers[2].out_features == 5
    assert NetworkSpec.chain([kind(features=4), Dense(out_features=2)]).sizes == (4, 4, 2)
    with pytest.raises(SpecError, match="layer 1 takes 6 features, but layer 0 gives 5"):
        NetworkSpec.chain([Dense(3, 5), kind(features=6)])
    with pytest.raises(SpecError, match=rf"first layer needs features: {kind.__name__}\(features"):
        NetworkSpec.chain([kind(), Dense(out_features=2)])


def test_the_network_knows_whether_rows_meet() -> None:
    def meets(*layers: Layer) -> bool:
        return NetworkSpec.chain([Dense(3, 4), *layers]).uses_batch

    assert meets(BatchNorm())
    assert meets(LayerNorm(), BatchNorm(trainable="bias"))
    assert not meets(BatchNorm(trainable=False))
    assert not meets(LayerNorm(), Dropout())


def test_elision_survives_json() -> None:
    """What was decided once is described so: a description never decides anew."""
    spec = NetworkSpec.chain([Dense(3, 4), BatchNorm(), Dense(out_features=2)])
    assert [layer.bias for layer in spec.layers] == [False, True, True]
    assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    kept = NetworkSpec.chain([Dense(3, 4, bias=True), BatchNorm()])
    assert NetworkSpec.from_json(kept.to_json()) == kept
    assert kept.layers[0].bias is True


def test_norms_take_every_activation() -> None:
    for name in ACTIVATIONS:
        for kind in NORMS:
            assert kind(activation=name).activation == name

"""The error of a step that is not finite names the layer, of every kind, as the step saw it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.errors import NonFiniteError
from fastneuron.testing.patients import X, Y

BIG = 1e30


def diverging(*layers: Any, **options: Any) -> NonFiniteError:
    """Train a network whose first dense layer gives numbers of about 1e30, and return its error."""
    net = fn.Sequential(*layers, seed=0)
    first = next(layer for layer in net.layers if isinstance(layer.spec, fn.Dense))
    first.weight = BIG * np.arange(1, first.weight.size + 1).reshape(first.weight.shape)
    with pytest.raises(NonFiniteError) as caught:
        net.fit(X, Y, loss="cross_entropy", backend="numpy", **options)
    return caught.value


@pytest.mark.parametrize("norm", [fn.BatchNorm, fn.LayerNorm])
def test_a_variance_that_overflows_is_the_normalisations(norm: Any) -> None:
    """Squares of 1e30 are above float32's largest number, 3.4e38."""
    error = diverging(fn.Dense(8, 4), norm(activation="tanh"), fn.Dense(out_features=3))
    assert error.layer == 1
    kind = norm(1).kind
    assert f"the output of layer 1 ({kind}, tanh) is the first that is not finite" in str(error)


def test_running_statistics_hide_nothing() -> None:
    """A prediction by a variance of 1 would be finite; the batch's is not."""
    net = fn.Sequential(fn.Dense(8, 4), fn.BatchNorm(), fn.Dense(out_features=3), seed=0)
    net.layers[0].weight = np.full((8, 4), BIG)
    assert np.isfinite(net.forward(X)).all()
    with pytest.raises(NonFiniteError) as caught:
        net.fit(X, Y, loss="cross_entropy", backend="numpy")
    assert caught.value.layer == 1


def test_a_frozen_normalisation_goes_by_its_running_statistics() -> None:
    norm = fn.BatchNorm(trainable=False)
    error = diverging(
        fn.Dense(8, 4), norm, fn.Dense(out_features=4), fn.LayerNorm(), fn.Dense(4, 3)
    )
    assert error.layer == 3


def test_what_a_dropout_scales_up_may_overflow() -> None:
    """2e38 of float32's 3.4e38, doubled where it is kept; the key says where that is."""
    net = fn.Sequential(fn.Dropout(0.5, features=1), fn.Dense(1, 3), seed=0)
    x = np.full((32, 1), 2e38, np.float32)
    with pytest.raises(NonFiniteError) as caught:
        net.fit(x, np.zeros(32, int), loss="cross_entropy", backend="numpy")
    assert caught.value.layer == 0
    assert "layer 0 (dropout, identity)" in str(caught.value)


@pytest.mark.parametrize("how", ["step", "gradients", "run"])
def test_every_way_to_train_names_the_layer(how: str) -> None:
    net = fn.Sequential(fn.Dropout(0.2, features=8), fn.Dense(8, 4), fn.BatchNorm(), fn.Dense(4, 3))
    net.layers[1].weight = np.full((8, 4), BIG)
    trainer = fn.Trainer(net, "cross_entropy", backend="numpy")
    with pytest.raises(NonFiniteError) as caught:
        getattr(trainer, how)(X, Y)
    assert caught.value.layer == 2


def test_schedules_that_need_the_length_of_the_training_are_named_too() -> None:
    error = diverging(
        fn.Dense(8, 4),
        fn.BatchNorm(),
        fn.Dense(out_features=3),
        optimizer=fn.Adam(fn.Cosine(0.1)),
        epochs=3,
    )
    assert error.layer == 1

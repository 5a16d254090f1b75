"""Small networks of an ensemble, their models and data: for tests of engines of many at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastneuron.kernels.fused_plan import ensemble_plan
from fastneuron.layers import Dense
from fastneuron.optimizers import SGD, Adam, AdamW, RMSprop
from fastneuron.testing import case_of, scalars_of

THREADS = 4  # fewer than patches, so each thread takes several
ROWS = 8
# Whether parameters, and gradient, are in shared memory.
PLACES = {"both": (True, True), "parameters": (True, False), "neither": (False, False)}
SIZES = (5, 8, 19)  # less than a tile, one, and two and a part of one


def case(*layers, **given):
    return case_of(*layers, **{"rows": 22, "batch": 19, **given})


CASES = {
    "one layer": case(Dense(3, 2), loss="mae", optimizer=SGD(0.1)),
    "ragged": case(
        Dense(5, 9, "relu"),
        Dense(None, 6, "tanh", bias=False),
        Dense(None, 3),
        optimizer=SGD(0.1, momentum=0.9, weight_decay=0.1),
    ),
    "saves z": case(
        Dense(4, 5, "gelu"),
        Dense(None, 8, "silu"),
        Dense(None, 2, "gelu"),
        optimizer=SGD(0.1, momentum=0.9, nesterov=True, clip_norm=0.1),
    ),
    "classes": case(
        Dense(2, 7, "relu"),
        Dense(None, 3),
        loss="cross_entropy",
        seed=1,
        optimizer=Adam(0.01, weight_decay=0.1, decay_bias=True, clip_norm=0.1),
    ),
    "probabilities": case(
        Dense(2, 3, "elu"),
        Dense(None, 5),
        loss="cross_entropy",
        seed=3,
        optimizer=AdamW(0.01, weight_decay=0.1),
    ),
    "doubles": case(
        Dense(3, 6, "sigmoid"),
        Dense(None, 1),
        loss="huber",
        dtype="float64",
        optimizer=RMSprop(0.01, weight_decay=0.1),
    ),
    "bits": case(Dense(3, 4, "softplus"), Dense(None, 2), loss="binary_cross_entropy"),
    "counts": case(Dense(3, 4, "leaky_relu"), Dense(None, 2), loss="poisson"),
    "frozen": case(
        Dense(3, 5, "relu", trainable="bias"),
        Dense(None, 4, trainable=False),
        Dense(None, 2, trainable="weight"),
        optimizer=Adam(0.01, clip_norm=0.1),
    ),
}


def models_of(of, count, seed=0):
    """Parameters of some models, drawn around the case's."""
    rng = np.random.default_rng(seed)

    def some(array):
        if array is None:
            return None
        noise = rng.normal(1, 0.1, (count, *array.shape)) * array + rng.normal(
            0, 0.1, (count, *array.shape)
        )
        return noise.astype(array.dtype)

    return [(some(weight), some(bias)) for weight, bias in of.parameters]


def one_of(parameters, model):
    return [(w[model], None if b is None else b[model]) for w, b in parameters]


def some_of(parameters, models):
    return [(w[models], None if b is None else b[models]) for w, b in parameters]


def optimizers_of(of, count):
    """Each its own learning rate, and every other one the other way of bias decay."""
    one, found = of.optimizer, []
    for m in range(count):
        rate, decays = one.learning_rate * (1 + m), one.decay_bias ^ bool(m % 2)
        found.append(replace(one, learning_rate=rate, decay_bias=decays))
    return found


def engine_of(make, of, parameters, optimizers, **given):
    """The places of parameters and gradient, and a tile's rows, are given by name."""
    holds, keeps = PLACES[given.pop("near", "both")]
    plan = ensemble_plan(of.spec, (given.pop("rows", ROWS),), holds=holds, keeps=keeps)
    assert (plan.holds, plan.gradient_at is not None) == (holds, keeps)
    what = {"plan": plan, "threads": THREADS, "batch_size": 4, **given}
    engine = make(of.spec, of.loss, optimizers, **what)
    engine.load(parameters)
    return engine


def table_of(of, optimizers, steps, first=0):
    each = [scalars_of(replace(of, optimizer=one), steps, first) for one in optimizers]
    return np.stack(each, axis=1)


def data_of(of, models, own, weighted, seed=0):
    """x, y, weight and order: the case's for all models, or each its own."""
    rng = np.random.default_rng(seed)
    count = sum(SIZES)
    weight = rng.uniform(0, 2, len(of.x)).astype(of.spec.dtype) if weighted else None
    if not own:
        return of.x, of.y, weight, rng.integers(0, len(of.x), (1, count))
    places = [rng.permutation(len(of.x)) for _ in range(models)]
    x, y = (np.stack([array[at] for at in places]) for array in (of.x, of.y))
    weight = np.stack([weight[at] for at in places]) if weighted else None
    return x, y, weight, rng.integers(0, len(of.x), (models, count))


def state_of(engine, model=slice(None)):
    """Parameters and moments, to be compared to the bit."""
    parameters = [engine.export(), *engine.export_moments()]
    return [a[model] for each in parameters for pair in each for a in pair if a is not None]


def assert_same(got, want) -> None:
    for new, old in zip(got, want, strict=True):
        np.testing.assert_array_equal(new, old)


def assert_gaps_are_zero(engine) -> None:
    vectors = [engine._p, *engine._moments]
    vectors += [] if engine._plan.gradient_at is not None else [engine._g]
    for vector in vectors:
        flat = engine._flat(vector)
        for pair in engine._parts(flat):
            for view in pair:
                if view is not None:
                    view[...] = 0
        assert not flat.any(), "between arrays is nothing"


def trained(make, of, models, which, calls=1, **given):
    """(engine, losses, outcomes) of some of the models after three steps on their own data."""
    optimizers = [optimizers_of(of, models)[m] for m in which]
    engine = engine_of(make, of, some_of(models_of(of, models), which), optimizers, **given)
    x, y, weight, order = data_of(of, models, own=True, weighted=True)
    given = x[which], y[which], weight[which], order[which]
    bounds = np.cumsum([0, *SIZES])
    scalars = table_of(of, optimizers_of(of, models), len(SIZES))[:, which]
    losses = np.full((len(SIZES), len(which)), np.nan)
    for part in np.array_split(np.arange(len(SIZES)), calls):
        where = bounds[part[0] : part[-1] + 2]
        outcome = engine.run(*given, where, scalars[part], losses[part[0] : part[-1] + 1])
        np.testing.assert_array_equal(outcome.steps, len(part))
    return engine, losses


class CudaAPIError(RuntimeError):
    """What the driver's bindings raise, by name."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code

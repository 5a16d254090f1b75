"""What tests and benchmarks share: generated networks, rounding bounds, poison and guard pages.

Public for authors of further backends: a kernel is right where `assert_within` accepts its result.
"""

from __future__ import annotations

from fastneuron.testing.bounds import (
    Bounded,
    Precision,
    activate,
    assert_within,
    column_sum,
    dense,
    exact,
    gate,
    matmul,
    multiply,
)
from fastneuron.testing.generate import (
    Case,
    batches,
    central_differences,
    draw_inputs,
    draw_layer,
    draw_parameters,
    draw_targets,
    generated_cases,
    integer_case,
    loaded,
    ragged,
    saved_of,
)
from fastneuron.testing.loss_bounds import loss_of_batch
from fastneuron.testing.memory import POISONS, guarded, guards_work, poisoned
from fastneuron.testing.steps import (
    BoundedParameters,
    StepBounds,
    backward,
    clip_scale,
    forward,
    training_step,
    updated,
    updated_vector,
)

__all__ = [
    "POISONS",
    "Bounded",
    "BoundedParameters",
    "Case",
    "Precision",
    "StepBounds",
    "activate",
    "assert_within",
    "backward",
    "batches",
    "central_differences",
    "clip_scale",
    "column_sum",
    "dense",
    "draw_inputs",
    "draw_layer",
    "draw_parameters",
    "draw_targets",
    "exact",
    "forward",
    "gate",
    "generated_cases",
    "guarded",
    "guards_work",
    "integer_case",
    "loaded",
    "loss_of_batch",
    "matmul",
    "multiply",
    "poisoned",
    "ragged",
    "saved_of",
    "training_step",
    "updated",
    "updated_vector",
]

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
from fastneuron.testing.checks import (
    assert_parameters,
    assert_statistics,
    check_step,
    flat,
    run_steps,
    scalars_of,
    state_of,
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
from fastneuron.testing.generate_norms import (
    case_of,
    draw_statistics,
    generated_norm_cases,
    integer_norm_case,
)
from fastneuron.testing.loss_bounds import loss_of_batch
from fastneuron.testing.memory import POISONS, guarded, guards_work, poisoned
from fastneuron.testing.norm_bounds import (
    Normalised,
    by_moments,
    by_statistics,
    dropped,
    moved_statistics,
    norm_backward,
    norm_forward,
    norm_gradients,
)
from fastneuron.testing.precision_bounds import RELATIVE_NORMS, assert_near, rounded
from fastneuron.testing.steps import (
    BoundedStatistics,
    StepBounds,
    backward,
    forward,
    training_step,
)
from fastneuron.testing.update_bounds import (
    BoundedParameters,
    clip_scale,
    updated,
    updated_vector,
)

__all__ = [
    "POISONS",
    "RELATIVE_NORMS",
    "Bounded",
    "BoundedParameters",
    "BoundedStatistics",
    "Case",
    "Normalised",
    "Precision",
    "StepBounds",
    "activate",
    "assert_near",
    "assert_parameters",
    "assert_statistics",
    "assert_within",
    "backward",
    "batches",
    "by_moments",
    "by_statistics",
    "case_of",
    "central_differences",
    "check_step",
    "clip_scale",
    "column_sum",
    "dense",
    "draw_inputs",
    "draw_layer",
    "draw_parameters",
    "draw_statistics",
    "draw_targets",
    "dropped",
    "exact",
    "flat",
    "forward",
    "gate",
    "generated_cases",
    "generated_norm_cases",
    "guarded",
    "guards_work",
    "integer_case",
    "integer_norm_case",
    "loaded",
    "loss_of_batch",
    "matmul",
    "moved_statistics",
    "multiply",
    "norm_backward",
    "norm_forward",
    "norm_gradients",
    "poisoned",
    "ragged",
    "rounded",
    "run_steps",
    "saved_of",
    "scalars_of",
    "state_of",
    "training_step",
    "updated",
    "updated_vector",
]

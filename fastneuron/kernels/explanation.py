"""What an engine's plan says: the predicted step part by part, and what was measured."""

from __future__ import annotations

from typing import Any

from fastneuron.kernels.cost import Course
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.speeds import Speeds
from fastneuron.plans import duration

#: Steps of a run that is long enough for waking helpers not to matter.
_LONG_RUN = 1_000_000


def explain(course: Course, model: StepModel, rows: int, speeds: Speeds) -> dict[str, Any]:
    """Return the plan of training steps on `rows` rows, for `Engine.plan`."""

    def predict(rows: int, threads: int) -> float:
        return model.step(rows, threads, speeds).seconds

    choice = course.choice(rows, _LONG_RUN, predict)
    measured = course.clock.a_step()
    threads, why = choice.threads, choice.why
    if course.pace.outrun(threads):
        threads, why = 1, f"{why}; one thread was measured to be faster"
    estimate = model.step(rows, threads, speeds)
    counts = sorted({1, choice.threads, course.limit})
    block, blocks = model.blocks(rows, threads)
    phases = {
        "A": f"rows: gather, forward, loss, deltas; {blocks} block(s) of {block} rows",
        "B": f"tiles: gradients, update, transposed copy; {model.n_tiles} weight tile(s)",
        "team": "what a step does once, and what threads cost each other",
    }
    if model.n_meetings:
        phases["A"] += f"; {model.n_meetings} more barriers, for batch normalisations by columns"
    if model.back_to > 1:
        phases["A"] += f"; deltas stop at layer {model.back_to}"
    if not model.fused:
        phases["B"] += ", first for gradients, then to update"
    seconds = {
        phase: sum(part.seconds for part in estimate.parts if part.phase == phase)
        for phase in phases
    }
    return {
        "threads": threads,
        "why": why,
        "phases": [
            f"{phase}: {text}; {duration(seconds[phase])}" for phase, text in phases.items()
        ],
        "parts": [
            {
                "phase": part.phase,
                "part": part.name,
                "layer": part.layer,
                "predicted_us": 1e6 * part.seconds,
                "multiply_adds": part.multiply_adds or None,
            }
            for part in estimate.parts
        ],
        "tiles": model.n_tiles,
        "rows_per_step": rows,
        "multiply_adds_per_step": sum(part.multiply_adds for part in estimate.parts),
        "predicted_step_us": 1e6 * estimate.seconds,
        "measured_step_us": 1e6 * measured[threads] if threads in measured else None,
        "predicted_by_threads_us": {n: 1e6 * predict(rows, n) for n in counts},
        "measured_by_threads_us": {n: 1e6 * seconds for n, seconds in measured.items()},
        "core_gflops": 2e-9 * speeds.peak(model.lanes),
        "core_copy_gb_per_s": 1e-9 / speeds.byte,
    }

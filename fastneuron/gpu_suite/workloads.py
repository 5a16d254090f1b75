"""What is timed: the workloads that the engines were made for, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass

from fastneuron.peers.problems import Row

__all__ = ["SIMULATED_WORKLOADS", "WORKLOADS", "Workload"]


@dataclass(frozen=True)
class Workload:
    """A training that is timed.

    Attributes
    ----------
    row : Row
    steps : int
        Of one call.
    goal : float
        Times as fast as the fastest other library of the same run.
    precision : {"float32", "tf32"}
        Of the products.
    models : int
        That are trained at once, on the same batches.
    gemm_goal : float
        Share of the measured rate of one large product of that precision, or 0.
    rounds : (int, int)
        That all are timed in by turns, at least and at most.
    """

    row: Row
    steps: int
    goal: float
    precision: str = "float32"
    models: int = 1
    gemm_goal: float = 0.0
    rounds: tuple[int, int] = (5, 60)

    @property
    def name(self) -> str:
        """Network, batch, optimizer, and what is not usual."""
        words = [self.row.label]
        words += [self.precision] if self.precision != "float32" else []
        words += [f"x{self.models}"] if self.models > 1 else []
        return " ".join(words)


WORKLOADS = (
    Workload(Row((64, 64, 64, 4), 16384, "adam"), 20, 3.0),
    Workload(Row((784, 512, 512, 10), 256, "adam"), 50, 2.0),
    Workload(Row((1024, 4096, 4096, 1024), 8192, "sgd"), 2, 1.0, precision="tf32", gemm_goal=0.7),
    Workload(Row((20, 64, 64, 2), 32, "adam"), 20, 10.0, models=1000),
)

#: What the simulator can do; of nobody's interest but the suite's own.
SIMULATED_WORKLOADS = (
    Workload(Row((3, 4, 2), 4, "adam"), 2, 1.0, rounds=(2, 2)),
    Workload(Row((3, 4, 2), 4, "sgd"), 2, 1.0, precision="tf32", gemm_goal=0.7, rounds=(2, 2)),
    Workload(Row((3, 4, 2), 4, "adam"), 2, 1.0, models=3, rounds=(2, 2)),
)

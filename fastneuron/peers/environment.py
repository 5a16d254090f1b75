"""What libraries are told before they are loaded: how many threads, and to keep to the CPU."""

from __future__ import annotations

import os

from fastneuron.arguments import BLAS_THREADS

__all__ = ["SETTLE", "pin", "told"]

#: Seconds that another library's threads may spin for after their last work (OpenBLAS: 80 ms, 2^26
#: cycles) before they leave the other cores to others.
SETTLE = 0.15


def told(threads: int | None) -> dict[str, str]:
    """Return the environment variables by which every library is told its threads.

    Parameters
    ----------
    threads : int or None
        None leaves each library to its own choice.
    """
    found = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes beside the measurement
    }
    if threads is None:
        return found
    for name in (*BLAS_THREADS, "NUMBA_NUM_THREADS", "FASTNEURON_NUM_THREADS"):
        found[name] = str(threads)
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        given = os.environ.get("XLA_FLAGS", "")
        found["XLA_FLAGS"] = given if flags in given else f"{given} {flags}".strip()
    return found


def pin(threads: int) -> None:
    """Keep this process to so many cores, the last that it may use, where a system can do that.

    A library that overlooks what it was told has no more cores than the others then. The first
    core is the one that an idle system gives its own work to.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])

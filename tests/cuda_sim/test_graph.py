"""How launches are recorded, against a driver that writes down what it is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastneuron.kernels.numba_cuda.graph import Graph


class Driver:
    """Stands for `cuda.bindings.driver`: every call returns a status and what it makes."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="local")

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.fails = fails

    def CUstream(self, handle: int) -> str:
        return f"stream {handle}"

    def __getattr__(self, name: str):
        made = {"cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("program",)}

        def call(*arguments):
            self.calls.append(" ".join(map(str, [name, *arguments])))
            return (int(name == self.fails), *made.get(name, ()))

        return call


def test_launches_are_recorded_once_and_repeated() -> None:
    driver = Driver()
    graph = Graph(7, lambda: driver.calls.append("launches"), driver)
    assert driver.calls == [
        "cuStreamBeginCapture stream 7 local",
        "launches",
        "cuStreamEndCapture stream 7",
        "cuGraphInstantiate graph 0",
        "cuGraphDestroy graph",
    ]
    del driver.calls[:]
    graph.replay()
    graph.replay()
    assert driver.calls == ["cuGraphLaunch program stream 7"] * 2
    del driver.calls[:], graph
    assert driver.calls == ["cuGraphExecDestroy program"]


def test_a_launch_that_fails_ends_the_recording() -> None:
    driver = Driver()

    def launch() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Graph(7, launch, driver)
    assert driver.calls[-1] == "cuStreamEndCapture stream 7"


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture"])
def test_a_driver_that_refuses_is_named(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} failed"):
        Graph(7, lambda: None, Driver(fails=name))

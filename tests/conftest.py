"""Fixtures that several test rooms share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable


@pytest.fixture(params=("numpy", "numba", "cython"))
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    """Every backend that runs here; the others are skipped with their reason."""
    try:
        return backends.get(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def slot(backend: backends.Backend) -> Callable[[str], Callable[..., Any]]:
    """The backend's own slot by name; the test is skipped where another backend supplies it."""

    def own(name: str) -> Callable[..., Any]:
        if backend.origin[name] != backend.name:
            pytest.skip(f"{name} of {backend.name} is the one of {backend.origin[name]}")
        return backend.slots[name]

    return own

"""What the driver says of itself and of its cards, asked without anything that needs them.

No context is made, so asking takes no memory on a card.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from fastneuron.kernels.device_presence import missing_card, missing_driver, open_driver

__all__ = ["Card", "cards", "driver_version"]


class Card(NamedTuple):
    """One card.

    Attributes
    ----------
    name : str
    capability : (int, int)
        Its compute capability.
    memory : int
        Bytes.
    multiprocessors : int
    clock : float
        Highest, in Hz; 0 where the driver does not tell.
    bandwidth : float
        Bytes a second of its memory, from its clock and bus; 0 where the driver does not tell.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int
    clock: float
    bandwidth: float


# CUdevice_attribute of cuda.h; clocks in kHz, the bus in bits.
_MULTIPROCESSORS, _CLOCK, _MEMORY_CLOCK, _BUS, _MAJOR, _MINOR = 16, 13, 36, 37, 75, 76


def driver_version() -> str:
    """Return the newest CUDA that the driver runs, such as "13.0", or nothing without a driver."""
    if missing_driver():
        return ""
    version = ctypes.c_int(0)
    if open_driver().cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def cards() -> list[Card]:
    """Return the cards that the driver shows, in its order."""
    if missing_card():
        return []
    driver = open_driver()
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return [_card(driver, index) for index in range(count.value)]


def _card(driver: ctypes.CDLL, index: int) -> Card:
    device = ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t(0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def of(attribute: int) -> int:
        value = ctypes.c_int(0)
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        return 0 if failed else value.value

    return Card(
        name.value.decode("utf-8", "replace"),
        (of(_MAJOR), of(_MINOR)),
        memory.value,
        of(_MULTIPROCESSORS),
        of(_CLOCK) * 1e3,
        2 * of(_MEMORY_CLOCK) * 1e3 * of(_BUS) / 8,  # two transfers a cycle
    )

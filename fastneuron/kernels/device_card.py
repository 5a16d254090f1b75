"""What the driver says of itself and of its cards, asked without anything that needs them.

No context is made, so asking takes no memory on a card. Of several cards the engines use the first
that the driver shows: CUDA_VISIBLE_DEVICES chooses which that is.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from fastneuron.kernels.device_presence import missing_card, missing_driver, open_driver

__all__ = ["Card", "card", "cards", "driver_version"]


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
    cache : int
        Bytes of its second-level cache; 0 where the driver does not tell.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int
    clock: float
    bandwidth: float
    cache: int = 0


# CUdevice_attribute of cuda.h; clocks in kHz, the bus in bits, the cache in bytes.
_MULTIPROCESSORS, _CLOCK, _MEMORY_CLOCK, _BUS, _CACHE, _MAJOR, _MINOR = 16, 13, 36, 37, 38, 75, 76


def driver_version(driver: Any = None) -> str:
    """Return the newest CUDA that the driver runs, such as "13.0", or nothing without a driver."""
    if driver is None and missing_driver():
        return ""
    version = ctypes.c_int(0)
    if (driver or open_driver()).cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def cards() -> list[Card]:
    """Return the cards that the driver shows, in its order.

    Of one that it does not describe the name says so, and the rest is 0.
    """
    if missing_card():
        return []
    driver = open_driver()
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for index in range(count.value):
        try:
            found.append(card(index, driver))
        except OSError as error:
            found.append(Card(f"card {index} ({error})", (0, 0), 0, 0, 0.0, 0.0))
    return found


def card(index: int = 0, driver: Any = None) -> Card:
    """Return what the driver says of a card.

    Parameters
    ----------
    index : int
    driver : ctypes.CDLL, optional
        The driver's library, or what stands for it.

    Raises
    ------
    OSError
        Where there is no driver, or it refuses an answer that every card has.
    """
    driver = driver or open_driver()

    def ask(name: str, *arguments: Any) -> None:
        status = int(getattr(driver, name)(*arguments))
        if status:
            raise OSError(f"{name} of NVIDIA's driver returned {status}")

    device, number = ctypes.c_int(0), ctypes.c_int(0)
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), index)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)

    def of(attribute: int) -> int:
        ask("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        return number.value

    def told(attribute: int) -> int:
        """Return what newer drivers may cease to tell."""
        failed = driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        return 0 if failed else number.value

    return Card(
        name.value.decode("utf-8", "replace"),
        (of(_MAJOR), of(_MINOR)),
        memory.value,
        of(_MULTIPROCESSORS),
        told(_CLOCK) * 1e3,
        2 * told(_MEMORY_CLOCK) * 1e3 * told(_BUS) / 8,  # two transfers a cycle
        told(_CACHE),
    )

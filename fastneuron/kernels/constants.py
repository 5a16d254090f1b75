"""What kernels in C take from the Python side: columns of tables, codes, sizes, as a C header.

The package is built with the header of its day; the extension tells which, so that one that was
built from other tables is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from types import ModuleType

from fastneuron import activations, losses, optimizers
from fastneuron.kernels import columns, contract, marks, stages


def _lines(prefix: str, values: Mapping[str, object]) -> list[str]:
    return [
        f"#define {prefix}_{name.upper()} {int(value)}"
        for name, value in values.items()
        if name.isupper() and isinstance(value, int)
    ]


def _of_module(prefix: str, module: ModuleType) -> list[str]:
    return _lines(prefix, vars(module))


def _of_enum(prefix: str, members: type[IntEnum]) -> list[str]:
    return _lines(prefix, members.__members__)


@cache
def _text() -> str:
    lines = [
        *_of_module("AT", columns),
        *_of_module("STAGES", stages),
        *_of_module("MARKS", marks),
        *_of_module("OPTIMIZERS", optimizers),
        *_of_enum("UPDATE", optimizers.UpdateKind),
        *_of_enum("STATUS", contract.Status),
        *_lines("ACTIVATION", {k.upper(): a.code for k, a in activations.ACTIVATIONS.items()}),
        *_lines("LOSS", {k.upper(): loss.code for k, loss in losses.LOSSES.items()}),
    ]
    return "\n".join(lines)


@cache
def digest() -> str:
    """Return what names the constants as they are."""
    return hashlib.sha256(_text().encode()).hexdigest()[:16]


def header() -> str:
    """Return the text of constants.h."""
    return (
        "/* Made by setup.py from fastneuron/kernels/constants.py: do not edit. */\n"
        f'{_text()}\n#define FN_CONSTANTS "{digest()}"\n'
    )

"""A table of named entries whose lookup error lists what exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from fastneuron.errors import SpecError, UnknownNameError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Mapping from name to entry, in order of registration.

    Parameters
    ----------
    kind : str
        What the entries are ("activation"), used in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add `entry` under `name` and return it; a taken name is a SpecError."""
        if name in self._entries:
            raise SpecError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise self.unknown(name) from None

    def unknown(self, name: object) -> UnknownNameError:
        """Return the error for a name that is not in the table: nearest name, then all names."""
        from difflib import get_close_matches  # 6 ms of a start that needs no such advice

        near = get_close_matches(name, self._entries, n=1) if isinstance(name, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return UnknownNameError(
            f"unknown {self.kind} {name!r}{hint} (available: {', '.join(self._entries)})"
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

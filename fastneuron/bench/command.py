"""What `fastneuron bench` does with its arguments."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fastneuron.bench import comparing, running
from fastneuron.bench.results import Result
from fastneuron.errors import DataError, FastneuronError

__all__ = ["compare", "run"]


def run(options: argparse.Namespace) -> None:
    """Run a suite, show the table, write the files.

    Raises
    ------
    FastneuronError
        After all that, where a result is wrong.
    """
    if options.plot:
        from fastneuron import plots

        plots.require()  # minutes before the figure is drawn
    for path in filter(None, (options.json, options.csv, options.plot, options.resume)):
        if not Path(path).absolute().parent.is_dir():
            raise DataError(f"{path}: there is no such folder; make it first")
    earlier = None
    if options.resume and Path(options.resume).exists():
        earlier = _read(options.resume)
    result = running.run(
        options.suite,
        quick=options.quick,
        names=options.backend,
        only=options.only,
        dtypes=options.dtype,
        passes=options.passes,
        seconds=options.seconds,
        earlier=earlier,
        told=_progress(),
    )
    print(result)
    for path in filter(None, (options.json, options.resume)):
        result.write_json(path)
    if options.csv:
        result.write_csv(options.csv)
    if options.plot:
        from fastneuron.bench.figure import speeds

        speeds(result).savefig(options.plot)
    if result.wrong:
        row = result.wrong[0]
        raise FastneuronError(
            f"{len(result.wrong)} of {len(result.rows)} results are wrong or failed; the first: "
            f"{row.key.name} {row.key.label}, {row.key.backend}: {row.reason}"
        )


def compare(options: argparse.Namespace) -> None:
    """Compare two runs and show what changed.

    Raises
    ------
    FastneuronError
        After that, where something is slower or wrong.
    """
    (old_path, old), (new_path, new) = options.old, options.new
    found = comparing.compare(
        _parsed(old_path, old), _parsed(new_path, new), threshold=options.threshold
    )
    print(found)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found.to_json(), file, indent=1, allow_nan=False)
    if not found.passed:
        raise FastneuronError(f"{new_path} against {old_path}: {found.verdict}")


def _read(path: str) -> Result:
    with open(path, encoding="utf-8") as file:
        try:
            return _parsed(path, json.load(file))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error


def _parsed(path: str, found: object) -> Result:
    try:
        return Result.from_json(found)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _progress() -> running.Told:
    """Return what shows one line that is written over, and nothing where no one looks."""
    if not sys.stderr.isatty():
        return lambda _: None

    def told(text: str) -> None:
        print(f"\r\033[K{text[:79]}", end="" if text else "\r", file=sys.stderr, flush=True)

    return told

"""What `fastneuron bench` does with its arguments."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from fastneuron.bench import comparing, running
from fastneuron.bench.results import Result
from fastneuron.bench.workloads import Workload
from fastneuron.errors import DataError, FastneuronError
from fastneuron.files import check_writable

__all__ = ["compare", "one_pass", "run"]


def run(options: argparse.Namespace) -> None:
    """Run a suite, show the table, write the files.

    Raises
    ------
    FastneuronError
        After all that, where a result is wrong.
    """
    chosen = running.choose(options.suite, options.quick, options.only, options.dtype)
    if options.plot:
        from fastneuron import plots

        plots.require()  # minutes before the figure is drawn
    check_writable(options.json, options.csv, options.plot, options.resume)
    with TemporaryDirectory() as folder:
        path = options.resume or str(Path(folder, "run.json"))
        if _is_the_command():
            _run_in_processes(options, chosen, path)
            result = _read(path)
        else:
            result = _run_here(options, path)
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


def one_pass(options: argparse.Namespace) -> None:
    """Do what is left of the passes up to the one that is asked for, and write the run."""
    _run_here(options, options.resume).write_json(options.resume)


def _run_here(options: argparse.Namespace, path: str) -> Result:
    earlier = _read(path) if Path(path).exists() else None
    return running.run(
        options.suite,
        quick=options.quick,
        names=[*options.backend, *options.peer],
        only=options.only,
        dtypes=options.dtype,
        passes=options.passes,
        last_pass=options.one_pass,
        seconds=options.seconds,
        earlier=earlier,
        told=_progress(),
    )


def _is_the_command() -> bool:
    """Return whether this process is the command: another program may have changed what it times.

    It may have planted a fault, say, of which a process started anew would know nothing.
    """
    main = sys.modules["__main__"]
    return main.__package__ == "fastneuron" or Path(sys.argv[0]).stem == "fastneuron"


def _run_in_processes(options: argparse.Namespace, chosen: list[Workload], path: str) -> None:
    """Do each pass in a process of its own, which goes on with the file at `path`."""
    given = [options.suite]
    given += ["--quick"] * options.quick
    given += [f"--passes={options.passes}"] * bool(options.passes)
    for name in ("backend", "peer", "dtype", "only"):
        given += [f"--{name}={value}" for value in getattr(options, name)]
    begin = time.monotonic()
    first = 1
    if Path(path).exists():
        earlier = _read(path)
        first = earlier.settings["passes"] + (earlier.not_measured == 0)
    passes = running.passes_of(chosen, options.quick, options.passes)
    for turn in range(min(first, passes), passes + 1):
        left = max(options.seconds - (time.monotonic() - begin), 1e-3)
        command = [sys.executable, "-m", "fastneuron", "bench", *given, f"--one-pass={turn}"]
        command += [f"--threads={options.threads or 'auto'}"]
        command += [f"--seconds={left}", f"--resume={path}"]
        # stderr is this process's: there a pass shows how far it is, and says what went wrong.
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise FastneuronError(f"pass {turn} of {passes} ended with exit code {done.returncode}")
        if _read(path).not_measured:
            break


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

"""What `fastneuron profile` does."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fastneuron import plots
from fastneuron.errors import FastneuronError
from fastneuron.files import check_writable, write_atomically
from fastneuron.profiling.bias_profile import BiasProfile, bias
from fastneuron.profiling.bias_sweeps import BiasSweep, bias_sweep

__all__ = ["profile_bias", "write_json"]

#: Seconds of timing where none are asked for: of one profile, and of a sweep.
SECONDS, SWEEP_SECONDS = 30.0, 120.0


def profile_bias(options: argparse.Namespace) -> None:
    """Profile the bias, report, and write the files that were asked for."""
    axes = dict(options.sweep)
    if len(axes) < len(options.sweep):
        raise FastneuronError("--sweep names an axis twice; give all its values at once")
    check_writable(options.json, options.plot)
    if options.plot:
        plots.require()
    setting = {
        "activation": options.activation,
        "loss": options.loss,
        "optimizer": options.optimizer,
        "dtype": options.dtype,
        "backend": options.backend,
        "n_threads": options.threads,
        "seed": options.seed,
    }
    found: BiasProfile | BiasSweep
    if axes:
        found = bias_sweep(
            axes,
            options.layers,
            options.batch,
            seconds=options.seconds or SWEEP_SECONDS,
            say=(lambda line: None) if options.quiet else _say,
            **setting,
        )
    else:
        found = bias(options.layers, options.batch, seconds=options.seconds or SECONDS, **setting)
    if not options.quiet:
        print(found)
    if options.json:
        write_json(options.json, found.to_json())
    if options.plot:
        found.figure().savefig(options.plot)


def _say(line: str) -> None:
    """Tell how far it has come: on stderr, since stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


def write_json(path: str, found: dict[str, Any]) -> None:
    """Write plain values, whole or not at all."""
    write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())

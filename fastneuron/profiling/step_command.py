"""What `fastneuron profile step` and `fastneuron profile roofline` do."""

from __future__ import annotations

import argparse
import json

from fastneuron import plots
from fastneuron.elision import ELISION
from fastneuron.files import check_writable, write_atomically
from fastneuron.network import mlp
from fastneuron.profiling import step_figure
from fastneuron.profiling.command import write_json
from fastneuron.profiling.roofs import roofline as placed
from fastneuron.profiling.step_profile import StepProfile
from fastneuron.profiling.step_profile import step as profiled

__all__ = ["roofline", "step"]


def step(options: argparse.Namespace) -> None:
    """Take a step apart; print the table, write what was asked for."""
    check_writable(options.trace)
    found = _profiled(options)
    if not options.quiet:
        print(found)
    if options.trace:
        write_atomically(options.trace, json.dumps(found.trace()).encode())
        if not options.quiet:
            print(f"trace written to {options.trace}: open it in https://ui.perfetto.dev")
    if options.json:
        write_json(options.json, found.to_json())
    if options.plot:
        step_figure.figure(found).savefig(options.plot)


def roofline(options: argparse.Namespace) -> None:
    """Measure the roofs and place a step's parts; print the table, write what was asked for."""
    found = placed(_profiled(options))
    if not options.quiet:
        print(found)
    if options.json:
        write_json(options.json, found.to_json())
    if options.plot:
        found.figure().savefig(options.plot)


def _profiled(options: argparse.Namespace) -> StepProfile:
    check_writable(options.json, options.plot)  # before seconds are spent
    if options.plot:
        plots.require()
    ELISION.silence()  # the report's first line shows what stands where
    net = mlp(
        options.layers,
        activation=options.activation,
        dtype=options.dtype,
        seed=0,
        norm=options.norm,
        dropout=options.dropout,
    )
    return profiled(
        net,
        loss=options.loss,
        optimizer=options.optimizer,
        batch_size=options.batch,
        backend=options.backend,
        n_threads=options.threads,
        seconds=options.seconds,
    )

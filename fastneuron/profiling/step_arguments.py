"""The arguments of `fastneuron profile step` and `fastneuron profile roofline`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ["add_parsers"]

Adder = Callable[[argparse.ArgumentParser], None]


def add_parsers(kinds: Any, network: Adder, machine: Adder) -> None:
    """Add both to the kinds of profiles.

    Parameters
    ----------
    kinds : the subparsers of `profile`
    network, machine : callable
        Add the arguments that every profile has: of the network, and of what computes.
    """
    step = kinds.add_parser(
        "step",
        help="where a training step goes: by part, layer and thread",
        description="Take a training step apart: time, share, GFLOP/s, GB/s and share of the "
        "measured ceiling by part and layer, waiting and imbalance of the threads.",
    )
    step.set_defaults(verb=_step)
    step.add_argument("--trace", metavar="FILE", help="write a Chrome trace, which Perfetto opens")
    roofline = kinds.add_parser(
        "roofline",
        help="what this machine can do at most, and where a step's parts stand beneath",
        description="Measure the peak of multiply-adds and the bandwidth of each level of memory, "
        "and place the parts of a training step on the roofline that they make.",
    )
    roofline.set_defaults(verb=_roofline)
    for parser in (step, roofline):
        network(parser)
        parser.add_argument(
            "--norm", choices=("batch", "layer"), help="normalise after each hidden layer"
        )
        parser.add_argument(
            "--dropout", type=_share, default=0.0, metavar="RATE",
            help="drop this share after each hidden layer (%(default)s)",
        )  # fmt: skip
        machine(parser)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def _step(options: argparse.Namespace) -> None:
    from fastneuron.profiling.step_command import step

    step(options)


def _roofline(options: argparse.Namespace) -> None:
    from fastneuron.profiling.step_command import roofline

    roofline(options)

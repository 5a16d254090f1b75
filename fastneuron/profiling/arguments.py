"""`fastneuron profile`: its arguments, understood by the standard library alone."""

from __future__ import annotations

import argparse
import os
from typing import Any

from fastneuron.arguments import (
    ACTIVATIONS,
    BACKENDS,
    BLAS_THREADS,
    DTYPES,
    LOSSES,
    OPTIMIZERS,
    count,
    seconds,
    share,
    whole,
)

__all__ = ["add_parser"]

AXES = ("width", "batch", "depth", "threads", "dtype", "backend")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and what it profiles."""
    parser = verbs.add_parser(
        "profile",
        help="measure what the bias costs, where a step goes, what the machine can do",
        description="Measure where the time of a training step goes.",
    )
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    _add_bias(kinds)
    _add_step(kinds)
    _add_roofline(kinds)


def _add_bias(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bias = kinds.add_parser(
        "bias",
        help="with against without, fused against separate, frozen, ones column",
        description="Time training steps with biases and without, fused and in passes of their "
        "own, frozen, and as a column of ones, by turns; say which differences are real, which "
        "part of the work they come from, and whether bytes and flops predict them. Every result "
        "is compared with a float64 reference first; what is wrong is not timed.",
        epilog="Example: fastneuron profile bias --layers 20,64,64,2 --batch 32 --sweep "
        "width=16,64,256 --sweep batch=8,32,128 --plot sweep.png",
    )
    bias.set_defaults(verb=_bias)
    _, machine = _add_setting(bias)
    machine.add_argument(
        "--seconds", type=seconds, metavar="S",
        help="for timing, all of it (30; a sweep 120); comparing with the reference comes on top",
    )  # fmt: skip
    machine.add_argument("--seed", type=whole, default=0, metavar="N", help="(%(default)s)")
    bias.add_argument(
        "--sweep", type=_axis, action="append", default=[], metavar="AXIS=VALUES",
        help=f"profile every combination: {', '.join(AXES)}; such as width=64,256 (may be "
        "repeated)",
    )  # fmt: skip
    _add_output(bias)


def _add_step(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = kinds.add_parser(
        "step",
        help="where a training step goes: by part, layer and thread",
        description="Take a training step apart: time, share, GFLOP/s, GB/s and share of the "
        "measured ceiling by part and layer, waiting and imbalance of the threads.",
    )
    step.set_defaults(verb=_step)
    _add_layers_between(step)
    step.add_argument("--trace", metavar="FILE", help="write a Chrome trace, which Perfetto opens")


def _add_roofline(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    roofline = kinds.add_parser(
        "roofline",
        help="what this machine can do at most, and where a step's parts stand beneath",
        description="Measure the peak of multiply-adds and the bandwidth of each level of memory, "
        "and place the parts of a training step on the roofline that they make.",
    )
    roofline.set_defaults(verb=_roofline)
    _add_layers_between(roofline)


def _add_layers_between(parser: argparse.ArgumentParser) -> None:
    """Add what a profile of one network has, normalisations and dropout among it."""
    network, machine = _add_setting(parser)
    network.add_argument(
        "--norm", choices=("batch", "layer"), help="normalise after each hidden layer"
    )
    network.add_argument(
        "--dropout", type=share, default=0.0, metavar="RATE",
        help="drop this share after each hidden layer (%(default)s)",
    )  # fmt: skip
    machine.add_argument(
        "--seconds", type=seconds, default=2.0, metavar="S", help="for timing (%(default)s)"
    )
    _add_output(parser)


def _add_setting(parser: argparse.ArgumentParser) -> tuple[Any, Any]:
    """Add what every profile is asked: of the network, and of what computes."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--layers", type=_counts, default=(784, 512, 512, 10), metavar="WIDTHS",
        help="widths from the input to the output (784,512,512,10)",
    )  # fmt: skip
    network.add_argument(
        "--batch", type=count, default=256, metavar="N", help="rows a step (%(default)s)"
    )
    _add_choice(network, "--activation", ACTIVATIONS, "relu", "of the hidden layers")
    _add_choice(network, "--loss", LOSSES, "cross_entropy", "")
    _add_choice(network, "--optimizer", OPTIMIZERS, "adam", "")
    _add_choice(network, "--dtype", DTYPES, "float32", "")
    machine = parser.add_argument_group("machine")
    _add_choice(machine, "--backend", BACKENDS, "auto", "what computes")
    machine.add_argument(
        "--threads", type=count, default=1, metavar="N", help="of the engine (%(default)s)"
    )
    return network, machine


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write everything there")
    output.add_argument(
        "--plot", metavar="FILE",
        help="draw it, a sweep as heat map; PNG, or what the suffix says (needs matplotlib: the "
        "extra plots)",
    )  # fmt: skip
    output.add_argument("--quiet", action="store_true", help="print no table")


def _bias(options: argparse.Namespace) -> None:
    threads = [options.threads, *dict(options.sweep).get("threads", ())]
    for variable in BLAS_THREADS:
        os.environ.setdefault(variable, str(max(threads)))
    from fastneuron.profiling.command import profile_bias

    profile_bias(options)


def _step(options: argparse.Namespace) -> None:
    from fastneuron.profiling.step_command import step

    step(options)


def _roofline(options: argparse.Namespace) -> None:
    from fastneuron.profiling.step_command import roofline

    roofline(options)


def _add_choice(group: Any, name: str, choices: tuple[str, ...], default: str, about: str) -> None:
    text = f"{about} (%(default)s): {', '.join(choices)}".strip()
    group.add_argument(name, choices=choices, default=default, metavar="NAME", help=text)


def _axis(text: str) -> tuple[str, tuple[Any, ...]]:
    name, equals, values = text.partition("=")
    if name not in AXES or not equals:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {', '.join(AXES)} with its values, such as width=64,256"
        )
    if name not in ("dtype", "backend"):
        return name, _counts(values)
    known = DTYPES if name == "dtype" else BACKENDS
    found = tuple(value.strip() for value in values.split(","))
    wrong = [value for value in found if value not in known]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not one of {', '.join(known)}")
    return name, found


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part.strip()) for part in text.split(","))

"""The `fastneuron` command: its arguments, its exit codes, and one line for each failure.

Nothing but the standard library is imported before the arguments are understood, so that ``--help``
answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fastneuron.arguments import (
    ACTIVATIONS,
    BACKENDS,
    DEVICES,
    DTYPES,
    OPTIMIZERS,
    PRECISIONS,
    count,
    dtypes,
    positive,
    share,
    whole,
    widths,
)
from fastneuron.bench.arguments import add_parser as add_bench
from fastneuron.errors import FastneuronError
from fastneuron.profiling.arguments import add_parser as add_profile

# Repeated from the tables, which need numpy; a test holds them equal.
BIAS_INITIALIZERS = ("zeros", "uniform", "normal", "class_prior")
NORMS = ("none", "batch", "layer")
DEMO_EPOCHS = 40
TOPICS = (
    "threshold", "hyperplane", "zeros", "line", "intercept", "gradient", "ones", "saturation",
    "symmetry", "batchnorm", "prior",
)  # fmt: skip

DONE, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has said what is wrong, or has printed help
        return USAGE if stop.code else DONE
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.verb(options)
            sys.stdout.flush()
        return DONE
    except FastneuronError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader (`head`) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except MemoryError:
        return _fail("out of memory; use fewer rows, a smaller batch or a smaller network")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")


def _fail(message: str) -> int:
    print("fastneuron:", " ".join(message.split()), file=sys.stderr)
    return FAILED


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("fastneuron: warning:", " ".join(str(message).split()), file=sys.stderr)


def _train(options: argparse.Namespace) -> None:
    from fastneuron.commands import train

    train(options)


def _predict(options: argparse.Namespace) -> None:
    from fastneuron.commands import predict

    predict(options)


def _info(options: argparse.Namespace) -> None:
    from fastneuron.machine import describe, report

    found = describe()
    print(json.dumps(found, indent=2) if options.json else "\n".join(report(found)))


def _warm_up(options: argparse.Namespace) -> None:
    from fastneuron.commands import warm_up

    warm_up(options)


def _explain(options: argparse.Namespace) -> None:
    from fastneuron.explain.report import report

    report(options.topic, options.figures, options.backend, options.json)


def _demo(options: argparse.Namespace) -> None:
    from fastneuron.demo import run

    run(options.backend, options.epochs, options.seed, options.threads, device=options.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastneuron",
        description="Train dense neural networks near the limit of the hardware.",
        epilog="Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    train = verbs.add_parser(
        "train",
        help="train a network on a CSV or NPZ file",
        description="Train a network to predict one column of a CSV or NPZ file from the others. "
        "Columns of numbers are standardised, columns of text become one-hot inputs; a target of "
        "text or whole numbers is a class, of other numbers a quantity. All of it is stored with "
        "the model, so that `predict` takes the raw file.",
    )
    train.set_defaults(verb=_train)
    train.add_argument("data", metavar="DATA", help="CSV with a header line (or .csv.gz), or NPZ")
    train.add_argument("--target", required=True, metavar="NAME", help="the column to predict")
    train.add_argument(
        "--out", default="model.safetensors", metavar="FILE", help="model file (%(default)s)"
    )
    columns = train.add_argument_group("columns")
    columns.add_argument(
        "--task",
        choices=("auto", "classification", "regression"),
        default="auto",
        metavar="TASK",
        help="classification, regression, or auto: classes if text or whole numbers (auto)",
    )
    columns.add_argument(
        "--ignore", action="append", default=[], metavar="NAME",
        help="leave a column out, such as an identifier (may be repeated)",
    )  # fmt: skip
    columns.add_argument(
        "--text", action="append", default=[], metavar="NAME",
        help="take a column of numbers as text, such as a postcode (may be repeated)",
    )  # fmt: skip
    network = train.add_argument_group("network")
    network.add_argument(
        "--hidden", type=widths, default=(128, 64), metavar="WIDTHS",
        help="widths of the hidden layers, or none (128,64)",
    )  # fmt: skip
    network.add_argument(
        "--activation", choices=ACTIVATIONS, default="relu", metavar="NAME",
        help=f"of the hidden layers (%(default)s): {', '.join(ACTIVATIONS)}",
    )  # fmt: skip
    network.add_argument(
        "--norm", choices=NORMS, default="none", metavar="NAME",
        help=f"normalisation of the hidden layers (%(default)s): {', '.join(NORMS)}",
    )  # fmt: skip
    network.add_argument(
        "--dropout", type=share, default=0.0, metavar="SHARE",
        help="share of the hidden layers' numbers that each step drops (%(default)s)",
    )  # fmt: skip
    network.add_argument(
        "--bias", action=argparse.BooleanOptionalAction,
        help="keep every bias, or leave every one out (all but those that --norm batch would take "
        "away)",
    )  # fmt: skip
    network.add_argument(
        "--bias-init", choices=BIAS_INITIALIZERS, default="zeros", metavar="NAME",
        help=f"where biases start (%(default)s): {', '.join(BIAS_INITIALIZERS)} (of the output "
        "layer: the classes' frequencies)",
    )  # fmt: skip
    training = train.add_argument_group("training")
    training.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="adam", metavar="NAME",
        help=f"(%(default)s): {', '.join(OPTIMIZERS)}",
    )  # fmt: skip
    training.add_argument(
        "--learning-rate", type=positive, metavar="RATE", help="(the optimizer's own)"
    )
    training.add_argument(
        "--epochs", type=count, default=100, metavar="N", help="passes over the rows (%(default)s)"
    )
    training.add_argument(
        "--batch-size", type=count, default=32, metavar="N", help="rows a step (%(default)s)"
    )
    training.add_argument(
        "--validation", type=share, default=0.2, metavar="SHARE",
        help="share of the rows held out to watch (%(default)s; 0 for none)",
    )  # fmt: skip
    training.add_argument(
        "--early-stopping", type=whole, default=10, metavar="EPOCHS",
        help="stop when the validation loss has not improved for so many epochs, and keep the best "
        "(%(default)s; 0 for never)",
    )  # fmt: skip
    training.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="same seed, same bits (%(default)s)"
    )
    _add_machine(training)
    _add_precision(training)
    output = train.add_argument_group("output")
    output.add_argument("--quiet", action="store_true", help="print nothing but failures")
    output.add_argument("--json", action="store_true", help="print the result as JSON")

    predict = verbs.add_parser(
        "predict",
        help="predict with a trained model",
        description="Predict the target of each row of a raw CSV or NPZ file. Columns are found by "
        "name; columns that the model does not know are left alone. Writes CSV.",
    )
    predict.set_defaults(verb=_predict)
    predict.add_argument("model", metavar="MODEL", help="file written by `fastneuron train`")
    predict.add_argument("data", metavar="DATA", help="CSV with a header line, or NPZ")
    predict.add_argument("--out", metavar="FILE", help="write to FILE, not to the screen")
    predict.add_argument(
        "--proba", action="store_true", help="add the probability of each class to each row"
    )
    _add_backend(predict)

    info = verbs.add_parser(
        "info", help="show versions, processor, backends, threads and cache",
        description="Show what fastneuron finds on this machine.",
    )  # fmt: skip
    info.set_defaults(verb=_info)
    info.add_argument("--json", action="store_true", help="print JSON")

    warmup = verbs.add_parser(
        "warmup", help="compile the kernels ahead",
        description="Compile every kernel that is not in the cache yet, so that no training has to "
        "wait for it: once after an installation or an update, and on every kind of processor.",
    )  # fmt: skip
    warmup.set_defaults(verb=_warm_up)
    warmup.add_argument(
        "--dtype", type=dtypes, default=DTYPES, metavar="NAMES",
        help=f"which of {', '.join(DTYPES)} ({','.join(DTYPES)})",
    )  # fmt: skip
    _add_backend(warmup)
    warmup.add_argument("--json", action="store_true", help="print JSON")

    demo = verbs.add_parser(
        "demo",
        help="train on handwritten digits, with and without biases",
        description="Train on the bundled handwritten digits, with and without biases; show the "
        "accuracy, samples a second against the NumPy reference, and what the bias cost.",
    )
    demo.set_defaults(verb=_demo)
    demo.add_argument(
        "--epochs", type=count, default=DEMO_EPOCHS, metavar="N", help="(%(default)s)"
    )
    demo.add_argument("--seed", type=whole, default=0, metavar="N", help="(%(default)s)")
    _add_machine(demo)

    add_profile(verbs)
    add_bench(verbs)

    explain = verbs.add_parser(
        "explain",
        help="show what a bias does, computed on the spot",
        description="Show what a bias does, topic by topic, with numbers that are computed on the "
        "spot. Without a topic, list the topics. The long form is the guide docs/bias.md.",
    )
    explain.set_defaults(verb=_explain)
    explain.add_argument(
        "topic", nargs="?", choices=(*TOPICS, "all"), metavar="TOPIC",
        help=f"{', '.join(TOPICS)}, or all",
    )  # fmt: skip
    explain.add_argument(
        "--figures", metavar="DIR",
        help="write the topic's figures to DIR as PNG, without a topic those of all "
        "(needs matplotlib: the extra plots)",
    )  # fmt: skip
    _add_backend(explain)
    explain.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


def _add_backend(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", metavar="NAME",
        help=f"what computes (%(default)s): {', '.join(BACKENDS)}",
    )  # fmt: skip


def _add_machine(parser: argparse._ActionsContainer) -> None:
    _add_backend(parser)
    parser.add_argument(
        "--device", choices=DEVICES, metavar="NAME",
        help=f"where to compute: {', '.join(DEVICES)} (the CPU; auto weighs a card against it)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=count, metavar="N", help="(as fits the network); never changes a result"
    )


def _add_precision(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", metavar="NAME",
        help=f"what a card may round factors of products to (%(default)s): {', '.join(PRECISIONS)}",
    )  # fmt: skip


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import fastneuron

        print(fastneuron.__version__)
        parser.exit()

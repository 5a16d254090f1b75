"""Model files: safetensors with one closed JSON description, written whole or not at all.

The description is stored under the metadata key "fastneuron" and has exactly these keys:
``format`` ("fastneuron-model"), ``version`` (1), ``network`` (`NetworkSpec.to_json`), ``loss`` (a
name or null) and ``preprocessing`` (a description or null). Tensors are named ``layers.0.weight``,
``layers.0.bias``, ``layers.1.running_mean``, ``layers.1.running_variance`` and so on. Nothing in a
file is ever executed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastneuron.errors import FastneuronError, ModelFileError
from fastneuron.kernels.contract import Array, Parameters, Statistics
from fastneuron.losses import LOSSES
from fastneuron.spec import NetworkSpec

__all__ = ["ModelFile", "load", "save"]

FORMAT = "fastneuron-model"
VERSION = 1

_KEYS = {"format", "version", "network", "loss", "preprocessing"}
# Characters of a description: 1,000 columns of 1,000 text values each fit, a bomb does not.
_MAX_DESCRIPTION = 1 << 24
_STATISTICS = ("running_mean", "running_variance")
_TENSOR_TYPES = {"float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes
    ----------
    spec : NetworkSpec
    parameters : list of (weight, bias or None)
    statistics : list of (running mean, running variance) or None
    loss : str or None
        The loss that the network was last trained for.
    preprocessing : dict or None
        The command's description of how a raw table becomes the network's inputs. That it is JSON
        is all that was checked.
    """

    spec: NetworkSpec
    parameters: Parameters
    statistics: Statistics
    loss: str | None = None
    preprocessing: dict[str, Any] | None = None


def save(path: str | os.PathLike[str], model: ModelFile) -> None:
    """Write a model file; whatever happens meanwhile, `path` holds the old file or the new one.

    Raises
    ------
    ModelFileError
        Where a parameter is not finite, the description is too long to be read back, or `path` is
        a folder or a device.
    OSError
        Where the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    tensors = {}
    for name, array in _named(model).items():
        if not np.isfinite(array).all():
            raise ModelFileError(f"{name} holds NaN or infinity: such a model is not saved")
        tensors[name] = np.ascontiguousarray(array)
    description = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "network": model.spec.to_json(),
            "loss": model.loss,
            "preprocessing": model.preprocessing,
        },
        allow_nan=False,
    )
    if len(description) > _MAX_DESCRIPTION:
        raise ModelFileError(
            f"the description has {len(description)} characters, more than {_MAX_DESCRIPTION}: "
            "does a text column hold a different value in every row?"
        )
    write_atomically(path, to_bytes(tensors, {"fastneuron": description}))


def load(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file; sizes are checked against the description before any array is made.

    Raises
    ------
    ModelFileError
        Where the file is damaged, hostile, or of another version.
    OSError
        Where there is no such file, or it cannot be read.
    """
    where = os.fspath(path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{where}: is no regular file")
    with open(path, "rb"):  # for the usual OSError where reading is not allowed
        pass
    try:
        return _read(path)
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from None
    except (FastneuronError, Exception) as error:  # hostile bytes: whatever they provoke
        raise ModelFileError(f"{where}: {type(error).__name__}: {error}") from error


def check_writable(*paths: str | os.PathLike[str] | None) -> None:
    """Refuse paths that cannot be written before minutes of work go into what they should hold.

    Parameters
    ----------
    *paths : path_like or None
        None is a file that nobody asked for.

    Raises
    ------
    OSError
        As writing there would; its message says what to do.
    """
    for path in paths:
        if path is None:
            continue
        name, parent = os.fspath(path), Path(path).parent
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", name)
        if not parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "there is no such folder; make it first", str(parent)
            )
        if not os.access(parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by `content` in one step, its permissions kept."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ModelFileError(f"{os.fspath(path)}: is no regular file, and is not replaced by one")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot; the file is whole all the same
        pass
    finally:
        os.close(descriptor)


def _named(model: ModelFile) -> dict[str, Array]:
    named = {}
    for i, (weight, bias) in enumerate(model.parameters):
        if weight.size:
            named[f"layers.{i}.weight"] = weight
        if bias is not None:
            named[f"layers.{i}.bias"] = bias
    for i, pair in enumerate(model.statistics):
        for name, values in zip(_STATISTICS, pair or (), strict=False):
            named[f"layers.{i}.{name}"] = values
    return named


def _shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(spec.layers):
        if layer.has_parameters:
            shapes[f"layers.{i}.weight"] = layer.weight_shape
        if layer.bias:
            shapes[f"layers.{i}.bias"] = (layer.out_features,)
        if layer.has_statistics:
            shapes |= {f"layers.{i}.{name}": (layer.out_features,) for name in _STATISTICS}
    return shapes


def _read(path: str | os.PathLike[str]) -> ModelFile:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ModelFileError(f"is no model file, or damaged ({error})") from None
    with opened as file:
        description = _description(file.metadata())
        spec = NetworkSpec.from_json(description["network"])
        shapes = _shapes(spec)
        names = set(file.keys())
        if names != set(shapes):
            odd = ", ".join(sorted(names ^ set(shapes))[:5])
            raise ModelFileError(f"tensors missing or not described: {odd:.200}")
        for name, shape in shapes.items():
            header = file.get_slice(name)
            if tuple(header.get_shape()) != shape:
                raise ModelFileError(
                    f"{name} has shape {tuple(header.get_shape())}, but is described as {shape}"
                )
            if header.get_dtype() != _TENSOR_TYPES[spec.dtype]:
                raise ModelFileError(
                    f"{name} is {header.get_dtype()}, but the network is {spec.dtype}"
                )
        arrays = {name: file.get_tensor(name) for name in shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelFileError(f"{name} holds NaN or infinity")
    nothing = np.empty(0, spec.dtype)
    parameters: Parameters = [
        (arrays.get(f"layers.{i}.weight", nothing), arrays.get(f"layers.{i}.bias"))
        for i in range(len(spec.layers))
    ]
    statistics: Statistics = [
        _statistics(arrays, i) if layer.has_statistics else None
        for i, layer in enumerate(spec.layers)
    ]
    loss, preprocessing = description["loss"], description["preprocessing"]
    return ModelFile(spec, parameters, statistics, loss, preprocessing)


def _statistics(arrays: Mapping[str, Array], layer: int) -> tuple[Array, Array]:
    mean, variance = (arrays[f"layers.{layer}.{name}"] for name in _STATISTICS)
    if (variance < 0).any():
        raise ModelFileError(f"layers.{layer}.running_variance holds a number below 0")
    return mean, variance


def _description(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the checked description; the network in it is yet to be read."""
    if not metadata or set(metadata) != {"fastneuron"}:
        raise ModelFileError("has no fastneuron description: another program's file?")
    text = metadata["fastneuron"]
    if len(text) > _MAX_DESCRIPTION:
        raise ModelFileError(f"its description is longer than {_MAX_DESCRIPTION} characters")
    description = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFileError(f"its description is not of the format {FORMAT!r}")
    version = description.get("version")
    if type(version) is not int or version != VERSION:
        raise ModelFileError(
            f"its version is {version!r:.40}, this fastneuron reads version {VERSION}"
        )
    if set(description) != _KEYS:
        odd = ", ".join(sorted(set(description) ^ _KEYS)[:5])
        raise ModelFileError(f"its description lacks or has too many of the keys: {odd:.200}")
    loss, preprocessing = description["loss"], description["preprocessing"]
    if loss is not None and loss not in LOSSES:
        raise ModelFileError(f"its loss {loss!r:.80} is unknown")
    if preprocessing is not None and not isinstance(preprocessing, dict):
        raise ModelFileError("its preprocessing is no description")
    return description


def _no_constant(text: str) -> Any:
    raise ModelFileError(f"its description holds {text}, which is no JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ModelFileError("its description names a key twice")
    return result

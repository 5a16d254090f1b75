"""Builds the extension modules; everything else about the package is in pyproject.toml.

The compiled CPU backend is optional: without a working C compiler the package installs without it
and says why in `fastneuron.kernels.cython_cpu`. Set FASTNEURON_REQUIRE_EXT=1 to make a failed
build an error instead (continuous integration and wheels do).

The compiled CUDA backend is built where nvcc is found; FASTNEURON_CUDA=0 leaves it out, 1 makes it
an error where it cannot be built, and builds it for every generation of cards: by default it is
built for the oldest alone, as machine code and as PTX, which the driver of a newer card compiles at
first use. FASTNEURON_CUDA_ARCHITECTURES="90" builds for those listed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "fastneuron.kernels._cython_cpu"
CUDA_NAME = "fastneuron.kernels._cython_cuda"
REQUIRED = os.environ.get("FASTNEURON_REQUIRE_EXT", "") not in ("", "0")
SOURCES = Path("csrc", "cpu")
CUDA_SOURCES = Path("csrc", "cuda")
#: One binary serves every Python from 3.11 on: a call costs no measurable time more through the
#: stable ABI (one row forward, 3.6 us of all). Free-threaded Pythons have none.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
if STABLE_ABI:
    MACROS += [("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")]

# Every value stays as IEEE 754 has it, NaN and infinities included: the first drops errno, so that
# sqrt becomes one instruction, the second lets compares turn into selects. Contraction stays off:
# the kernels say themselves where a product and a sum round once.
GCC_FLAGS = [
    *("-std=gnu11", "-O3", "-g0"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
]
#: Instruction sets that the kernels are built for, best last, with what they may use. The choice
#: among them is made when the extension is loaded: see csrc/cpu/kernels.h.
X86_64 = {
    "v2": ["-march=x86-64", "-msse4.2"],
    "v3": ["-march=haswell", "-mtune=generic"],
    "v4": [
        *("-march=haswell", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
        *("-mavx512cd", "-mprfchw", "-mprefer-vector-width=512", "-mtune=generic"),
    ],
}

#: "0", "1" or nothing: see above.
CUDA = os.environ.get("FASTNEURON_CUDA", "")
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
#: Ampere, Hopper, Blackwell. Three take three times as long as one: 40 s of one core, not 13.
GENERATIONS = "80 90 100" if CUDA == "1" else "80"
ARCHITECTURES = os.environ.get("FASTNEURON_CUDA_ARCHITECTURES", GENERATIONS).split()
# Kernels say themselves where a product and a sum round once, as those in C do.
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"),
    "--threads=0",  # architectures side by side
]


def wants_cuda() -> bool:
    """Whether the CUDA backend is to be built."""
    if CUDA not in ("", "0", "1"):
        raise SystemExit(f"FASTNEURON_CUDA must be 0 or 1, got {CUDA!r:.80}")
    if CUDA == "1" and not NVCC:
        raise SystemExit(
            "FASTNEURON_CUDA=1 asks for the CUDA backend, but there is no nvcc: put that of the "
            "CUDA toolkit (12 or newer) on PATH, or name it in CUDACXX"
        )
    return CUDA != "0" and bool(NVCC)


def instruction_sets() -> dict[str, list[str]]:
    """Return the compiler's flags by the name of each instruction set to build for."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return X86_64
    return {"neon" if machine in ("aarch64", "arm64") else "generic": []}


def constants_header() -> str:
    """Return the C header of what the kernels share with the Python side."""
    sys.path.insert(0, str(Path(__file__).parent))
    from fastneuron.kernels.constants import header

    return header()


def cuda_libraries() -> list[str]:
    """Return where nvcc finds CUDA's libraries: what it says itself, for it may be a wrapper."""
    command = [str(NVCC), "--dryrun", "-x", "cu", os.devnull, "-o", "none"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    line = next((line for line in said.splitlines() if "LIBRARIES=" in line), "")
    return [path for path in re.findall(r'-L([^"\s]+)', line) if not path.endswith("stubs")]


def reason_file_of(ext: Extension) -> str:
    """Return the name of the file that says why an extension is not there."""
    return f"{ext.name.rpartition('.')[2]}_missing.txt"


class BuildOptionalExtensions(build_ext):
    """Build what can be built; where something cannot, leave a file with the reason beside it."""

    def build_extension(self, ext: Extension) -> None:
        reason_file = Path(self.get_ext_fullpath(ext.name)).with_name(reason_file_of(ext))
        reason_file.unlink(missing_ok=True)
        is_cuda = ext.name == CUDA_NAME
        try:
            if self.compiler.compiler_type == "msvc":
                raise RuntimeError("it needs GCC or Clang: its kernels use their vector extensions")
            ext.extra_compile_args = GCC_FLAGS
            make = self.build_cuda_kernels if is_cuda else self.build_kernels
            ext.extra_objects = make(ext)
            ext.depends = [*ext.depends, *ext.extra_objects]
            super().build_extension(ext)
        except Exception as error:
            if CUDA == "1" if is_cuda else REQUIRED:
                raise
            reason = f"{' '.join(str(error).split()) or type(error).__name__:.200}"
            print(f"warning: {ext.name} was not built: {reason}", file=sys.stderr)
            reason_file.parent.mkdir(parents=True, exist_ok=True)
            reason_file.write_text(f"building it failed with: {reason}\n", encoding="utf-8")

    def build_kernels(self, ext: Extension) -> list[str]:
        """Compile the kernels for each instruction set and dtype; return the object files."""
        header = self.constants()
        folder = header.parent
        sets = instruction_sets()
        listed = " ".join(f"FN_KERNELS({name})" for name in sets)
        (folder / "variants.h").write_text(f"#define FN_VARIANTS {listed}\n", encoding="utf-8")
        ext.include_dirs = [str(folder), str(SOURCES), np.get_include()]

        def compiled(variant: tuple[str, str]) -> list[str]:
            name, dtype = variant
            return self.compiler.compile(
                [str(SOURCES / "kernels.c")],
                output_dir=str(folder / f"{name}_{dtype}"),
                macros=[("FN_NAME", f"fn_{name}_{dtype}"), (f"FN_{dtype.upper()}", "1")],
                include_dirs=ext.include_dirs,
                extra_postargs=[*GCC_FLAGS, *sets[name]],
                depends=[str(path) for path in (*SOURCES.glob("*.[ch]"), header)],
            )

        variants = [(name, dtype) for name in sets for dtype in ("single", "double")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [path for paths in pool.map(compiled, variants) for path in paths]

    def build_cuda_kernels(self, ext: Extension) -> list[str]:
        """Compile the kernels for each architecture; return the object files."""
        header = self.constants()
        ext.include_dirs = [str(header.parent), str(CUDA_SOURCES)]
        ext.library_dirs = cuda_libraries()
        targets = []
        for name in ARCHITECTURES:
            # The newest as PTX too, for cards that are newer still.
            code = f"[sm_{name},compute_{name}]" if name == ARCHITECTURES[-1] else f"sm_{name}"
            targets += ["-gencode", f"arch=compute_{name},code={code}"]

        def compiled(source: Path) -> str:
            out = header.parent / f"{source.stem}.cuda.o"
            includes = [f"-I{folder}" for folder in ext.include_dirs]
            command = [str(NVCC), *NVCC_FLAGS, *targets, *includes, "-c", str(source), "-o"]
            made = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False)
            if made.returncode:
                raise RuntimeError(f"nvcc fails on {source}: {made.stdout}{made.stderr}")
            return str(out)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compiled, sorted(CUDA_SOURCES.glob("*.cu"))))

    def constants(self) -> Path:
        """Write the header of what the kernels share with the Python side."""
        header = Path(self.build_temp, "kernels", "constants.h")
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(constants_header(), encoding="utf-8")
        return header

    def copy_extensions_to_source(self) -> None:
        """Copy what was built, and the reasons for what was not, into the working tree."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            folder = Path(build_py.get_package_dir(ext.name.rpartition(".")[0]))
            for source in (built, built.with_name(reason_file_of(ext))):
                target = folder / source.name
                if source.exists():
                    self.copy_file(str(source), str(target))
                elif source.suffix == ".txt":
                    target.unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """Return only the files that exist: a failed optional extension is no output."""
        return [path for path in super().get_outputs() if Path(path).exists()]


extensions = [
    Extension(
        NAME,
        [str(SOURCES / "_cython_cpu.pyx")],
        depends=[str(SOURCES / "kernels.h"), str(SOURCES / "choose.h")],
        define_macros=MACROS,
        py_limited_api=STABLE_ABI,
    )
]
if wants_cuda():
    extensions.append(
        Extension(
            CUDA_NAME,
            [str(CUDA_SOURCES / "_cython_cuda.pyx")],
            depends=[str(CUDA_SOURCES / "kernels.h")],
            define_macros=MACROS,
            # Static: the extension loads where there is no CUDA, and says so when it is used.
            libraries=["cudart_static", "rt", "pthread", "dl", "stdc++"],
            py_limited_api=STABLE_ABI,
        )
    )

setup(
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
    cmdclass={"build_ext": BuildOptionalExtensions},
)

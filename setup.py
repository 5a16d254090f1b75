"""Builds the extension modules; everything else about the package is in pyproject.toml.

The compiled CPU backend is optional: without a working C compiler the package installs without it
and says why in `fastneuron.kernels.cython_cpu`. Set FASTNEURON_REQUIRE_EXT=1 to make a failed
build an error instead (continuous integration and wheels do).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "fastneuron.kernels._cython_cpu"
REASON_FILE = "_cython_cpu_missing.txt"
REQUIRED = os.environ.get("FASTNEURON_REQUIRE_EXT", "") not in ("", "0")

# Both leave every value as IEEE 754 has it, NaN and infinities included: the first drops errno,
# so that sqrt becomes one instruction, the second lets compares turn into selects.
# Contraction stays off, so that two builds for one instruction set give the same bits.
GCC_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


class BuildOptionalExtensions(build_ext):
    """Build what can be built; where something cannot, leave a file with the reason beside it."""

    def build_extension(self, ext: Extension) -> None:
        reason_file = Path(self.get_ext_fullpath(ext.name)).with_name(REASON_FILE)
        reason_file.unlink(missing_ok=True)
        if self.compiler.compiler_type in ("unix", "mingw32", "cygwin"):
            ext.extra_compile_args = GCC_FLAGS
        try:
            super().build_extension(ext)
        except Exception as error:
            if REQUIRED:
                raise
            reason = f"{' '.join(str(error).split()) or type(error).__name__:.200}"
            print(f"warning: {ext.name} was not built: {reason}", file=sys.stderr)
            reason_file.parent.mkdir(parents=True, exist_ok=True)
            reason_file.write_text(f"building it failed with: {reason}\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Copy what was built, and the reasons for what was not, into the working tree."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            folder = Path(build_py.get_package_dir(ext.name.rpartition(".")[0]))
            for source in (built, built.with_name(REASON_FILE)):
                target = folder / source.name
                if source.exists():
                    self.copy_file(str(source), str(target))
                elif source.name == REASON_FILE:
                    target.unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """Return only the files that exist: a failed optional extension is no output."""
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    ext_modules=[Extension(NAME, ["csrc/cpu/_cython_cpu.pyx"])],
    cmdclass={"build_ext": BuildOptionalExtensions},
)

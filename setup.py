"""Map the top-level folders of the repository into the `tomfisher` namespace and build the C++ extension.

`kernels/` and `benchmarks/` are installed as `tomfisher.kernels` and `tomfisher.benchmarks`: a top-level
module called `kernels` would shadow the PyPI package of that name, which transformers imports.

`csrc/` becomes `tomfisher._C`, against the libtorch stable ABI and the limited Python API: one build serves
several versions of both. Environment variables:

- `TOMFISHER_BUILD_EXT=0` leaves the extension out (pure Python, the plain-PyTorch references run);
- `TOMFISHER_WERROR=1` makes compiler warnings errors;
- `TOMFISHER_CXXFLAGS` come after our own flags: `-O0` builds in half the time what runs much slower. They are not
  `CFLAGS`, in which distributions of Python hold an `-O2`, and which may be of C alone;
- `MAX_JOBS` bounds the number of compilers that run at once.
"""

import os
import platform
import shlex
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
MAPPED = {"tomfisher.kernels": "kernels", "tomfisher.benchmarks": "benchmarks"}
# Instruction sets beyond the platform's baseline, by the end of a source file's name. Such code runs only
# after a look at the processor (csrc/cpu/dispatch.h); nothing is built with -march=native.
# GCC warns about its own AVX-512 headers (its bug 105593).
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-Wno-maybe-uninitialized"]
SUFFIX_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": ["-mavx2", "-mfma", "-mf16c", *AVX512],
    "_avx512bf16": ["-mavx2", "-mfma", "-mf16c", *AVX512, "-mavx512bf16"],
    "_amx": ["-mavx2", "-mfma", "-mf16c", *AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
STABLE_ABI_SINCE = "0x020b000000000000"  # torch 2.11, the oldest that pyproject.toml allows


def packages() -> list[str]:
    """All packages of the distribution; mapped folders have to be listed one by one."""
    found = find_packages(include=["tomfisher", "tomfisher.*"])
    for name, folder in MAPPED.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


def suffix(source: str) -> str:
    """The instruction set that a source file's name ends in, or ""."""
    stem = Path(source).stem
    return next((end for end in sorted(SUFFIX_FLAGS, key=len, reverse=True) if stem.endswith(end)), "")


def sources() -> list[str]:
    """C++ files of the extension, relative to the root; other processors skip what is written for x86."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    shipped = [file for file in files if not file.startswith(os.path.join("csrc", "tests"))]
    return [file for file in shipped if IS_X86 or not suffix(file)]


def extension() -> dict[str, Any]:
    """Arguments of `setup` that build `tomfisher._C`."""
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        """Compile each instruction set's files with its own flags, then link everything together."""

        def build_extension(self, ext: Any) -> None:
            groups: dict[str, list[str]] = {}
            for source in ext.sources:
                groups.setdefault(suffix(source), []).append(source)
            ext.sources = groups.pop("", [])
            for end, files in groups.items():
                ext.extra_objects += self.compiler.compile(
                    files,
                    output_dir=os.path.join(self.build_temp, end.lstrip("_")),
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*ext.extra_compile_args, *SUFFIX_FLAGS[end]],
                )
            super().build_extension(ext)

    flags = ["-O3", "-g0", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}=.", "-Wall", "-Wextra"]
    flags += [f"-DTORCH_TARGET_VERSION={STABLE_ABI_SINCE}"]
    flags += ["-Werror"] if os.environ.get("TOMFISHER_WERROR") == "1" else []
    flags += shlex.split(os.environ.get("TOMFISHER_CXXFLAGS", ""))
    for path in cpp_extension.include_paths():
        flags += ["-isystem", path]  # no warnings from torch's headers
    module = cpp_extension.CppExtension(
        "tomfisher._C",
        sources(),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        py_limited_api=True,
    )
    module.depends = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=packages(),
    package_dir={"tomfisher": "tomfisher", **MAPPED},
    **({} if os.environ.get("TOMFISHER_BUILD_EXT") == "0" else extension()),
)

"""Builds the compiled kernels of zoo: the CPU part always, the CUDA part where it can be.

Environment:
    ZOO_CUDA=0              leave the CUDA part out; ZOO_CUDA=1: fail if it cannot be built
    TORCH_CUDA_ARCH_LIST    GPU architectures; default: of the GPUs that are here, else 8.0+PTX
    MAX_JOBS                compilers at the same time
    ZOO_SANITIZE=address,undefined
                            build the CPU part for these sanitizers; the first thing they find
                            ends the process (CONTRIBUTING.md has the command)
    ZOO_DEBUG_KERNELS=1     the CUDA part looks at the numbers in index tensors, and waits for it
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import find_packages, setup


def name_cuda_home() -> None:
    """Set CUDA_HOME to where nvcc says it is: the one on the PATH may be a link or a script."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    plan = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull],
                          capture_output=True, text=True).stderr  # fmt: skip
    if found := re.search(r"^#\$ _HERE_=(.+)$", plan, re.MULTILINE):
        os.environ["CUDA_HOME"] = str(Path(found[1]).parent)


name_cuda_home()  # before the next import, which guesses

from torch.utils.cpp_extension import (  # noqa: E402
    CUDA_HOME,
    BuildExtension,
    CppExtension,
    CUDAExtension,
    get_cxx_compiler,
)

ROOT = Path(__file__).resolve().parent
# Where there is no GPU: all from Ampere on, the newer ones through the driver's compiler.
DEFAULT_CUDA_ARCHS = "8.0+PTX"


def torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def cuda_obstacle() -> str | None:
    """Why the CUDA part cannot be built; None if it can."""
    if os.environ.get("ZOO_CUDA") == "0":
        return "ZOO_CUDA=0"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} has no CUDA"
    if CUDA_HOME is None:
        return "no CUDA toolkit found (nvcc on the PATH, or CUDA_HOME)"
    try:
        text = subprocess.check_output([f"{CUDA_HOME}/bin/nvcc", "--version"], text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvcc does not run: {error}"
    release = text.split("release ")[1].split(",")[0]
    if release.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc is CUDA {release}, PyTorch was built with {torch.version.cuda}"
    return None


def cuda_archs() -> str:
    """The architectures of the GPUs that are here."""
    if not torch.cuda.is_available():
        return DEFAULT_CUDA_ARCHS
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))


class BuildKernels(BuildExtension):
    """Objects of each library in a folder of their own: both compile the same bindings.

    Without a compiler nothing is built, and the package is installed all the same: the PyTorch
    reference of each op answers.
    """

    def build_extensions(self) -> None:
        compiler = get_cxx_compiler()
        if shutil.which(compiler.split()[0]) is None:
            if os.environ.get("ZOO_CUDA") == "1":
                raise SystemExit(f"ssm-zoo: ZOO_CUDA=1, but there is no C++ compiler: {compiler}")
            print(
                f"ssm-zoo: no kernels are built, as there is no C++ compiler ({compiler}): all ops "
                "answer through their PyTorch reference, correct but slow. Install g++ 11 or "
                "clang++ 14, or newer, or name one with CXX, and install again.",
                file=sys.stderr,
            )
            self.extensions = []
            return
        super().build_extensions()

    def build_extension(self, ext) -> None:
        base = self.build_temp
        self.build_temp = os.path.join(base, ext.name)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = base


def extensions() -> list:
    def sources(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))

    common = dict(include_dirs=[str(ROOT / "csrc")], py_limited_api=True)
    # Python's own flags ask for debug information: a quarter of the compiler's time
    cxx = ["-O3", "-g0", "-std=c++20", "-Wall", "-fvisibility=hidden"]
    if torch_version() >= (2, 10):
        cxx.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    link = []
    if os.environ.get("ZOO_DEBUG_KERNELS") == "1":
        cxx.append("-DZOO_DEBUG_KERNELS")
    sanitizers = os.environ.get("ZOO_SANITIZE")
    if sanitizers:
        link = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        cxx += [*link, "-fno-omit-frame-pointer", "-g", "-O1"]
    built = [
        CppExtension(
            "zoo._C",
            sources("csrc/ops.cpp", "csrc/*/cpu*.cpp", "csrc/*/binding.cpp"),
            extra_compile_args={"cxx": cxx},
            extra_link_args=link,
            **common,
        )
    ]
    obstacle = cuda_obstacle()
    if obstacle is None:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_archs())
        flags = [flag for flag in cxx if flag.startswith("-D")] + ["-DZOO_CUDA"]
        built.append(
            CUDAExtension(
                "zoo._C_cuda",
                sources("csrc/*/cuda*.cu", "csrc/*/binding.cpp"),
                extra_compile_args={
                    "cxx": [*cxx, "-DZOO_CUDA", "-DUSE_CUDA"],
                    "nvcc": ["-O3", "-std=c++20", "--expt-relaxed-constexpr", *flags],
                },
                **common,
            )
        )
        print(f"ssm-zoo: CPU and CUDA kernels for {os.environ['TORCH_CUDA_ARCH_LIST']}")
    elif os.environ.get("ZOO_CUDA") == "1":
        raise SystemExit(f"ssm-zoo: ZOO_CUDA=1, but the CUDA kernels cannot be built: {obstacle}")
    else:
        print(f"ssm-zoo: CPU kernels only; no CUDA kernels: {obstacle}")
    return built


setup(
    # in the source folder recipes/ stands beside the package, in a wheel inside it (zoo/recipes.py)
    packages=[*find_packages(include=["zoo", "zoo.*"]), "zoo._recipes"],
    package_dir={"zoo._recipes": "recipes"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

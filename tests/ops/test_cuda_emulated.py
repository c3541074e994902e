"""Runs test_cuda.py and its neighbours without a GPU.

g++ compiles the CUDA kernels for the emulation beside this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from zoo.ops import _library

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).with_name("cuda_emulation")
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-DZOO_CUDA"]
# The kernels, not what they share with PyTorch, stop at the first misaligned access or bad index.
KERNEL_FLAGS = [
    "-U_FORTIFY_SOURCE",  # fibers are changed with longjmp, which it takes for a mistake
    "-fsanitize=bounds,alignment,null,shift,integer-divide-by-zero,signed-integer-overflow",
    "-fsanitize-undefined-trap-on-error",
]


def stable_abi() -> list[str]:
    major, minor = (int(n) for n in torch.__version__.split(".")[:2])
    return ["-DTORCH_TARGET_VERSION=0x020a000000000000"] if (major, minor) >= (2, 10) else []


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_emulation")
    includes = [f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"]
    torch_includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]

    def compile(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        extra = KERNEL_FLAGS if source.suffix == ".cu" else [*torch_includes, *stable_abi()]
        command = [COMPILER, *FLAGS, *extra, *includes, "-x", "c++", "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    kernels = sorted((ROOT / "csrc").glob("*/cuda*.cu"))
    bindings = [
        path for f in sorted({k.parent for k in kernels}) for path in sorted(f.glob("binding.cpp"))
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, [*kernels, *bindings]))
    target = folder / "emulated.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([COMPILER, "-shared", *objects, *paths, *libraries, "-o", target], check=True)
    return target


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER}")
@pytest.mark.skipif("cpu" in _library.unavailable, reason="zoo's own library is not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_kernels(library, order):
    """In both orders of the threads of a block, so that a missing barrier shows."""
    environment = os.environ | {
        "ZOO_CUDA_EMULATION": str(library),
        "ZOO_EMULATION_ORDER": order,
        "OMP_NUM_THREADS": "1",
    }
    tests = sorted(str(file) for file in EMULATION.parent.glob("test_cuda*.py"))
    tests.remove(__file__)
    arguments = ["-q", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout

"""Runs test_cuda.py and its neighbours without a GPU.

g++ compiles the CUDA kernels for the emulation beside this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from zoo.ops import _library

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).with_name("cuda_emulation")
COMPILER = os.environ.get("CXX", "g++")
ORDERS = ("forward", "reverse")
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


@pytest.fixture(scope="module")
def runs(library) -> Iterator[dict[str, subprocess.Popen]]:
    """The tests in both orders of the threads of a block, side by side."""
    tests = [str(path) for path in sorted(EMULATION.parent.glob("test_cuda*.py"))
             if path.name not in ("test_cuda_emulated.py", "test_cuda_large.py")]  # fmt: skip
    running = {}
    for order in ORDERS:
        environment = os.environ | {
            "ZOO_CUDA_EMULATION": str(library),
            "ZOO_EMULATION_ORDER": order,
            "OMP_NUM_THREADS": "1",
        }
        running[order] = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield running
    for process in running.values():
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER}")
@pytest.mark.skipif("cpu" in _library.unavailable, reason="zoo's own library is not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("order", ORDERS)
def test_kernels(runs, order):
    """In both orders, so that a missing barrier shows."""
    output = runs[order].communicate()[0]
    assert runs[order].returncode == 0, output[-7000:]
    assert " passed" in output

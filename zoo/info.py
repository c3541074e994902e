"""``python -m zoo.info``: what is installed, which kernels were built and are in use."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zoo.command import command

OPTIONAL = {"mamba-ssm": "[cuda]", "causal-conv1d": "[cuda]", "mkdocs-material": "[docs]"}


@command
def main(argv: list[str]) -> int:
    """Print ten lines."""
    parser = argparse.ArgumentParser(
        prog="zoo info", allow_abbrev=False, description="What is installed, built and in use."
    )
    parser.parse_args(argv)
    for name, line in report().items():
        print(f"{name:<14}{line}")
    return 0


def report() -> dict[str, str]:
    """The lines by their names."""
    import torch

    return {
        "ssm-zoo": f"{_version('ssm-zoo')} in {Path(__file__).resolve().parent}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "PyTorch": f"{torch.__version__}, built "
        + (f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "CPU kernels": _kernels("cpu"),
        "CUDA kernels": _kernels("cuda"),
        "GPU": _gpu(),
        "training": _versions("lightning", "timm", "torchmetrics", "jsonargparse"),
        "data": _versions("datasets", "transformers", "safetensors", "scikit-learn"),
        "optional": ", ".join(f"{n} {_version(n)} {extra}" for n, extra in OPTIONAL.items()),
    }


def _kernels(device: str) -> str:
    import torch

    from zoo.ops import _library

    if reason := _library.unavailable.get(device):
        return f"none ({reason}); PyTorch references answer, slowly"
    if device == "cpu":
        variant = torch.ops.zoo.cpu_capability()
        return f"built, {variant} in use (ZOO_CPU_CAPABILITY=default|avx2|avx512 forces one)"
    return "built"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that PyTorch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import pytest
import torch

#: Builds of the CPU kernels that this processor can run.
VARIANTS = ["default", "avx2", "avx512"]
VARIANTS = VARIANTS[: {"AVX2": 2, "AVX512": 3}.get(torch.backends.cpu.get_cpu_capability(), 1)]


@pytest.fixture(params=VARIANTS)
def cpu_variant(request, monkeypatch) -> str:
    """Each build of the CPU kernels in turn."""
    monkeypatch.setenv("ZOO_CPU_CAPABILITY", request.param)
    return request.param

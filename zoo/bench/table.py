"""The lines of the bench. A new op is a subclass of Case and its lines here."""

from __future__ import annotations

from zoo.bench.attention import TreeAttention
from zoo.bench.case import Case
from zoo.bench.convolutions import CausalConv1d, CausalConv1dUpdate
from zoo.bench.mamba2 import Ssd
from zoo.bench.recurrences import DiagonalScan, FftConv
from zoo.bench.recurrent import DeltaRule, LinearAttention, OneHead, RecurrentCell
from zoo.bench.scan_orders import CrossMerge, CrossScan
from zoo.bench.scans import LongScan, SelectiveScan, SelectiveStateUpdate
from zoo.bench.ssm_kernels import CauchyKernel, VandermondeKernel

#: Mamba-130m (dim 1536, state 16), the first stage of VMamba-T (dim 2 x 192, state 1), Mamba-2 130m
#: (24 heads of 64, state 128), a draft tree of 64 nodes on a model of 7B.
CPU: tuple[Case, ...] = (
    SelectiveScan(),
    SelectiveScan(backward=True),
    SelectiveScan(dtype="bfloat16"),
    SelectiveScan(state=1),
    SelectiveScan(state=8, compare=False),
    SelectiveScan(state=64, compare=False),
    SelectiveScan(state=128, compare=False),
    SelectiveScan(reverse=True, compare=False),
    SelectiveScan(batch=8, dim=384, length=3136, state=1, groups=2),
    SelectiveScan(batch=8, dim=384, length=3136, state=1, groups=2, backward=True, compare=False),
    LongScan(),
    SelectiveStateUpdate(),
    SelectiveStateUpdate(batch=64),
    Ssd(),
    Ssd(backward=True),
    Ssd(dtype="bfloat16", compare=False),
    Ssd(heads=12, state=1, compare=False),
    DeltaRule(),
    DeltaRule(backward=True),
    LinearAttention(),
    LinearAttention(backward=True),
    RecurrentCell(),
    RecurrentCell(backward=True),
    RecurrentCell(cell="slstm"),
    OneHead(),
    OneHead(backward=True),
    CausalConv1d(),
    CausalConv1d(backward=True),
    CausalConv1d(channel_last=True),
    CausalConv1d(channel_last=True, backward=True),
    CausalConv1d(dtype="bfloat16"),
    CausalConv1dUpdate(),
    CausalConv1dUpdate(batch=64),
    CrossScan(),
    CrossScan(channel_last=True),
    CrossScan(channel_last=True, backward=True),
    CrossScan(channel_last=True, order="atrous"),
    CrossMerge(),
    CrossMerge(order="atrous"),
    TreeAttention(),
    TreeAttention(dtype="bfloat16"),
    TreeAttention(kv_heads=8),
    TreeAttention(nodes=1, prefix=8192),
    *(
        case(length=length, backward=backward)
        for case in (CauchyKernel, VandermondeKernel)
        for length in (1024, 16384)
        for backward in (False, True)
    ),
    DiagonalScan(),
    DiagonalScan(backward=True),
    DiagonalScan(complex=False),
    FftConv(),
    FftConv(backward=True),
)

GPU: tuple[Case, ...] = (
    *(
        SelectiveScan(batch=8, backward=backward, dtype=dtype)
        for dtype in ("bfloat16", "float32")
        for backward in (False, True)
    ),
    SelectiveScan(length=65536, dim=64, compare=False),
    SelectiveScan(batch=128, dim=384, length=3136, state=1, groups=2, compare=False),
    SelectiveStateUpdate(batch=64),
    *(
        CausalConv1d(batch=8, channel_last=channel_last, backward=backward)
        for channel_last in (False, True)
        for backward in (False, True)
    ),
    CausalConv1dUpdate(batch=64),
    CrossScan(batch=128),
    CrossScan(batch=128, channel_last=True),
    CrossScan(batch=128, channel_last=True, order="atrous"),
    CrossMerge(batch=128),
    Ssd(batch=8),
    Ssd(batch=8, backward=True),
    *(
        case
        for backward in (False, True)
        for case in (DeltaRule(batch=8, backward=backward), RecurrentCell(backward=backward))
    ),
    TreeAttention(),
    TreeAttention(prefix=8192),
    TreeAttention(prefix=8192, batch=8, kv_heads=8),
    *(
        case(backward=backward)
        for case in (CauchyKernel, VandermondeKernel)
        for backward in (False, True)
    ),
    DiagonalScan(),
    DiagonalScan(backward=True),
    FftConv(),
    FftConv(length=32768),
)

#: Run at lengths from 256 to 262144.
GROWTH: tuple[Case, ...] = (
    SelectiveScan(dim=64),
    SelectiveScan(dim=64, backward=True),
    CausalConv1d(dim=64),
    Ssd(heads=1),
)

QUICK: tuple[Case, ...] = (
    SelectiveScan(dim=64, length=128),
    SelectiveStateUpdate(dim=64),
    CausalConv1d(dim=64, length=128),
    CausalConv1dUpdate(dim=64),
    CrossScan(batch=1, channels=16, height=14, width=14),
    CrossMerge(batch=1, channels=16, height=14, width=14),
    Ssd(length=128, heads=2, state=16),
    DeltaRule(length=64, heads=2, head_dim=16),
    LinearAttention(length=64, heads=2, head_dim=16),
    RecurrentCell(batch=2, length=16, heads=2, head_dim=16),
    TreeAttention(nodes=8, prefix=64, heads=2, kv_heads=1, head_dim=32),
    CauchyKernel(features=4, poles=4, length=128),
    VandermondeKernel(features=4, modes=4, length=128),
    DiagonalScan(batch=1, length=128, channels=16),
    FftConv(batch=1, channels=16, length=128),
)

"""Functional ops."""

from zoo.ops.butterfly import (
    butterfly_conv,
    butterfly_fft,
    butterfly_fft_reference,
    butterfly_sizes,
)
from zoo.ops.cauchy_kernel import cauchy_kernel, cauchy_kernel_reference
from zoo.ops.causal_conv1d import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
)
from zoo.ops.cross_scan import (
    cross_merge,
    cross_merge_reference,
    cross_scan,
    cross_scan_reference,
)
from zoo.ops.delta_rule import (
    delta_rule,
    delta_rule_reference,
    linear_attention,
    linear_attention_reference,
)
from zoo.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from zoo.ops.fft_conv import fft_conv, fft_conv_reference
from zoo.ops.recurrent_cell import recurrent_cell, recurrent_cell_reference
from zoo.ops.selective_scan import selective_scan, selective_scan_reference
from zoo.ops.selective_state_update import (
    selective_state_update,
    selective_state_update_reference,
)
from zoo.ops.ssd import ssd, ssd_reference
from zoo.ops.state_passing_conv import (
    state_passing_conv,
    state_passing_conv_reference,
)
from zoo.ops.tree_attention import commit_path, tree_attention, tree_attention_reference
from zoo.ops.vandermonde_kernel import (
    vandermonde_kernel,
    vandermonde_kernel_reference,
    vandermonde_transpose,
    vandermonde_transpose_reference,
)

__all__ = [
    "butterfly_conv",
    "butterfly_fft",
    "butterfly_fft_reference",
    "butterfly_sizes",
    "cauchy_kernel",
    "cauchy_kernel_reference",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_update",
    "causal_conv1d_update_reference",
    "commit_path",
    "cross_merge",
    "cross_merge_reference",
    "cross_scan",
    "cross_scan_reference",
    "delta_rule",
    "delta_rule_reference",
    "diagonal_scan",
    "diagonal_scan_reference",
    "fft_conv",
    "fft_conv_reference",
    "linear_attention",
    "linear_attention_reference",
    "recurrent_cell",
    "recurrent_cell_reference",
    "selective_scan",
    "selective_scan_reference",
    "selective_state_update",
    "selective_state_update_reference",
    "ssd",
    "ssd_reference",
    "state_passing_conv",
    "state_passing_conv_reference",
    "tree_attention",
    "tree_attention_reference",
    "vandermonde_kernel",
    "vandermonde_kernel_reference",
    "vandermonde_transpose",
    "vandermonde_transpose_reference",
]

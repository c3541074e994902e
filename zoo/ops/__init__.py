"""Functional ops."""

from zoo.ops.selective_scan import selective_scan, selective_scan_reference
from zoo.ops.selective_state_update import (
    selective_state_update,
    selective_state_update_reference,
)

__all__ = [
    "selective_scan",
    "selective_scan_reference",
    "selective_state_update",
    "selective_state_update_reference",
]

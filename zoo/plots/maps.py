"""Maps of numbers as colours."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps


def coloured(values: np.ndarray) -> np.ndarray:
    """Map [H, W] -> uint8 [H, W, 3], coloured by its own range."""
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / max(high - low, 1e-12)
    return (colormaps["viridis"](shares)[..., :3] * 255).round().astype(np.uint8)

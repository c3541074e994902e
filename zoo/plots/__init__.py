"""Pictures of what models do, as Matplotlib figures without global state."""

from zoo.plots.classification import annotated_picture, confusion_matrix, prediction_grid
from zoo.plots.curves import learning_curve
from zoo.plots.proofs import measured_bars

__all__ = [
    "annotated_picture",
    "confusion_matrix",
    "learning_curve",
    "measured_bars",
    "prediction_grid",
]

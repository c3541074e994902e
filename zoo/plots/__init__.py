"""Pictures of what models do, as Matplotlib figures without global state."""

from zoo.plots.classification import annotated_picture, confusion_matrix, prediction_grid
from zoo.plots.curves import learning_curve
from zoo.plots.proofs import claim_figure

__all__ = [
    "annotated_picture",
    "claim_figure",
    "confusion_matrix",
    "learning_curve",
    "prediction_grid",
]

"""Tasks: what is learnt and measured, one Lightning module per task."""

from zoo.tasks.base import OptimizerSettings, ScheduleSettings, Task
from zoo.tasks.classification import ImageClassification, MixupSettings

__all__ = [
    "ImageClassification",
    "MixupSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "Task",
]

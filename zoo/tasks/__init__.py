"""Tasks: what is learnt and measured, one Lightning module per task.

Every class stands in ``zoo/tasks/<family>/`` and is found here by its name:
``zoo.tasks.Segmentation``.
"""

from zoo.lazy import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)

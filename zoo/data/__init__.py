"""Data sets as Lightning data modules: a reader per family of data sets.

Every class stands in ``zoo/data/<family>/`` and is found here by its name: ``zoo.data.Synapse``.
``formats`` holds what reads and writes files, ``synthetic`` what makes samples.
"""

from zoo.lazy import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)

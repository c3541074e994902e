import pytest

from zoo.data import Digits
from zoo.errors import ZooError
from zoo.tasks.dense.segmentation import Segmentation


def test_data_without_label_maps_and_a_single_class_are_said():
    task = Segmentation(model="sinet", num_classes=10)
    with pytest.raises(ZooError, match=r"Digits has no label maps.*zoo\.data\.Portraits"):
        task.check_data(Digits())
    with pytest.raises(ZooError, match="num_classes is 1, expected 2 or more"):
        Segmentation(model="sinet", num_classes=1)

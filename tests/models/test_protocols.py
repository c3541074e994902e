"""What a task asks of a model is said when the model is built."""

import pytest

from zoo.errors import ZooError
from zoo.tasks import Detection, SpeechRecognition


def test_a_model_that_is_no_recogniser():
    with pytest.raises(
        ZooError, match="sinet is no recogniser, it lacks SOS, EOS, begin, step, "
        "n_mels, vocab_size, ctc; expected a model such as samba_asr_tiny"
    ):  # fmt: skip
        SpeechRecognition("sinet", {"num_classes": 2})


def test_a_model_that_is_no_detector():
    with pytest.raises(ZooError, match="sinet is no detector, it lacks masks"):
        Detection(num_classes=2, model="sinet")

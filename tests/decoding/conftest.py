from __future__ import annotations

import pytest
from torch import nn

from tests.language_models import make_model


@pytest.fixture(scope="session")
def llama() -> nn.Module:
    return make_model("llama")

"""What the tests of models with official weights share."""

import torch

import zoo


def check_official_keys(name: str, official: dict[str, tuple[int, ...]]) -> None:
    """Weights with the official names and shapes become exactly the state dict of the variant."""
    with torch.device("meta"):
        model = zoo.create_model(name)
        weights = {key: torch.empty(shape) for key, shape in official.items()}
        remapped = model.remap_state_dict(weights)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in remapped.items()} == expected
    assert len(remapped) == len(official)

"""The lower layers of VGG16, in whose feature maps pictures are compared."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers


class VGG16Layers(nn.Module):
    """The first layers of torchvision's ``vgg16().features``, frozen; its weights are to be loaded
    (:func:`zoo.load_pretrained` takes torchvision's file).

    Args:
        depth: number of layers.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        # the whole network would take a second and half a gigabyte
        features = make_layers(cfgs["D"])[:depth]
        for module in features:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # later layers must not change what is compared
        self.features = features.requires_grad_(False)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's ``vgg16`` without what lies above."""
        ours = self.state_dict()
        return {name: value for name, value in state_dict.items() if name in ours}

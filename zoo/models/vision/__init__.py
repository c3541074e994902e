"""Vision backbones. Importing this package enters them into timm's registry too."""

from zoo.models.vision import (
    efficientvmamba,
    mambamixer,
    plainmamba,
    token_pruning,
    vim,
    vmamba,
)

__all__ = ["efficientvmamba", "mambamixer", "plainmamba", "token_pruning", "vim", "vmamba"]

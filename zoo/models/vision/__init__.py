"""Vision backbones. Importing this package enters them into timm's registry too."""

from zoo.models.vision import efficientvmamba, plainmamba, vim, vmamba

__all__ = ["efficientvmamba", "plainmamba", "vim", "vmamba"]

"""Vision backbones. Importing this package enters their names into timm's registry too."""

from zoo.models.vision._timm import enter_all

enter_all()

"""What a detector is; :class:`zoo.tasks.Detection` trains one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Detector(Protocol):
    """An ``nn.Module`` that finds objects in pictures of any sizes, which it scales itself.

    Attributes:
        masks: whether it gives outlines beside boxes.
    """

    masks: bool

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Find, or in training mode learn.

        Args:
            images: [3, H, W] each, in 0..1.
            targets: of each picture, in training mode: ``boxes`` [N, 4] (left, top, right, bottom
                in pixels), ``labels`` [N] from 0, ``masks`` [N, H, W] and ``iscrowd`` [N].

        Returns:
            losses by name, to be summed; without targets, of each picture ``boxes``, ``labels``,
            ``scores`` [N], best first, and where there are ``masks`` [N, H, W] in 0..1.
        """

"""Recognition while someone speaks: memory stays the same, however long that is."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.layers.cache import Cache
from zoo.models.speech.samba_asr import PrefixLayer, SambaASR


class SambaStream:
    """One recording that comes in pieces.

    The encoder must read in one direction. Its states and those of the decoder's audio prefix take
    each piece in; nothing else is kept but the last few frames, for the convolutions.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SambaASR) -> None:
        layers = [layer for layer in model.decoder.layers if isinstance(layer, PrefixLayer)]
        if model.bidirectional or len(layers) < len(model.decoder.layers):
            raise ZooError(
                "audio can be read in pieces by an encoder of one direction with a decoder that "
                "keeps it as a prefix: train with bidirectional=False, cross='prefix'"
            )
        self.model = model
        encoder = model.encoder.layers
        self.encoder = Cache([layer.fwd.allocate_state(1) for layer in encoder])
        self.decoder = Cache(
            [m.allocate_state(1) for layer in layers for m in (layer.self_mixer, layer.cross)]
        )
        self.waiting = model.ctc.weight.new_zeros(0, model.n_mels)
        self.first = self.encoded = 0  # frame that ``waiting`` begins with; encoded frames so far

    @property
    def nbytes(self) -> int:
        """What is kept of all that was heard."""
        return self.encoder.nbytes + self.decoder.nbytes + self.waiting.nbytes

    @torch.no_grad()
    def feed(self, features: Tensor, last: bool = False) -> Tensor:
        """Take in a piece.

        Args:
            features: log-Mel [t, n_mels].
            last: nothing follows.

        Returns:
            CTC logits of the frames that are now encoded [n, V]; the newest frame or two of a piece
            that is not the last must wait for the next.
        """
        x = torch.cat([self.waiting, features.to(self.waiting)])
        total = self.first + len(x)
        ready = (total + 1) // 2 if last else max((total - 1) // 2, self.encoded)
        if len(x) == 0 or ready == self.encoded:
            self.waiting = x
            return self.model.ctc.weight.new_zeros(0, self.model.vocab_size)
        new, _ = self.model.encoder.subsample(x[None], torch.tensor([len(x)], device=x.device))
        new = new[:, self.encoded - self.first // 2 : ready - self.first // 2]
        for layer, state in zip(self.model.encoder.layers, self.encoder.layers, strict=True):
            new = layer.step(new, state)
        new = self.model.encoder.norm(new)
        for layer, state in zip(self.model.decoder.layers, self.decoder.layers[1::2], strict=True):
            layer.read(new, state)
        # encoded frame k comes from frames 2k - 2 to 2k + 2
        keep = max(2 * ready - 2, 0)
        self.waiting, self.first, self.encoded = x[keep - self.first :], keep, ready
        return self.model.ctc(new)[0]

    def cache(self) -> Cache:
        """A copy of the decoder's memory of all that was fed, to decode from."""
        return self.decoder.clone()

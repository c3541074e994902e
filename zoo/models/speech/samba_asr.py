"""Samba-ASR: speech recognition without attention (SandLogic 2025, arXiv 2501.02832).

A stack of Mamba blocks reads the audio, another writes the text. Their bridge, the "Mamba
cross-connection", lets each decoder layer read the encoded audio before the text, so that its state
holds what was said: decoding a token costs the same after any length of audio or text.

The authors published neither code nor weights, and their text leaves sizes, tokens and the form of
the bridge open. From the paper are convolutions and Mamba blocks over Mel features, a decoder of
Mamba blocks that gets audio and earlier tokens, and the optimizer; Whisper's front end, both
directions in the encoder, the sizes, the bridge as a prefix and the CTC head are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import Cache, LayerState
from zoo.layers.causal_attention import SelfAttention
from zoo.layers.mamba import Mamba
from zoo.models.registry import register_model
from zoo.models.speech._cross_attention import CrossAttention
from zoo.models.speech._lengths import align_right, length_mask, reverse_within
from zoo.models.speech._protocol import Stream


class SambaASR(nn.Module):
    """Encoder, decoder, and a CTC head on the encoder.

    Tokens 0, 1 and 2 are padding, start and end of a text; 0 is CTC's blank. For decoding see
    :meth:`begin` and :meth:`step`, and :mod:`zoo.decoding.speech.transcribe`, which searches with
    them.

    Args:
        d_model: width.
        encoder_layers, decoder_layers: blocks.
        vocab_size: tokens, with the three special ones.
        n_mels: Mel bands of the features.
        d_state, d_conv, expand: of the Mamba mixers.
        mixer: "mamba", or "attention" with rotary positions: with ``cross="attention"`` and
            ``ffn_mult=4`` that is a Transformer, to compare with.
        bidirectional: the encoder reads in both directions; False lets it be fed piece by piece.
        cross: what a decoder layer hears. "prefix": its second mixer reads the audio before the
            text. "attention": ordinary cross-attention, which is not in the paper. "none": nothing.
        ffn_mult: width of a feed-forward layer after the mixers, over d_model; 0 for none.
        n_heads: of the attention, if there is any.
        dropout: after each mixer and feed-forward layer.
    """

    PAD, SOS, EOS = 0, 1, 2

    def __init__(
        self,
        d_model: int = 256,
        encoder_layers: int = 12,
        decoder_layers: int = 4,
        vocab_size: int = 5000,
        n_mels: int = 80,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        mixer: Literal["mamba", "attention"] = "mamba",
        bidirectional: bool = True,
        cross: Literal["prefix", "attention", "none"] = "prefix",
        ffn_mult: float = 0,
        n_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if mixer not in ("mamba", "attention"):
            raise ZooError(f"mixer is mamba or attention, not {mixer!r}")
        if cross not in LAYERS:
            raise ZooError(f"cross is one of {', '.join(LAYERS)}, not {cross!r}")
        if cross == "prefix" and mixer == "attention":
            raise ZooError("attention has no state to read audio into: set cross to attention")
        self.vocab_size, self.n_mels, self.bidirectional = vocab_size, n_mels, bidirectional
        ssm = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        parts = Parts(d_model, mixer, ssm, n_heads, round(ffn_mult * d_model), dropout)
        self.encoder = Encoder(parts, encoder_layers, n_mels, bidirectional)
        self.decoder = Decoder(parts, decoder_layers, vocab_size, cross)
        self.ctc = nn.Linear(d_model, vocab_size)
        # as in Mamba's language models, the sum of all mixers shall not grow with their number
        mixers = [module for module in self.modules() if isinstance(module, Mamba)]
        with torch.no_grad():
            for module in mixers:
                module.out_proj.weight /= math.sqrt(len(mixers))

    def forward(
        self, features: Tensor, lengths: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forcing.

        Args:
            features: log-Mel [B, T, n_mels], anything after their ``lengths``.
            lengths: frames of each [B].
            tokens: texts from the start token on [B, U], anything after their end.

        Returns:
            logits of the next tokens [B, U, V], CTC logits [B, T/2, V] and their lengths [B].
        """
        memory, lengths = self.encoder(features, lengths)
        return self.decoder(tokens, memory, lengths), self.ctc(memory), lengths

    @torch.no_grad()
    def begin(self, memory: Tensor, lengths: Tensor) -> Cache:
        """The decoder's memory when it has read encoded audio [B, T/2, C] of ``lengths`` [B]."""
        rows = zip(memory, lengths.tolist(), strict=True)
        return Cache.stack([self.decoder.begin(row[None, :length]) for row, length in rows])

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Read one token [B]; returns logits of the next [B, V] and changes ``cache``."""
        return self.decoder.step(tokens, cache)

    def stream(self) -> Stream:
        """Listen to a recording that comes in pieces.

        Raises:
            ZooError: encoder or decoder must hear all first.
        """
        from zoo.models.speech._samba_asr_streaming import SambaStream

        return SambaStream(self)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("A_log")}


class Parts(NamedTuple):
    """What all layers of a model are made of."""

    d_model: int
    kind: str
    ssm: Mapping[str, Any]
    n_heads: int
    hidden: int
    dropout: float

    def mixer(self, causal: bool = True) -> nn.Module:
        """Mamba (one direction), or self-attention."""
        if self.kind == "mamba":
            return Mamba(self.d_model, **self.ssm)
        turned = self.d_model // self.n_heads
        return SelfAttention(self.d_model, self.n_heads, causal=causal, rotary_emb_dim=turned)

    def norm(self) -> nn.RMSNorm:
        """Before each mixer, and at the end."""
        return nn.RMSNorm(self.d_model, eps=1e-5)

    def ffn(self) -> nn.Module | None:
        """A feed-forward layer with its norm, if there is one."""
        if not self.hidden:
            return None
        widen, narrow = nn.Linear(self.d_model, self.hidden), nn.Linear(self.hidden, self.d_model)
        return nn.Sequential(self.norm(), widen, nn.GELU(), narrow)


class Encoder(nn.Module):
    """Two convolutions, of which the second halves the frame rate, then Mamba blocks."""

    def __init__(self, parts: Parts, layers: int, n_mels: int, bidirectional: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, parts.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(parts.d_model, parts.d_model, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(parts, bidirectional) for _ in range(layers))
        self.norm = parts.norm()

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, n_mels] and lengths [B] -> [B, ceil(T / 2), C] and lengths."""
        x, lengths = self.subsample(features, lengths)
        for layer in self.layers:
            x = layer(x, lengths)
        return self.norm(x), lengths

    def subsample(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutions. Padding counts as zero before both, as beyond the end of a batch."""
        mask = length_mask(lengths, features.shape[1])
        x = (features * mask[..., None]).transpose(1, 2)  # [B, C, T]
        x = F.gelu(self.conv1(x)) * mask[:, None]
        x = F.gelu(self.conv2(x))
        return x.transpose(1, 2), (lengths + 1) // 2


class EncoderLayer(nn.Module):
    """Two mixers, one on the reversed sequence, and their mean; or a causal one."""

    def __init__(self, parts: Parts, bidirectional: bool) -> None:
        super().__init__()
        self.norm = parts.norm()
        self.fwd = parts.mixer(causal=not bidirectional)
        self.bwd = parts.mixer() if bidirectional and parts.kind == "mamba" else None
        self.ffn = parts.ffn()
        self.dropout = nn.Dropout(parts.dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, C] to the same; padding changes nothing before it."""
        y = self.norm(x)
        if self.bwd is not None:
            back = reverse_within(self.bwd(reverse_within(y, lengths)), lengths)
            y = (self.fwd(y) + back) / 2
        else:
            y = self.fwd(y, seq_idx=_padding_idx(length_mask(lengths, x.shape[1])))
        return self._feed_forward(x + self.dropout(y))

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """Go on with a piece [B, t, C] of sequences that are read causally."""
        return self._feed_forward(x + self.fwd(self.norm(x), state=state))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.ffn is None else x + self.dropout(self.ffn(x))


class Audio(NamedTuple):
    """Encoded audio for a decoder layer, sequences moved to the end of their rows.

    Attributes:
        memory: [B, T, C], padding before the shorter ones.
        lengths: [B].
        seq_idx: of audio and text together [B, T + U], see :class:`zoo.layers.mamba.Mamba`; None
            without padding.
    """

    memory: Tensor
    lengths: Tensor
    seq_idx: Tensor | None


class Decoder(nn.Module):
    """Embedding, layers, norm; the output layer is the embedding."""

    def __init__(self, parts: Parts, layers: int, vocab_size: int, cross: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, parts.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(LAYERS[cross](parts) for _ in range(layers))
        self.norm = parts.norm()

    def forward(self, tokens: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
        """Tokens [B, U], encoded audio [B, T, C] and its lengths -> logits [B, U, V]."""
        seq_idx = _padding_idx(length_mask(lengths, memory.shape[1]).flip(1))
        if seq_idx is not None:
            seq_idx = F.pad(seq_idx, (0, tokens.shape[1]))
        audio = Audio(align_right(memory, lengths), lengths, seq_idx)
        y = self.embed(tokens)
        for layer in self.layers:
            y = layer(y, audio)
        return self._logits(y)

    def begin(self, memory: Tensor) -> Cache:
        """States of all layers when they have read one recording [1, T, C]."""
        return Cache([state for layer in self.layers for state in layer.begin(memory)])

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One token [B] -> logits of the next [B, V]."""
        y = self.embed(tokens)[:, None]
        states = iter(cache.layers)
        for layer in self.layers:
            y = layer.step(y, [next(states) for _ in range(layer.n_states)])
        return self._logits(y)[:, 0]

    def _logits(self, y: Tensor) -> Tensor:
        return F.linear(self.norm(y), self.embed.weight)


class DecoderLayer(nn.Module):
    """A mixer over the text alone, and nothing of the audio: the control of the others."""

    #: How many states it keeps.
    n_states = 1

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.norm1 = parts.norm()
        self.self_mixer = parts.mixer()
        self.ffn = parts.ffn()
        self.dropout = nn.Dropout(parts.dropout)

    def forward(self, y: Tensor, audio: Audio) -> Tensor:
        """[B, U, C] to the same."""
        y = y + self.dropout(self.self_mixer(self.norm1(y)))
        return self._feed_forward(self.hear(y, audio))

    def begin(self, memory: Tensor) -> list[LayerState]:
        """States when one recording [1, T, C] was read."""
        return [self.self_mixer.allocate_state(1)]

    def step(self, y: Tensor, states: list[LayerState]) -> Tensor:
        """The next token's [B, 1, C]."""
        y = y + self.self_mixer(self.norm1(y), state=states[0])
        return self._feed_forward(self.recall(y, states[1:]))

    def hear(self, y: Tensor, audio: Audio) -> Tensor:
        """Add what the audio says at each token."""
        return y

    def recall(self, y: Tensor, states: list[LayerState]) -> Tensor:
        """The same from what is remembered of it."""
        return y

    def _feed_forward(self, y: Tensor) -> Tensor:
        return y if self.ffn is None else y + self.dropout(self.ffn(y))


class PrefixLayer(DecoderLayer):
    """A second mixer reads the audio, then the text."""

    n_states = 2

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.audio_proj = nn.Linear(parts.d_model, parts.d_model)
        self.norm2 = parts.norm()
        self.cross = parts.mixer()

    def hear(self, y: Tensor, audio: Audio) -> Tensor:
        """Audio and text in one scan, of which the text's part counts."""
        both = torch.cat([self.audio_proj(audio.memory), self.norm2(y)], 1)
        return y + self.dropout(self.cross(both, seq_idx=audio.seq_idx)[:, -y.shape[1] :])

    def begin(self, memory: Tensor) -> list[LayerState]:
        """Read the audio into the state."""
        state = self.cross.allocate_state(1)
        self.read(memory, state)
        return [*super().begin(memory), state]

    def read(self, memory: Tensor, state: LayerState) -> None:
        """Read a piece of the audio [B, t, C] into the state."""
        self.cross(self.audio_proj(memory), state=state)

    def recall(self, y: Tensor, states: list[LayerState]) -> Tensor:
        """Go on where the audio ended."""
        return y + self.cross(self.norm2(y), state=states[0])


class AttentionLayer(DecoderLayer):
    """Ordinary cross-attention."""

    n_states = 2

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.norm2 = parts.norm()
        self.cross = CrossAttention(parts.d_model, parts.n_heads)

    def hear(self, y: Tensor, audio: Audio) -> Tensor:
        """Look at all of the audio."""
        state = self.cross.read(audio.memory, audio.lengths)
        return y + self.dropout(self.cross(self.norm2(y), state))

    def begin(self, memory: Tensor) -> list[LayerState]:
        """Keys and values of the audio."""
        lengths = torch.tensor([memory.shape[1]])
        return [*super().begin(memory), self.cross.read(memory, lengths)]

    def recall(self, y: Tensor, states: list[LayerState]) -> Tensor:
        """Look at them."""
        return y + self.cross(self.norm2(y), states[0])


LAYERS = {"prefix": PrefixLayer, "attention": AttentionLayer, "none": DecoderLayer}


def _padding_idx(mask: Tensor) -> Tensor | None:
    """``seq_idx`` with padding (False in [B, T]) marked; None, which is faster, if there is none.

    In a compiled graph, which cannot depend on the lengths, always the former.
    """
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask.int() - 1


@register_model(parameters=301_856)
def samba_asr_tiny(**kwargs: Any) -> SambaASR:
    """Samba-ASR for experiments, 301,856 parameters."""
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 32}
    return SambaASR(**(sizes | kwargs))


@register_model(parameters=17_100_680)
def samba_asr_s(**kwargs: Any) -> SambaASR:
    """Samba-ASR S, 17,100,680 parameters."""
    return SambaASR(**kwargs)


@register_model(parameters=68_634_504)
def samba_asr_b(**kwargs: Any) -> SambaASR:
    """Samba-ASR B, 68,634,504 parameters."""
    return SambaASR(**({"d_model": 512, "encoder_layers": 12, "decoder_layers": 6} | kwargs))


@register_model(parameters=148_955_528)
def samba_asr_l(**kwargs: Any) -> SambaASR:
    """Samba-ASR L, 148,955,528 parameters."""
    return SambaASR(**({"d_model": 768, "encoder_layers": 12, "decoder_layers": 6} | kwargs))


@register_model(parameters=448_717_704)
def samba_asr_xl(**kwargs: Any) -> SambaASR:
    """Samba-ASR XL, 448,717,704 parameters."""
    return SambaASR(**({"d_model": 1024, "encoder_layers": 24, "decoder_layers": 8} | kwargs))

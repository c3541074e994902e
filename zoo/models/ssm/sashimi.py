"""SaShiMi: S4 at several rates of sampling, for raw audio.

Karan Goel, Albert Gu, Chris Donahue, Christopher Re. It's Raw! Audio Generation with State-Space
Models. ICML 2022, arXiv 2202.09729.

A level halves the rate (by ``pool``) and widens (by ``expand``); blocks of S4 and feed-forward
layers stand in the middle and on the way up, with ``unet`` on the way down as well, each of whose
layers is then added to its mirror image. On the way up everything is shifted by one slow step, so
that no sample sees what follows. The state matrix is diag(A) - P P*, whose eigenvalues all lie in
the left half-plane, so that generation cannot blow up (section 4.2).

Training convolves over whole clips; :meth:`Sashimi.step` goes sample by sample, and a slow level
takes a step only when its group is full. Names are those of the authors' code (state-spaces/s4,
``models/sashimi/sashimi.py``, and the modular one that its checkpoints are of). Where their step of
the U-Net form fails above two layers, ours does not; where checkpoints have weight-normed pools or
a norm with one scale for all channels, both are built or merged as they load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.layers.s4 import S4Block
from zoo.layers.ssm_recurrence import SSMState
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import FeedForward, kernel_groups, rename_s4


class SashimiState:
    """Where sequences stand that are made sample by sample: a constant number of tensors.

    Attributes:
        layers: state of each S4 layer.
        groups: of each level, the samples that wait until they are ``pool`` [B, p, H].
        queues: of each level, what the next slower one said of this group [B, p, H].
        place: number of the next sample.
    """

    def __init__(
        self, layers: dict[nn.Module, SSMState], groups: list[Tensor], queues: list[Tensor]
    ) -> None:
        self.layers, self.groups, self.queues = layers, groups, queues
        self.place = 0


class Sashimi(nn.Module):
    """The backbone [B, L, d_model] -> the same.

    Args:
        d_model: width H at the full rate.
        n_layers: pairs of S4 and feed-forward layers of a level.
        pool: by how much each level is slower than the one above.
        expand: by how much it is wider.
        ff: inner width of the feed-forward layers, of the level's; 0 for none.
        bidirectional: S4 looks both ways; no steps.
        unet: layers on the way down, too.
        dropout: of the layers.
        norm: ``layer``, or ``scalar`` with one shift and one scale for all channels, as the
            published checkpoints have it.
        s4_args: of :class:`zoo.layers.s4.S4Block`.
    """

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 8,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        bidirectional: bool = False,
        unet: bool = False,
        dropout: float = 0.0,
        norm: Literal["layer", "scalar"] = "layer",
        **s4_args: Any,
    ) -> None:
        super().__init__()
        self.pool, self.unet, self.bidirectional = tuple(pool), unet, bidirectional
        widths = [d_model * expand**i for i in range(len(self.pool) + 1)]
        settings = {"d_state": 64, "bidirectional": bidirectional, "dropout": dropout, **s4_args}

        def pairs(dim: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for _ in range(n_layers):
                s4 = S4Block(dim, transposed=False, **settings)
                layers.append(Residual(dim, s4, norm, dropout))
                if ff > 0:
                    mixer = FeedForward(dim, ff, dropout)
                    layers.append(Residual(dim, mixer, norm, dropout))
            return layers

        down: list[nn.Module] = []
        for dim, p in zip(widths, self.pool, strict=False):
            down += [*(pairs(dim) if unet else []), DownPool(dim, expand, p)]
        self.d_layers = nn.ModuleList(down)
        self.c_layers = nn.ModuleList(pairs(widths[-1]))
        self.u_layers = nn.ModuleList(
            nn.ModuleList([UpPool(dim * expand, expand, p), *pairs(dim)])
            for dim, p in reversed(list(zip(widths, self.pool, strict=False)))
        )
        self.norm = nn.LayerNorm(d_model)

    def _level(self, level: int) -> tuple[int, int]:
        """Where the layers of a level begin and end among those on the way down, its pool last."""
        per_level = len(self.d_layers) // len(self.pool)
        return level * per_level, (level + 1) * per_level

    def forward(self, x: Tensor) -> Tensor:
        """All samples at once [B, L, d_model].

        Raises:
            ZooError: L is no multiple of all pools together.
        """
        whole = 1
        for p in self.pool:
            whole *= p
        if x.shape[1] % whole:
            raise ZooError(
                f"the input has {x.shape[1]} samples, expected a multiple of {whole} (pool "
                f"{list(self.pool)}): pad it"
            )
        return self.norm(self._through(x, 0, None))

    def _through(self, x: Tensor, level: int, state: SashimiState | None) -> Tensor:
        """A level and all below it, of whole sequences or, with a state, of one sample."""
        if level == len(self.pool):
            y = x
            for layer in self.c_layers:
                y = layer(y, state)
            return y + x
        start, end = self._level(level)
        *before, pool = self.d_layers[start:end]
        up, *layers = self.u_layers[len(self.pool) - 1 - level]
        skips = [x]
        for layer in before:
            skips.append(layer(skips[-1], state))
        if state is None:
            y = up(self._through(pool(skips[-1]), level + 1, None))
        else:
            y = self._slower(skips[-1], level, state)
        y = y + skips.pop()
        if not self.unet:
            skips = [y]
        for layer in layers:
            y = layer(y, state)
            if self.unet:
                y = y + skips.pop()
        return y if self.unet else y + skips.pop()

    def _slower(self, x: Tensor, level: int, state: SashimiState) -> Tensor:
        """What the level below says of this sample [B, 1, H]; it takes a step when the group of the
        last samples is full, for the next group."""
        p, place = self.pool[level], state.place
        for above in self.pool[:level]:
            place //= above
        at = place % p
        y = state.queues[level][:, at : at + 1]
        state.groups[level][:, at] = x[:, 0]
        if at == p - 1:
            pool = self.d_layers[self._level(level)[1] - 1]
            up = self.u_layers[len(self.pool) - 1 - level][0]  # type: ignore[index]
            y_slow = self._through(pool(state.groups[level]), level + 1, state)
            state.queues[level] = up.spread(y_slow)
        return y

    def begin(self, batch_size: int, mode: str | None = None) -> SashimiState:
        """The state before the first sample, for the weights as they are now.

        Args:
            batch_size: B.
            mode: how S4 takes a step: ``linear`` (its own), ``dense`` or ``diagonal``.

        Raises:
            ZooError: the layers look both ways, or the mode is unknown.
        """
        layers = {
            part: part.allocate_state(batch_size, mode)
            for part in self.modules()
            if isinstance(part, S4Block)
        }
        like = self.norm.weight
        sizes = [(part.pool, part.d_output) for part in self.modules() if isinstance(part, UpPool)]
        groups = [like.new_zeros(batch_size, p, h) for p, h in reversed(sizes)]
        return SashimiState(layers, groups, [torch.zeros_like(group) for group in groups])

    @torch.no_grad()
    def step(self, x: Tensor, state: SashimiState) -> Tensor:
        """The next sample [B, d_model]; the state moves on."""
        y = self._through(x[:, None], 0, state)
        state.place += 1
        return self.norm(y)[:, 0]

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: those of the kernels have no decay."""
        return kernel_groups(self, weight_decay)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' keys -> ours."""
        return rename_sashimi(state_dict)


class SashimiLM(nn.Module):
    """Audio of quantised samples: an embedding, the backbone, a linear head.

    Args:
        vocab_size: levels of a sample.
        d_model, args: see :class:`Sashimi`.
    """

    def __init__(self, vocab_size: int = 256, d_model: int = 64, **args: Any) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.encoder = nn.Embedding(vocab_size, d_model)
        self.model = Sashimi(d_model, **args)
        self.decoder = nn.Linear(d_model, vocab_size)

    @property
    def multiple(self) -> int:
        """Lengths must be multiples of this."""
        whole = 1
        for p in self.model.pool:
            whole *= p
        return whole

    def forward(self, tokens: Tensor) -> Tensor:
        """Samples [B, L], each behind the one that is asked for -> logits [B, L, vocab_size]."""
        return self.decoder(self.model(self.encoder(tokens)))

    def begin(self, batch_size: int, mode: str | None = None) -> SashimiState:
        """The state before the first sample, see :meth:`Sashimi.begin`."""
        return self.model.begin(batch_size, mode)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: SashimiState) -> Tensor:
        """The newest sample [B] -> logits of the next [B, vocab_size]; the state moves on."""
        return self.decoder(self.model.step(self.encoder(tokens), state))

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: those of the kernels have no decay."""
        return kernel_groups(self, weight_decay)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' keys -> ours."""
        return rename_sashimi(state_dict)


class DownPool(nn.Module):
    """``pool`` samples beside each other become one, ``expand`` times as wide."""

    def __init__(self, d_input: int, expand: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(d_input * pool, d_input * expand)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H] -> [B, L / p, e H]; features are grouped by channel, then by sample."""
        return self.linear(x.unflatten(1, (-1, self.pool)).transpose(2, 3).flatten(2))


class UpPool(nn.Module):
    """One slow sample becomes ``pool``, ``expand`` times as narrow: those of the next group, as the
    slow one has seen all of its own."""

    def __init__(self, d_input: int, expand: int, pool: int) -> None:
        super().__init__()
        self.pool, self.d_output = pool, d_input // expand
        self.linear = nn.Linear(d_input, self.d_output * pool)

    def spread(self, x: Tensor) -> Tensor:
        """[B, L, e H] -> [B, L p, H]."""
        return self.linear(x).unflatten(-1, (-1, self.pool)).transpose(2, 3).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, e H] -> [B, L p, H], a group later; the first group is zero."""
        return F.pad(self.spread(x[:, :-1]), (0, 0, self.pool, 0))


class Residual(nn.Module):
    """x + layer(norm(x))."""

    def __init__(self, d_model: int, layer: nn.Module, norm: str, dropout: float) -> None:
        super().__init__()
        if norm not in ("layer", "scalar"):
            raise ZooError(f"norm is {norm!r}, expected layer or scalar")
        self.layer = layer
        self.norm = nn.LayerNorm(d_model) if norm == "layer" else ScalarNorm()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: SashimiState | None = None) -> Tensor:
        """[B, L, H] to the same."""
        y = self.norm(x)
        if state is None or not isinstance(self.layer, S4Block):
            return x + self.dropout(self.layer(y))
        return x + self.dropout(self.layer(y, state=state.layers[self.layer]))


class ScalarNorm(nn.Module):
    """(x - mean + m) s / deviation over the channels: one shift and one scale for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.s = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H] to the same."""
        std, mean = torch.std_mean(x, dim=-1, unbiased=False, keepdim=True)
        return (x - mean + self.m) * (self.s / std)


def rename_sashimi(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the standalone or the modular code, of any version of S4, as ours: convolutions of
    width 1 become linear maps, weight norms are multiplied out."""
    state = dict(state_dict)
    for key in [key for key in state if key.endswith(".weight_g")]:
        stem = key.removesuffix("_g")
        g, v = state.pop(key), state.pop(f"{stem}_v")
        norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))
        state[stem] = g.view_as(norm) * v / norm
    renamed = {}
    for key, value in rename_s4(state).items():
        name = key.replace(".output_transform.", ".").replace(".norm.norm.", ".norm.")
        is_linear = ".linear." in name or ".ff." in name or ".output_linear." in name
        if name.endswith(".weight") and is_linear and value.dim() == 3:
            value = value.squeeze(-1)
        renamed[name] = value
    return renamed


@register_model(parameters=4_731_136)
def sashimi_backbone(**overrides: Any) -> Sashimi:
    """SaShiMi's backbone, with GLU behind S4 (the standalone code's)."""
    return Sashimi(**{"n_ssm": 1, **overrides})


@register_model(parameters=7_135_488)
def sashimi_diffusion(**overrides: Any) -> Sashimi:
    """The U-Net backbone that looks both ways, for diffusion models of audio."""
    return Sashimi(**{"unet": True, "bidirectional": True, **overrides})


@register_model(parameters=4_072_448)
def sashimi(**overrides: Any) -> SashimiLM:
    """SaShiMi as in the paper: SC09, YouTubeMix and Beethoven."""
    return SashimiLM(**{"n_ssm": 1, "final_act": "id", **overrides})


@register_model(parameters=6_840_832)
def sashimi_unet(**overrides: Any) -> SashimiLM:
    """The U-Net form, with GLU: the better likelihood on SC09."""
    return SashimiLM(**{"unet": True, **overrides})

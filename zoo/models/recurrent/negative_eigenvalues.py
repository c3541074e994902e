"""Negative eigenvalues: linear recurrences that can track states (arXiv 2411.12537).

The eigenvalues of a linear recurrence's steps lie in (0, 1) in Mamba and DeltaNet, and such a model
cannot even count modulo 2. The paper widens the range to (-1, 1) in one line of each: a Mamba decay
becomes 2 exp(dt A) - 1, and DeltaNet's beta becomes 2 sigmoid(.), so that a step may reflect.

Here are DeltaNet, as flash-linear-attention has it with the paper's settings, and its language
model; ``eig_range="pm1"`` does the same in :class:`zoo.layers.mamba.Mamba` and
:class:`zoo.layers.mamba2.Mamba2`, in single steps too, which the authors' code leaves out. The
range is part of the configuration, and a state dict of a model with the wide range says so
(``negative_eigenvalues``): neither loads into the other's model. The authors' own files do not say
it; they are taken for what the model was built as, with a warning where that is the wide range.

Logits and gradients agree with the authors' DeltaNetForCausalLM and selective scan.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.cache import RecurrentState
from zoo.layers.norms import RMSNormGated
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import make_short_conv, short_conv
from zoo.layers.ssm_init import say_range
from zoo.models.language.mamba import MambaConfig, MambaLM, build
from zoo.models.registry import register_model
from zoo.ops import delta_rule
from zoo.ops.selective_scan import is_negative

ACTIVATIONS = {
    "silu": lambda x: x,  # the convolution has applied it
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "identity": lambda x: x,
}


class DeltaNet(nn.Module):
    r"""DeltaNet's mixer (arXiv 2406.06484), with the parameters of flash-linear-attention.

    .. math::
        S_t = (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \qquad
        o_t = S_t^\top q_t / \sqrt{d_k}

    Args:
        d_model: width of the tokens.
        num_heads: H.
        expand_k, expand_v: keys and values are so many times as wide as the tokens.
        use_short_conv, conv_size: causal convolutions of queries, keys and values.
        use_beta: beta is :math:`s\,\sigma(p\,W_b x) + b`; else 1.
        use_gate: the norm of a head's output is multiplied with silu of a projection.
        qk_activation: "silu", "relu", "elu" (plus 1) or "identity", of queries and keys.
        qk_norm: "l2" or "sum", of queries and keys of a head.
        eig_range: of a step's eigenvalues: "01", or "pm1" for (-1, 1).
        sigmoid_scale, sigmoid_shift, sigmoid_pre_scale: s, b and p, the authors' way to say it: s
            is 1 or 2 by ``eig_range`` unless it is given.
        norm_eps: of the norm of a head's output.

    Raises:
        ZooError: if the heads do not divide the widths, or a choice is unknown.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        use_short_conv: bool = True,
        conv_size: int = 4,
        use_beta: bool = True,
        use_gate: bool = False,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        eig_range: str = "01",
        sigmoid_scale: float | None = None,
        sigmoid_shift: float = 0.0,
        sigmoid_pre_scale: float = 1.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("qk_activation", qk_activation, ACTIVATIONS)
        check_choice("qk_norm", qk_norm, ("l2", "sum"))
        keys, values = int(expand_k * d_model), int(expand_v * d_model)
        if keys % num_heads or values % num_heads:
            raise ZooError(
                f"DeltaNet: {num_heads} heads do not divide {keys} keys, {values} values"
            )
        self.num_heads, self.sizes = num_heads, (keys, keys, values)
        self.qk_activation, self.qk_norm = qk_activation, qk_norm
        negative = is_negative("DeltaNet", eig_range)
        if sigmoid_scale is None:
            sigmoid_scale = 2.0 if negative else 1.0
        self.sigmoid = (sigmoid_scale, sigmoid_shift, sigmoid_pre_scale)

        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.b_proj = nn.Linear(d_model, num_heads, bias=False) if use_beta else None
        self.conv_size = conv_size if use_short_conv else 0
        if use_short_conv:
            self.q_conv1d = make_short_conv(keys, conv_size, bias=False)
            self.k_conv1d = make_short_conv(keys, conv_size, bias=False)
            self.v_conv1d = make_short_conv(values, conv_size, bias=False)
        width = values // num_heads
        self.g_proj = nn.Linear(d_model, values, bias=False) if use_gate else None
        self.o_norm = (
            RMSNormGated(width, norm_eps, norm_before_gate=True)
            if use_gate
            else nn.RMSNorm(width, norm_eps)
        )
        self.o_proj = nn.Linear(values, d_model, bias=False)
        say_range(self, use_beta and sigmoid_scale + sigmoid_shift > 1)
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to the same.

        Args:
            x: tokens.
            state: of :meth:`allocate_state`: x goes on where it stands, and its tensors are
                replaced by those after x.
            seq_idx: is refused: the rule cannot start anew inside of a sequence.
        """
        if seq_idx is not None:
            raise ZooError("DeltaNet cannot keep documents apart: seq_idx cannot be given")
        q, k, v = self._convolved(x, state)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))  # [B, L, H, .]
        q, k = (self._normed(ACTIVATIONS[self.qk_activation](t)) for t in (q, k))
        if self.b_proj is None:
            beta = torch.ones_like(q[..., 0])
        else:
            scale, shift, inside = self.sigmoid
            beta = scale * (inside * at_least_fp32(self.b_proj(x))).sigmoid() + shift
        o, last = delta_rule(
            q, k, v, beta, initial_state=None if state is None else state.ssm,
            return_final_state=True,
        )  # fmt: skip
        if state is not None:
            state.ssm = last
        if self.g_proj is None:
            o = self.o_norm(o)
        else:
            o = self.o_norm(o, self.g_proj(x).unflatten(-1, (self.num_heads, -1)))
        return self.o_proj(o.flatten(2))

    def _convolved(self, x: Tensor, state: RecurrentState | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if not self.conv_size:
            return q, k, F.silu(v)
        activation = "silu" if self.qk_activation == "silu" else None
        tails = (None,) * 3 if state is None else state.conv.split(self.sizes, dim=1)
        given = zip(
            (q, k, v), (self.q_conv1d, self.k_conv1d, self.v_conv1d),
            (activation, activation, "silu"), tails, strict=True,
        )  # fmt: skip
        found, kept = [], []
        for t, conv, act, tail in given:
            part = None if tail is None else RecurrentState(tail.contiguous(), tail)
            found.append(short_conv(t, conv, act, state=part))
            kept.append(part)
        if state is not None:
            state.conv = torch.cat([part.conv for part in kept if part is not None], dim=1)
        return found[0], found[1], found[2]

    def _normed(self, x: Tensor) -> Tensor:
        if self.qk_norm == "sum":
            return x / x.sum(-1, keepdim=True)
        wide = at_least_fp32(x)
        return (wide * (wide.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)

    def allocate_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token."""
        weight, (_, keys, values) = self.o_proj.weight, self.sizes
        H = self.num_heads
        return RecurrentState(
            weight.new_zeros(batch_size, sum(self.sizes), self.conv_size),
            at_least_fp32(weight).new_zeros(batch_size, H, keys // H, values // H),
        )


class DeltaNetConfig(MambaConfig):
    """Settings of :class:`DeltaNetLM`: those of Mamba's models, with MLPs of any width."""

    mlp_multiple_of: ClassVar[int] = 1


class DeltaNetLM(MambaLM):
    """A language model of DeltaNet layers, each with a gated MLP.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_heads: of the model.
        hidden_ratio, intermediate_size: of the MLPs, whose width is 2/3 hidden_ratio hidden_size,
            rounded up to a multiple of 256, where it is not given.
        norm_eps: of all norms.
        tie_word_embeddings: the head is the embedding.
        kwargs: of :class:`DeltaNet`.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        num_heads: int = 16,
        hidden_ratio: float = 4,
        intermediate_size: int | None = None,
        norm_eps: float = 1e-6,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        width = int(hidden_size * hidden_ratio * 2 / 3)
        width = -(-width // 256) * 256 if intermediate_size is None else intermediate_size
        super().__init__(
            DeltaNetConfig(
                d_model=hidden_size,
                d_intermediate=width,
                n_layer=num_hidden_layers,
                vocab_size=vocab_size,
                ssm_cfg={
                    "layer": "DeltaNet", "num_heads": num_heads, "norm_eps": norm_eps, **kwargs
                },
                pad_vocab_size_multiple=1,
                tie_embeddings=tie_word_embeddings,
                norm_epsilon=norm_eps,
            )
        )  # fmt: skip

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of flash-linear-attention, in the authors' tree or of today, to ours."""
        if "model.embeddings.weight" not in state_dict:
            return dict(state_dict)
        found: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            if name.endswith(".mlp.up_proj.weight"):
                continue  # taken with the gate
            if name.endswith(".mlp.gate_proj.weight"):
                up = state_dict.get(name.replace("gate_proj", "up_proj"))
                gate, up = tensor.chunk(2) if up is None else (tensor, up)
                tensor = torch.cat([up, gate])
            for theirs, ours in _NAMES.items():
                name = name.replace(theirs, ours)
            found[name] = tensor
        wide = {n: t for n, t in self.named_buffers() if n.endswith("negative_eigenvalues")}
        if wide:  # their files do not say it
            warnings.warn(
                "the weights do not say the range of their eigenvalues; taken as (-1, 1), as the "
                "model has it",
                stacklevel=2,
            )
        return found | wide


_NAMES = {
    "model.embeddings.": "backbone.embedding.",
    "model.layers.": "backbone.layers.",
    "model.norm.": "backbone.norm_f.",
    ".attn_norm.": ".norm.",
    ".attn.norm.": ".norm.",
    ".mlp_norm.": ".norm2.",
    ".mlp.norm.": ".norm2.",
    ".attn.": ".mixer.",
    ".mlp.gate_proj.": ".mlp.fc1.",
    ".mlp.down_proj.": ".mlp.fc2.",
}


@register_model(parameters=529_856)
def negative_eigenvalues_deltanet(**overrides: Any) -> DeltaNetLM:
    """The DeltaNet of the paper's synthetic tasks, eigenvalues in (-1, 1); parity's vocabulary."""
    settings = dict(vocab_size=3, hidden_size=128, num_hidden_layers=2, num_heads=4)
    return DeltaNetLM(**(settings | dict(eig_range="pm1") | overrides))


@register_model(parameters=232_192)
def negative_eigenvalues_mamba(**overrides: Any) -> MambaLM:
    """The Mamba of the paper's synthetic tasks, eigenvalues in (-1, 1); parity's vocabulary."""
    mixer = {"layer": "Mamba1", "d_state": 16, "d_conv": 1, "expand": 2, "eig_range": "pm1"}
    settings = dict(d_model=128, n_layer=2, vocab_size=3, pad_vocab_size_multiple=1, ssm_cfg=mixer)
    return build(settings, overrides)


@register_model(parameters=1_365_677_056)
def deltanet_1_3b(**overrides: Any) -> DeltaNetLM:
    """DeltaNet of flash-linear-attention's default size, eigenvalues in (0, 1)."""
    return DeltaNetLM(**overrides)

"""H3 language models (Fu et al., "Hungry Hungry Hippos", ICLR 2023, arXiv 2212.14052).

The layer, its kernels and its states agree with the authors' code on random weights (HazyResearch/
H3, commit 5c4d06b). The paper speaks of two attention layers; the released files have one (125M) to
three, at the places below. The authors multiply C by B when they draw it and once more when they
use it, which is kept: B is 1 for the initialisation that all released models have. What differs:
heads of more than one channel generate, too, and a prompt may come in several parts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoints import load_pretrained, save_state_dict
from zoo.errors import ZooError, check_choice
from zoo.layers.cache import Cache, LayerState
from zoo.layers.causal_attention import SelfAttention
from zoo.layers.precision import at_least_fp32
from zoo.models.language.mamba import CausalLMOutput
from zoo.models.registry import register_model
from zoo.models.ssm._h3_kernels import DiagonalKernel, H3State, Kernel, ShiftKernel
from zoo.ops import fft_conv, state_passing_conv

#: Steps of a part in which a prompt passes through the diagonal SSM; longer ones hand on its state.
PART = 8192


class H3(nn.Module):
    """The layer (section 3.1): a shift SSM of the keys, a diagonal SSM of keys times values, and
    two gates.

    Args:
        d_model: d, width of the tokens.
        d_state: N of both SSMs.
        l_max: taps of both kernels; None for as many as the sequence has.
        head_dim: P; a head's state sees all products of its P keys and P values.
        dropout, lr, mode: of the authors' configurations; without effect, but for modes other than
            "diag", which are refused.
        kernel_args: of :class:`DiagonalKernel`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        l_max: int | None = None,
        head_dim: int = 1,
        dropout: float = 0.0,
        lr: Any = None,
        mode: str = "diag",
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        check_choice("H3: mode", mode, ("diag",))
        if d_model % head_dim:
            raise ZooError(f"H3: head_dim {head_dim} does not divide the width {d_model}")
        self.head_dim, self.l_max = head_dim, l_max
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.ssm_k_kernel = Kernel(ShiftKernel(d_model, d_state))
        self.ssm_k_D = nn.Parameter(torch.randn(d_model))
        heads = d_model // head_dim
        self.kernel = Kernel(DiagonalKernel(heads, d_state, **kernel_args))
        self.D = nn.Parameter(torch.randn(heads))
        self.output_linear = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor, state: H3State | None = None) -> Tensor:
        """[B, L, d] to the same; ``state`` of :meth:`allocate_state` goes on and is replaced."""
        q, k, v = (f(u).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        y = self._whole(q, k, v) if state is None else self._part(q, k, v, state)
        return self.output_linear(y.transpose(1, 2).to(u.dtype))

    @property
    def _shift(self) -> ShiftKernel:
        kernel = self.ssm_k_kernel.kernel
        assert isinstance(kernel, ShiftKernel)
        return kernel

    @property
    def _diagonal(self) -> DiagonalKernel:
        kernel = self.kernel.kernel
        assert isinstance(kernel, DiagonalKernel)
        return kernel

    def _whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[-1]
        kernel = self._diagonal(min(length, self.l_max or length))  # [H, L]
        k = fft_conv(k, self._shift()[:, : self.l_max], self.ssm_k_D)
        if self.head_dim == 1:
            return fft_conv(k, kernel, self.D, gate_before=v, gate_after=q)
        return self._read(q, fft_conv(self._products(k, v), kernel, self.D))

    def _part(self, q: Tensor, k: Tensor, v: Tensor, state: H3State) -> Tensor:
        if self.l_max is not None:
            raise ZooError("H3: kernels that are cut to l_max taps have no state: set l_max: null")
        k = at_least_fp32(k)
        shifted, state.shift = self._shift.part(k, state.shift)
        kv = self._products(shifted + at_least_fp32(self.ssm_k_D)[:, None] * k, at_least_fp32(v))
        log_A, B, C = self._diagonal.discrete()
        if kv.shape[-1] == 1:
            state.ssm = log_A.exp() * state.ssm + B * kv
            y = (2 * (C * state.ssm).sum(-1).real)[..., None] + self.D[:, None] * kv
        else:
            y, last = state_passing_conv(
                kv.flatten(0, 2), log_A, B, C, at_least_fp32(self.D),
                initial_state=state.ssm.flatten(0, 2), chunk=PART,
            )  # fmt: skip
            y, state.ssm = y.view(kv.shape), last.view(state.ssm.shape)
        return self._read(at_least_fp32(q), y)

    def _products(self, k: Tensor, v: Tensor) -> Tensor:
        """[B, P, P, H, L] of all pairs of a head's keys and values; channel c of d is number
        c % P of head c // P."""
        k, v = (x.unflatten(1, (-1, self.head_dim)).movedim(2, 1) for x in (k, v))
        return k[:, :, None] * v[:, None]

    def _read(self, q: Tensor, y: Tensor) -> Tensor:
        """What the queries make of [B, P, P, H, L]: a sum over a head's keys, [B, d, L]."""
        q = q.unflatten(1, (-1, self.head_dim)).movedim(2, 1)
        return (y * q[:, :, None]).sum(1).flatten(1, 2)  # value by value, as the authors have it

    def allocate_state(self, batch_size: int) -> H3State:
        """The states before the first token."""
        shift, A = self._shift.B, self._diagonal.inv_A_real
        heads = self.D.shape[0]
        dtype = torch.promote_types(A.dtype, torch.complex64)
        return H3State(
            at_least_fp32(shift.new_zeros(batch_size, *shift.shape)),
            A.new_zeros(batch_size, self.head_dim, self.head_dim, heads, A.shape[1], dtype=dtype),
        )


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_inner)
        self.fc2 = nn.Linear(d_inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Mixer and MLP, each after a norm and beside the residual stream."""

    def __init__(self, config: H3Config, index: int, mixer: Callable[..., nn.Module]) -> None:
        super().__init__()
        d_model, eps = config.d_model, config.layer_norm_epsilon
        self.mixer: Any
        if index in config.attn_layer_idx:
            attention = {"causal": True, **config.attn_cfg}
            attention.pop("dropout", None)
            self.mixer = SelfAttention(d_model, **attention)
        else:
            self.mixer = mixer(d_model, **config.ssm_cfg)
        self.mlp = Mlp(d_model, config.d_inner or 4 * d_model)
        self.norm1, self.norm2 = (nn.LayerNorm(d_model, eps=eps) for _ in range(2))
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor, state: LayerState | None = None) -> Tensor:
        """[B, L, d_model] to the same."""
        x = x + self.dropout(self.mixer(self.norm1(x), state=state))
        return x + self.dropout(self.mlp(self.norm2(x)))


@dataclass
class H3Config:
    """Settings of :class:`H3LM`, under the authors' names.

    Args:
        d_model: width of the tokens.
        n_layer: blocks.
        d_inner: width of the MLPs; None for four times ``d_model``.
        vocab_size: tokens of the tokenizer.
        ssm_cfg: arguments of :class:`H3`.
        attn_layer_idx: blocks that have attention instead.
        attn_cfg: arguments of :class:`zoo.layers.causal_attention.SelfAttention`; ``dropout`` of
            the scores has no effect.
        resid_dropout, embed_dropout: before an addition, and of the embeddings.
        layer_norm_epsilon: of the norms.
        pad_vocab_size_multiple: the embedding has a multiple of so many rows.
    """

    d_model: int = 768
    n_layer: int = 12
    d_inner: int | None = None
    vocab_size: int = 50257
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    resid_dropout: float = 0.0
    embed_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-5
    pad_vocab_size_multiple: int = 8

    @property
    def hidden_size(self) -> int:
        """What transformers calls ``d_model``."""
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        """What transformers calls ``n_layer``."""
        return self.n_layer


class Embeddings(nn.Module):
    """Of the words; there are none of positions."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, d_model)


class Backbone(nn.Module):
    """Embedding, blocks, norm."""

    def __init__(self, config: H3Config, vocab_size: int, mixer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, i, mixer) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.embed_dropout)

    def forward(
        self, x: Tensor, cache: Cache | None = None, streams: list[Tensor] | None = None
    ) -> Tensor:
        """Embeddings [B, L, d_model] to normed states; see :meth:`H3LM.forward`."""
        x = self.dropout(x)
        for index, block in enumerate(self.layers):
            if streams is not None:
                streams.append(x)
            x = block(x, None if cache is None else cache.layers[index])
        x = self.ln_f(x)
        if streams is not None:
            streams.append(x)
        return x


class H3LM(nn.Module):
    """A causal language model of H3 layers, or of them and attention; no positions.

    Args:
        config: its settings; or give them as keyword arguments.

    Attributes:
        mixer_class: layers that are not attention.
    """

    mixer_class: ClassVar[Callable[..., nn.Module]] = H3

    def __init__(self, config: H3Config | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = config or H3Config(**settings)
        multiple = config.pad_vocab_size_multiple
        vocab_size = -(-config.vocab_size // multiple) * multiple
        self.backbone = Backbone(config, vocab_size, self.mixer_class)
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False)
        self._initialise()
        self.lm_head.weight = self.backbone.embeddings.word_embeddings.weight

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith(("out_proj", "fc2"))
                depth = math.sqrt(2 * self.config.n_layer) if last else 1.0
                nn.init.normal_(module.weight, std=0.02 / depth)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    nn.init.zeros_(bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """The causal-LM call of transformers.

        Args:
            input_ids: int64 ``[B, L]``.
            inputs_embeds: ``[B, L, d_model]`` instead.
            cache: states to go on from; its tensors are replaced. Many tokens go through the
                convolution, a single one through a step of constant cost.
            use_cache: return the states; None given, they begin empty.
            logits_to_keep: logits of the last so many positions only; 0: of all.
            output_hidden_states: return the hidden states.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ZooError("expected one of input_ids and inputs_embeds")
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = self.allocate_cache(x.shape[0])
        streams: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.backbone(x, cache, streams)
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        return CausalLMOutput(logits, cache, None if streams is None else tuple(streams))

    def allocate_cache(self, batch_size: int) -> Cache:
        """The states before the first token."""
        return Cache([block.mixer.allocate_state(batch_size) for block in self.backbone.layers])

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.backbone.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def no_weight_decay(self) -> set[str]:
        """Parameters of the SSMs; of the shift only B, as the authors have it."""
        kept = re.compile(r"kernel\.kernel\.(B|log_dt|inv_A_real|A_imag)$")
        return {name for name, _ in self.named_parameters() if kept.search(name)}

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of the released files, of all ages, to ours, which are those of the last.

        Older files have the norms after the additions: there, ``ln_0`` is the first block's first.
        A Lightning file's keys begin with ``model.``.
        """
        if any(name.startswith("model.") for name in state_dict):
            state_dict = {
                name.removeprefix("model."): tensor
                for name, tensor in state_dict.items()
                if name.startswith("model.")
            }
        found = {}
        for name, tensor in state_dict.items():
            name = re.sub(r"^s4seq\.encoder\.", "backbone.", name)
            name = re.sub(r"^embedding\.", "backbone.embeddings.word_embeddings.", name)
            name = re.sub(r"^backbone\.norm\.", "backbone.ln_0.", name)
            found[name.replace(".mixer.Wqkv.", ".mixer.in_proj.")] = tensor
        if "backbone.ln_0.weight" in found:
            found = {_norm_before(name, self.config.n_layer): t for name, t in found.items()}
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, of ``model_type`` h3, and the weights beside it."""
        folder = Path(folder)
        save_state_dict(self.state_dict(), folder / "model.safetensors")
        config = {"model_type": "h3", **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, config: Mapping[str, Any], dtype: torch.dtype | None = None
    ) -> H3LM:
        """Build the model that a ``config.json`` describes, and load its weights.

        Args:
            source: see :func:`zoo.load_pretrained`.
            config: content of the file.
            dtype: of the weights; float32 by default.
        """
        settings = {name: config[name] for name in H3Config.__dataclass_fields__ if name in config}
        with torch.device("meta"):
            model = cls(H3Config(**settings))
        load_pretrained(model, source)
        return model if dtype is None else model.to(dtype)


def _norm_before(name: str, layers: int) -> str:
    """The norm after an addition is the one before the next mixer or MLP."""
    if name.startswith("backbone.ln_0."):
        return name.replace("backbone.ln_0.", "backbone.layers.0.norm1.")
    match = re.match(r"(backbone\.layers\.)(\d+)\.norm([12])(\..*)", name)
    if match is None:
        return name
    start, index, number, end = match[1], int(match[2]), match[3], match[4]
    if number == "1":
        return f"{start}{index}.norm2{end}"
    return f"backbone.ln_f{end}" if index == layers - 1 else f"{start}{index + 1}.norm1{end}"


def _build(settings: dict[str, Any], overrides: dict[str, Any]) -> H3LM:
    return H3LM(H3Config(**(settings | overrides)))


@register_model(source="hf://danfu09/H3-125M/model.pt", parameters=126_387_456)
def h3_125m(**overrides: Any) -> H3LM:
    """H3 of 126 M parameters, trained on the Pile: 12 layers, width 768, one of attention."""
    settings = dict(d_model=768, n_layer=12, attn_layer_idx=[6], attn_cfg=dict(num_heads=12))
    return _build(settings, overrides)


@register_model(source="hf://danfu09/H3-355M/model.pt", parameters=361_058_304)
def h3_355m(**overrides: Any) -> H3LM:
    """H3 of 361 M parameters, trained on the Pile: 24 layers, width 1024, two of attention."""
    settings = dict(d_model=1024, n_layer=24, attn_layer_idx=[8, 16], attn_cfg=dict(num_heads=16))
    return _build(settings, overrides)


@register_model(source="hf://danfu09/H3-1.3B/model.pt", parameters=1_326_096_384)
def h3_1_3b(**overrides: Any) -> H3LM:
    """H3 of 1.33 G parameters, trained on the Pile: 24 layers, width 2048, two of attention."""
    settings = dict(d_model=2048, n_layer=24, attn_layer_idx=[8, 16], attn_cfg=dict(num_heads=16))
    return _build(settings, overrides)


@register_model(source="hf://danfu09/H3-2.7B/model-3attn.pt", parameters=2_670_307_840)
def h3_2_7b(**overrides: Any) -> H3LM:
    """H3 of 2.67 G parameters, trained on the Pile: 32 layers, width 2560, three of attention."""
    layers = [8, 16, 24]
    settings = dict(d_model=2560, n_layer=32, attn_layer_idx=layers, attn_cfg=dict(num_heads=20))
    return _build(settings, overrides)


@register_model(source="hf://danfu09/H3-2.7B/model-2attn-rotary.pt", parameters=2_671_134_720)
def h3_2_7b_rotary(**overrides: Any) -> H3LM:
    """H3 of 2.67 G parameters, trained on the Pile: two of 32 layers are rotary attention."""
    attention = dict(num_heads=20, rotary_emb_dim=64)
    settings = dict(d_model=2560, n_layer=32, attn_layer_idx=[10, 21], attn_cfg=attention)
    return _build(settings, overrides)

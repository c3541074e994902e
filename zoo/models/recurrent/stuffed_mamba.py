"""Stuffed Mamba (arXiv 2410.07145): where a Mamba-2 language model breaks beyond the lengths of its
training, and what keeps it from breaking without any training.

A state that is larger than the training texts need never learns to forget, and on longer texts
overflows ("state collapse"). :func:`mitigated` gives a trained model one of the paper's
mitigations; :func:`position_losses`, :func:`state_norms` and :func:`retrieved` measure it.

The authors published an analysis (thunlp/stuffed-mamba, commit ccf0bd7) and no code of the
mitigations. Three things are chosen here: all heads of all layers are treated alike, thresholds of
the state's norm are of one head each, and the sliding window is summed over its inputs, which is
the difference of two states without the cancellation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import RecurrentState
from zoo.layers.mamba2 import Mamba2
from zoo.layers.precision import at_least_fp32
from zoo.models.language.mamba import MambaLM, build
from zoo.models.registry import register_model
from zoo.ops import ssd


class MitigatedMamba2(Mamba2):
    r"""A Mamba-2 mixer whose memory is kept from overflowing. It has no weights of its own.

    With :math:`h_t = \alpha_t h_{t-1} + \Delta_t x_t B_t^\top`, one of three:

    * forget more, remember less: :math:`\alpha_t^{m_a}` and :math:`m_b B_t` in place of
      :math:`\alpha_t` and :math:`B_t`;
    * state normalisation: :math:`h_t` is scaled down to the norm p where it is longer, in each
      head, after each step. One step follows the other, in training and reading too;
    * a sliding window: :math:`h_t - (\prod_{i=t-r+1}^t \alpha_i)\, h_{t-r}`, the state of a scan
      that began r steps ago with the same inputs. The convolution still looks behind the window,
      and a second layer's inputs come from a first with a window of its own.

    Args:
        d_model: width of the tokens.
        a_mult: m_a, 1 or more.
        b_mult: m_b, above 0 and at most 1.
        max_norm: p, the Frobenius norm of a head's state ``[P, N]``. It fills the buffer
            ``max_norm`` ``[H]``, which is a part of the state dict and may differ among heads.
        window: r, 1 or more steps.
        settings: of :class:`zoo.layers.mamba2.Mamba2`.

    Raises:
        ZooError: a number is out of its range, or two mitigations are given at once.
    """

    max_norm: Tensor | None

    def __init__(
        self,
        d_model: int,
        a_mult: float = 1.0,
        b_mult: float = 1.0,
        max_norm: float | None = None,
        window: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(d_model, **settings)
        check_mitigation(a_mult, b_mult, max_norm, window)
        if self.eig_range != "01":
            raise ZooError(
                "MitigatedMamba2: eig_range is 'pm1', expected '01': powers and sums of logarithms "
                "need positive factors"
            )
        self.a_mult, self.b_mult, self.window = a_mult, b_mult, window
        limit = None if max_norm is None else torch.full((self.nheads,), float(max_norm))
        self.register_buffer("max_norm", limit)

    def rate(self) -> Tensor:
        """A m_a [H]."""
        return super().rate() * self.a_mult

    def allocate_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token; with a window its last r - 1 inputs and step sizes in
        place of the scan's state, ``[B, r - 1, D + H]``, zero before the first."""
        state = super().allocate_state(batch_size)
        if self.window is not None:
            size = (batch_size, self.window - 1, self.d_xbc + self.nheads)
            state.ssm = state.conv.new_zeros(size)
        return state

    def _heads(self, xBC: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x, B, C, gate = super()._heads(xBC, z)
        return x, B * self.b_mult, C, gate

    def _scan(
        self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState | None,
        seq_idx: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if self.max_norm is None and self.window is None:
            self._check_state(state, 4)
            return super()._scan(xBC, dt, z, state, seq_idx)
        if seq_idx is not None:
            raise ZooError(
                "MitigatedMamba2: seq_idx (documents packed into one row) goes with a_mult and "
                "b_mult alone: give one document a row where max_norm or window is set"
            )
        if self.window is not None:
            return self._windowed(xBC, dt, z, state, self.window)
        return self._clipped(xBC, dt, z, state)

    def _step(self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState) -> Tensor:
        if self.max_norm is None and self.window is None:
            self._check_state(state, 4)
            return super()._step(xBC, dt, z, state)
        return self._scan(xBC, dt, z, state, None)

    def _clipped(self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState | None) -> Tensor:
        self._check_state(state, 4)
        x, B, C, gate = self._in_full(xBC, z)
        dt = self._step_sizes(dt)
        B, C = (t.repeat_interleave(self.nheads // self.ngroups, 2) for t in (B, C))  # [B, L, H, N]
        decay, added = (dt * self.rate()).exp(), x * dt[..., None]
        if state is None:
            h = added.new_zeros(x.shape[0], self.nheads, self.headdim, self.d_state)
        else:
            h = state.ssm.to(added.dtype)
        assert self.max_norm is not None
        limit, outputs = self.max_norm.to(h), []
        for t in range(x.shape[1]):
            h = decay[:, t, :, None, None] * h + added[:, t, ..., None] * B[:, t, :, None]
            norm = torch.linalg.vector_norm(h, dim=(2, 3))  # [B, H]
            h = h * (limit / norm.maximum(limit))[..., None, None]
            outputs.append(torch.einsum("bhpn,bhn->bhp", h, C[:, t]))
        if state is not None:
            state.ssm = h
        return self._out(torch.stack(outputs, 1), x, gate, xBC)

    def _windowed(
        self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState | None, r: int
    ) -> Tensor:
        self._check_state(state, 3)
        length, before = xBC.shape[1], 0
        if state is not None:
            before = r - 1
            inputs = torch.cat([state.ssm.to(xBC.dtype), torch.cat([xBC, dt], -1)], 1)
            state.ssm = inputs[:, length:]
            xBC, dt = inputs.split([self.d_xbc, self.nheads], -1)
        x, B, C, gate = self._in_full(xBC, z)
        y = self._window_sums(x, self._step_sizes(dt), B, C, r)
        return self._out(y[:, before:], x[:, before:], gate, xBC)

    def _window_sums(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, r: int) -> Tensor:
        """C_t times the state of the last r steps, [B, L, H, P], in blocks of r steps: what a block
        has added until t, all that the block before has, less what that had until t - r."""
        batch, length = x.shape[:2]
        pad = -length % r
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, r)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, pad)).unflatten(1, (-1, r))  # [B, K, r, H]
        rate = self.rate().to(dt)

        def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            x, dt, B, C = (t.flatten(0, 1) for t in tensors)
            y, last = ssd(x, dt, rate, B, C, self.chunk_size, return_final_states=True)
            return y.unflatten(0, (batch, -1)), last.unflatten(0, (batch, -1))

        y, last = scan(x, dt, B, C)  # [B, K, r, H, P] and [B, K, H, P, N]
        if x.shape[1] > 1:
            gone, _ = scan(x[:, :-1], dt[:, :-1], B[:, :-1], C[:, 1:])
            total = (dt * rate).cumsum(2)
            into = total[:, 1:]  # log of the decay from the border to step t
            since = into + total[:, :-1, -1:] - total[:, :-1]  # and from step t - r
            heads = C[:, 1:].repeat_interleave(self.nheads // self.ngroups, 3)
            read = torch.einsum("bkthn,bkhpn->bkthp", heads, last[:, :-1])
            older = read * into.exp()[..., None] - gone * since.exp()[..., None]
            y = torch.cat([y[:, :1], y[:, 1:] + older], 1)
        return y.flatten(1, 2)[:, :length]

    def _in_full(self, xBC: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x, B, C, gate = self._heads(xBC, z)
        return at_least_fp32(x), at_least_fp32(B), at_least_fp32(C), gate

    def _step_sizes(self, dt: Tensor) -> Tensor:
        return F.softplus(at_least_fp32(dt) + self.dt_bias).clamp(*self.dt_limit)

    def _out(self, y: Tensor, x: Tensor, gate: Tensor | None, like: Tensor) -> Tensor:
        y = y + x * self._skip().view(self.nheads, -1)
        y = y if gate is None else y * F.silu(gate)
        return y.flatten(2).to(like.dtype)

    def _check_state(self, state: RecurrentState | None, dims: int) -> None:
        if state is None:
            return
        wanted = (self.nheads, self.headdim, self.d_state)
        if self.window is not None:
            wanted = (self.window - 1, self.d_xbc + self.nheads)
        if state.ssm.dim() != dims or state.ssm.shape[1:] != wanted:
            raise ZooError(
                f"MitigatedMamba2: the state is {tuple(state.ssm.shape)}, expected [B, "
                f"{', '.join(map(str, wanted))}]: a cache goes on only with the mitigation that it "
                "was begun with, see allocate_cache"
            )


def check_mitigation(
    a_mult: float, b_mult: float, max_norm: float | None, window: int | None
) -> None:
    """Refuse numbers out of range, and two mitigations at once; see :class:`MitigatedMamba2`.

    Raises:
        ZooError: with what was given and what was expected.
    """
    for name, value, right, expected in (
        ("a_mult", a_mult, 1 <= a_mult < math.inf, "1 or more, the power of the decay"),
        ("b_mult", b_mult, 0 < b_mult <= 1, "above 0 and at most 1"),
        ("max_norm", max_norm, max_norm is None or 0 < max_norm < math.inf, "above 0"),
        (
            "window",
            window,
            window is None or (isinstance(window, int) and window >= 1),
            "a whole number of 1 or more steps",
        ),
    ):
        if not right:
            raise ZooError(f"MitigatedMamba2: {name} is {value}, expected {expected}")
    used = {
        "a_mult, b_mult": (a_mult, b_mult) != (1, 1),
        "max_norm": max_norm is not None,
        "window": window is not None,
    }
    if sum(used.values()) > 1:
        names = " and ".join(name for name, is_used in used.items() if is_used)
        raise ZooError(
            f"MitigatedMamba2: {names} are set together, expected one mitigation: a_mult and "
            "b_mult, or max_norm, or window"
        )


def mitigated(
    model: nn.Module,
    a_mult: float = 1.0,
    b_mult: float = 1.0,
    max_norm: float | Tensor | None = None,
    window: int | None = None,
) -> MambaLM:
    """A trained Mamba-2 language model with one mitigation, which shares its weights.

    The mitigation is a part of the new model's ``config.ssm_cfg``, and so of what
    ``save_pretrained`` writes; the authors' own package refuses such a folder.

    Args:
        model: ours, with Mamba-2 mixers; also one that was read from a folder of transformers.
        a_mult, b_mult, window: see :class:`MitigatedMamba2`.
        max_norm: one threshold, or ``[layers, H]``, such as a quantile of :func:`state_norms`; the
            state dict holds these, and the configuration their mean.

    Raises:
        ZooError: it is another model, or has a mitigation already, or see :class:`MitigatedMamba2`.
    """
    if not isinstance(model, MambaLM) or model.config.ssm_cfg.get("layer") != "Mamba2":
        found = type(model).__name__
        if isinstance(model, MambaLM):
            found = f"a model of {model.config.ssm_cfg.get('layer', 'Mamba1')} layers"
        raise ZooError(
            f"a mitigation is for a MambaLM of Mamba2 layers without one, such as mamba2_130m: "
            f"this is {found}"
        )
    options: dict[str, Any] = dict(a_mult=a_mult, b_mult=b_mult, window=window)
    if max_norm is not None:
        options["max_norm"] = (
            float(max_norm.mean()) if isinstance(max_norm, Tensor) else float(max_norm)
        )
    ssm_cfg = model.config.ssm_cfg | {"layer": "MitigatedMamba2"} | options
    with torch.device("meta"):
        made = MambaLM(replace(model.config, ssm_cfg=ssm_cfg))
    tensors = dict(model.state_dict(keep_vars=True))
    if max_norm is not None:
        limits = _limits(made, max_norm)
        device = model.lm_head.weight.device
        tensors |= {name: limit.to(device) for name, limit in limits.items()}
    made.load_state_dict(tensors, assign=True)
    if made.config.tie_embeddings:
        made.lm_head.weight = made.backbone.embedding.weight
    return made.train(model.training)


def _limits(model: MambaLM, max_norm: float | Tensor) -> dict[str, Tensor]:
    mixers = {
        f"backbone.layers.{index}.mixer.max_norm": block.mixer
        for index, block in enumerate(model.backbone.layers)
        if isinstance(block.mixer, MitigatedMamba2)
    }
    given = torch.as_tensor(max_norm, dtype=torch.float32)
    shape = (len(mixers), next(iter(mixers.values())).nheads)
    if given.shape not in ((), shape) or not bool((given > 0).all()):
        raise ZooError(
            f"max_norm is {tuple(given.shape)}, expected one number or {shape} (layers, heads), "
            "all above 0"
        )
    return {name: limit.clone() for name, limit in zip(mixers, given.expand(shape), strict=True)}


@torch.no_grad()
def position_losses(model: nn.Module, ids: Tensor, part: int = 1024) -> Tensor:
    """Cross-entropy in nats of each token after the first, read in parts with the state carried.

    Args:
        model: a language model with ``allocate_cache``, such as Mamba-2 and its mitigated forms.
        ids: int64 ``[B, L]``, L 2 or more.
        part: tokens of a part, whose logits stand in memory at once.

    Returns:
        float64 ``[B, L - 1]`` on the CPU.
    """
    if ids.shape[1] < 2 or part < 1:
        raise ZooError(
            f"ids have {ids.shape[1]} tokens and part is {part}, expected 2 and 1, or more"
        )
    cache, losses = _new_cache(model, ids), []
    for begin in range(0, ids.shape[1] - 1, part):
        targets = ids[:, begin + 1 : begin + part + 1]
        logits = model(input_ids=ids[:, begin : begin + targets.shape[1]], cache=cache).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        losses.append(loss.view_as(targets).double().cpu())
    return torch.cat(losses, 1)


@torch.no_grad()
def state_norms(model: nn.Module, ids: Tensor, every: int = 16) -> Tensor:
    """Frobenius norms of the heads' states ``[P, N]`` after each ``every`` tokens.

    Args:
        model: with Mamba-2 mixers that keep a state (all but those with a window).
        ids: int64 ``[B, L]``.
        every: tokens between two readings.

    Returns:
        ``[layers, B, H, L // every]``, of the layers that keep such a state.
    """
    cache, found = _new_cache(model, ids), []
    for begin in range(0, ids.shape[1] - every + 1, every):
        model(input_ids=ids[:, begin : begin + every], cache=cache, logits_to_keep=1)
        states = [
            state.ssm
            for state in cache.layers
            if isinstance(state, RecurrentState) and state.ssm.dim() == 4
        ]
        if not states:
            raise ZooError("no layer keeps a Mamba-2 state: expected Mamba-2 without a window")
        found.append(torch.stack([torch.linalg.vector_norm(s, dim=(2, 3)) for s in states]))
    if not found:
        raise ZooError(f"ids have {ids.shape[1]} tokens, expected {every} or more")
    return torch.stack(found, -1)


def retrieved(model: nn.Module, ids: Tensor, mask: Tensor, part: int = 1024) -> bool:
    """Whether greedy decoding gives the marked end of a text, such as one of
    :class:`zoo.data.Passkey`, exactly: that is, whether each of its tokens is the likeliest after
    the true ones before.

    Args:
        model: see :func:`position_losses`.
        ids, mask: ``[L]``, the mask 1 at the answer's tokens, which are the last ones.
        part: tokens read at once.
    """
    answer = int(mask.sum())
    prompt, end = ids[None, :-answer], ids[None, -answer:]
    cache = _new_cache(model, prompt)
    with torch.no_grad():
        for tokens in prompt[:, :-1].split(part, 1):
            model(input_ids=tokens, cache=cache, logits_to_keep=1)
        read = torch.cat([prompt[:, -1:], end[:, :-1]], 1)
        logits = model(input_ids=read, cache=cache).logits
    return bool((logits.argmax(-1) == end).all())


def collapse_length(losses: Tensor, bucket: int = 1024, margin: float = 0.5) -> int | None:
    """Tokens before the first bucket whose mean loss is above the smallest of those before it by
    more than ``margin`` nats; None if there is none.

    Args:
        losses: of :func:`position_losses`; a rest that fills no bucket is left out.
        bucket: positions of a bucket.
        margin: in nats.
    """
    count = losses.shape[1] // bucket
    if count < 1:
        raise ZooError(f"losses have {losses.shape[1]} positions, expected {bucket} or more")
    means = losses[:, : count * bucket].unflatten(1, (count, bucket)).mean((0, 2))
    beyond = (means > means.cummin(0).values + margin).nonzero()
    return int(beyond[0]) * bucket if len(beyond) else None


def state_size(model: MambaLM) -> int:
    """Numbers in the states ``[H, P, N]`` of all layers."""
    mixers = [block.mixer for block in model.backbone.layers if isinstance(block.mixer, Mamba2)]
    return sum(mixer.nheads * mixer.headdim * mixer.d_state for mixer in mixers)


def training_length(size: float) -> float:
    """The paper's fit: tokens of training texts above which a state of so many numbers learned to
    forget (their models of 1.1 to 12.9 million)."""
    return max(0.0, 1000 * (5.172 * size / 1e6 - 4.469))


def passkey_capacity(size: float) -> float:
    """The paper's fit: tokens of a text whose passkey a state of so many numbers still has."""
    return max(0.0, 1000 * (4.756 * (1.365 ** (size / 1e6) - 1) - 0.742))


def _new_cache(model: nn.Module, ids: Tensor) -> Any:
    if not hasattr(model, "allocate_cache"):
        raise ZooError(
            f"{type(model).__name__} has no allocate_cache: expected a language model that "
            "zoo.models.language._causal_lm.load_causal_lm reads as ours, such as Mamba-2"
        )
    return model.allocate_cache(ids.shape[0])  # type: ignore[operator]


@register_model(source="hf://state-spaces/mamba2-370m", parameters=368_346_624)
def stuffed_mamba_370m(
    a_mult: float = 1.0,
    b_mult: float = 1.0,
    max_norm: float | None = None,
    window: int | None = None,
    **overrides: Any,
) -> MambaLM:
    """The paper's larger model, Mamba-2 370M, whose layers take a mitigation."""
    options = dict(a_mult=a_mult, b_mult=b_mult, max_norm=max_norm, window=window)
    given = overrides.pop("ssm_cfg", {})
    ssm_cfg = {"layer": "MitigatedMamba2"} | options | given
    settings = dict(d_model=1024, n_layer=48, pad_vocab_size_multiple=16, ssm_cfg=ssm_cfg)
    return build(settings, overrides)

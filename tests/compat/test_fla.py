"""flash-linear-attention's names: their functions by definition, Hugging Face's use of them."""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo.compat
from tests.compat.hf_models import build
from tests.compat.test_huggingface import answer, counting
from zoo.compat import fla, huggingface
from zoo.compat.layernorm_gated import FusedRMSNormGated
from zoo.errors import ZooError
from zoo.ops import delta_rule_reference, linear_attention_reference

DELTA_MODELS = ["lara_mini", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(batch: int = 2, length: int = 11, heads: int = 2, values: int = 4) -> dict[str, Tensor]:
    return {
        "q": randn(batch, length, heads, 3, seed=1),
        "k": F.normalize(randn(batch, length, heads, 3, seed=2), dim=-1),
        "v": randn(batch, length, values, 5, seed=3),
        "g": -randn(batch, length, values, seed=4).abs(),
        "beta": randn(batch, length, values, seed=5).sigmoid(),
    }


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"])
def test_gated_delta_rule(name: str) -> None:
    p, start = problem(), randn(2, 4, 3, 5, seed=6)
    function = getattr(fla, name)
    out, state = function(**p, scale=0.7, initial_state=start, output_final_state=True)
    q, k = (p[n].repeat_interleave(2, 2) for n in "qk")
    expected = delta_rule_reference(q, k, p["v"], p["beta"], p["g"].exp(), 0.7, start, True)
    close(out, expected[0])
    close(state, expected[1])
    flipped = function(
        **p, scale=0.7, initial_state=start.mT, output_final_state=True, state_v_first=True
    )
    close(flipped[1].mT, state)
    # Norms, gate and sigmoid done inside are those done outside.
    raw = p | {"q": 3 * p["q"], "g": randn(2, 11, 4), "beta": randn(2, 11, 4, seed=7)}
    A_log, bias = randn(4, seed=8), randn(4, seed=9)
    found, none = function(
        **raw, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, A_log=A_log, dt_bias=bias,
        use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, chunk_size=32,
    )  # fmt: skip
    gate = -A_log.exp() * F.softplus(raw["g"] + bias)
    norm = {n: raw[n] / (raw[n].square().sum(-1, keepdim=True) + 1e-6).sqrt() for n in "qk"}
    assert none is None
    close(found, function(**raw | norm | {"g": gate, "beta": 2 * raw["beta"].sigmoid()})[0])


def test_without_decay_and_without_beta() -> None:
    p = problem(heads=4)
    q, k, v = p["q"], p["k"], p["v"]
    expected = delta_rule_reference(q, k, v, torch.ones(2, 11, 4, dtype=v.dtype), None)
    for found in (fla.chunk_delta_rule(q, k, v), fla.fused_recurrent_gated_delta_rule(q, k, v)):
        close(found[0], expected)


def test_packed_sequences() -> None:
    """As each by itself, also an empty one, also the gradients; a wrong border is an error."""
    p, borders = problem(batch=1), [0, 4, 4, 11]
    start = randn(3, 4, 3, 5, seed=6)
    leaves = {name: t.clone().requires_grad_() for name, t in p.items()}
    settings = dict(output_final_state=True, cu_seqlens=torch.tensor(borders))
    out, state = fla.chunk_gated_delta_rule(**leaves, initial_state=start, **settings)
    for n, (a, b) in enumerate([(0, 4), (4, 11)]):
        part = {name: t[:, a:b].clone().requires_grad_() for name, t in p.items()}
        own, last = fla.chunk_gated_delta_rule(
            **part, initial_state=start[2 * n : 2 * n + 1], output_final_state=True
        )
        close(out[:, a:b], own)
        close(state[2 * n : 2 * n + 1], last)
        found = torch.autograd.grad(out[:, a:b].square().sum(), leaves.values(), retain_graph=True)
        expected = torch.autograd.grad(own.square().sum(), part.values())
        for left, right in zip(found, expected, strict=True):
            close(left[:, a:b], right)
            assert left.abs().sum() == left[:, a:b].abs().sum()
    close(state[1], start[1])
    bare, _ = fla.chunk_gated_delta_rule(**p, cu_seqlens=torch.tensor(borders))
    close(bare[:, :4], fla.chunk_gated_delta_rule(**{n: t[:, :4] for n, t in p.items()})[0])
    for wrong in ([0, 4], [1, 11], [0, 8, 4, 11], [11]):
        with pytest.raises(ZooError, match="borders of sequences"):
            fla.chunk_gated_delta_rule(**p, cu_seqlens=torch.tensor(wrong))
    with pytest.raises(ZooError, match="2 initial states for 3"):
        fla.chunk_gated_delta_rule(**p, initial_state=start[:2], **settings)


def test_linear_attention() -> None:
    p = problem(heads=4)
    q, k, v = p["q"].exp(), p["k"].exp(), p["v"]
    close(
        fla.chunk_simple_gla(q, k, v, p["g"])[0],
        linear_attention_reference(q, k, v, p["g"].exp(), scale=3**-0.5),
    )
    gamma = p["g"][0, 0]
    close(
        fla.fused_recurrent_simple_gla(q, k, v, g_gamma=gamma, scale=2.0)[0],
        linear_attention_reference(q, k, v, gamma.exp().expand(2, 11, 4), scale=2.0),
    )
    close(
        fla.fused_recurrent_linear_attn(q, k, v)[0],
        linear_attention_reference(q, k, v, scale=3**-0.5),
    )
    # Normalised, and cut in two: the state is what fla's is.
    whole, (state, total) = fla.chunk_linear_attn(q, k, v, output_final_state=True)
    weights = torch.einsum("bihn,bjhn->bhij", q, k).tril()
    close(whole, torch.einsum("bhij,bjhp->bihp", weights / weights.sum(-1, keepdim=True), v))
    close(total, k.sum(1, keepdim=True))
    close(state, torch.einsum("bjhn,bjhp->bhnp", k, v))
    _, between = fla.chunk_linear_attn(q[:, :5], k[:, :5], v[:, :5], output_final_state=True)
    rest, _ = fla.chunk_linear_attn(q[:, 5:], k[:, 5:], v[:, 5:], initial_state=between)
    close(rest, whole[:, 5:])


def test_what_is_another_function_is_refused() -> None:
    p = problem()
    with pytest.raises(ZooError, match="one number a head"):
        fla.fused_recurrent_gated_delta_rule(**p, gk=p["k"])
    with pytest.raises(ZooError, match="does not take cp_context"):
        fla.chunk_gated_delta_rule(**p, cp_context=object())
    with pytest.raises(ZooError, match="4 heads of v are not a multiple of the 3"):
        fla.chunk_gated_delta_rule(**problem(heads=3))
    with zoo.compat.installed(), pytest.raises(ImportError, match="no 'kda'"):
        import_module("fla.ops.kda")


@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
def test_gated_norm(activation: str) -> None:
    x, g, residual = (randn(2, 3, 6, seed=n).float() for n in range(3))
    norm = FusedRMSNormGated(6, eps=1e-3, activation=activation)
    norm.weight.data = torch.arange(1.0, 7.0)
    gate = g.sigmoid() if activation == "sigmoid" else F.silu(g)
    total = x + residual
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight * gate
    out, kept = norm(x, g, residual, prenorm=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(kept, total)
    assert list(norm.state_dict()) == ["weight"]
    with pytest.raises(ZooError, match="'gelu'"):
        FusedRMSNormGated(6, activation="gelu")


@torch.no_grad()
@pytest.mark.parametrize("name", DELTA_MODELS)
def test_models_of_transformers_use_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(fla, "delta_rule", counting(counted, "delta", fla.delta_rule))
    model = build(name).eval()
    answer(model)
    assert not counted
    with zoo.compat.installed():
        answer(model)
        assert counted["delta"] >= 1
    counted.clear()
    answer(model)
    assert not counted


@torch.no_grad()
def test_an_installed_fla_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as it is; models of transformers take our function all the same."""
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(huggingface, "has_gpu", lambda: False)
    counted: Counter[str] = Counter()
    monkeypatch.setattr(fla, "delta_rule", counting(counted, "delta", fla.delta_rule))
    model = build("qwen3_next").eval()
    with zoo.compat.installed() as packages:
        assert "fla" not in packages
        answer(model)
    assert counted["delta"]

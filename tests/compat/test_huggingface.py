"""Hugging Face's Mamba models give the same answers on our ops, and do run on them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

import zoo.compat

COMMON = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(**COMMON, **TOKENS, state_size=8))


def falcon_mamba() -> PreTrainedModel:
    return FalconMambaForCausalLM(FalconMambaConfig(**COMMON, **TOKENS, state_size=8))


def mamba2(**changes: object) -> PreTrainedModel:
    sizes = dict(num_heads=8, head_dim=8, state_size=16, n_groups=2, chunk_size=8)
    return Mamba2ForCausalLM(Mamba2Config(**COMMON, **TOKENS, **{**sizes, **changes}))


def jamba() -> PreTrainedModel:
    config = JambaConfig(
        **COMMON,
        **TOKENS,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        attn_implementation="eager",
    )
    return JambaForCausalLM(config)


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str, str, str]] = {
    # name: model, the op of a whole sequence, in training, of a step
    "mamba": (mamba, "selective_scan", "selective_scan", "selective_state_update"),
    "falcon_mamba": (falcon_mamba, "selective_scan", "selective_scan", "selective_state_update"),
    "mamba2": (mamba2, "ssd", "ssd", "selective_state_update"),
    "jamba": (jamba, "selective_scan", "selective_scan", "selective_state_update"),
}


def counting(counted: Counter[str], op: str, call: Callable) -> Callable:
    def count(*args: object, **kwargs: object) -> object:
        counted[op] += 1
        return call(*args, **kwargs)

    return count


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of our ops is called."""
    counted: Counter[str] = Counter()
    for place, name, op in [
        ("selective_scan_interface", "selective_scan", "selective_scan"),
        ("selective_scan_interface", "causal_conv1d", "causal_conv1d"),
        ("causal_conv1d_interface", "causal_conv1d", "causal_conv1d"),
        ("causal_conv1d_interface", "update", "causal_conv1d_update"),
        ("selective_state_update", "update", "selective_state_update"),
        ("ssd_combined", "ssd", "ssd"),
        ("ssd_combined", "causal_conv1d", "causal_conv1d"),
    ]:
        module = __import__(f"zoo.compat.{place}", fromlist=[name])

        monkeypatch.setattr(module, name, counting(counted, op, getattr(module, name)))
    return counted


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, str, str, str]:
    torch.manual_seed(0)
    build, *ops = MODELS[request.param]
    return build(), *ops


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 50, (2, 21), generator=torch.Generator().manual_seed(1))}


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_logits(case: tuple, calls: Counter[str]) -> None:
    model, op, *_ = case
    model.eval()
    expected = model(**inputs()).logits
    assert not calls
    with zoo.compat.installed():
        found = model(**inputs()).logits
    layers = 1 if model.config.model_type == "jamba" else 2
    assert calls == {op: layers, "causal_conv1d": layers}
    close(found, expected)
    model(**inputs())
    assert calls[op] == layers, "after uninstalling, transformers has its own functions back"


def test_training(case: tuple, calls: Counter[str]) -> None:
    model, _, op, _ = case
    if model.config.model_type == "falcon_mamba":
        pytest.skip("its own code and mamba_ssm's put the norm of the step size in other places")
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs(), labels=inputs()["input_ids"], use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert not calls
    with zoo.compat.installed():
        found = gradients()
    assert calls[op] > 0 and calls["causal_conv1d"] > 0
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().clamp(min=1e-6)
        assert (gradient - expected[name]).abs().max() <= 1e-3 * scale, name


@torch.no_grad()
def test_generation_with_cache(case: tuple, calls: Counter[str]) -> None:
    model, op, _, step = case
    model.eval()
    settings = dict(max_new_tokens=8, do_sample=False, output_scores=True, eos_token_id=None)

    def generate() -> tuple[torch.Tensor, torch.Tensor]:
        out = model.generate(**inputs(), **settings, return_dict_in_generate=True)
        return out.sequences, torch.stack(out.scores)

    sequences, scores = generate()
    assert not calls
    with zoo.compat.installed():
        found_sequences, found_scores = generate()
    assert torch.equal(found_sequences, sequences)
    close(found_scores, scores)
    layers = 1 if model.config.model_type == "jamba" else 2
    assert calls[op] == layers and calls[step] == 7 * layers
    assert calls["causal_conv1d_update"] == 7 * layers


@pytest.mark.slow  # transformers is imported anew
def test_models_imported_later_need_nothing() -> None:
    code = """
import zoo.compat
zoo.compat.install()
import torch
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba
model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1))
from zoo.compat import selective_scan_interface as ours
calls = []
scan = ours.selective_scan
ours.selective_scan = lambda *a, **k: calls.append(1) or scan(*a, **k)
model(torch.arange(5)[None]).logits.sum().backward()
print(len(calls))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


@torch.no_grad()
def test_padding_and_half_precision(calls: Counter[str]) -> None:
    torch.manual_seed(0)
    model = mamba().eval().to(torch.bfloat16)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, :6] = 0
    expected = model(**inputs(), attention_mask=mask).logits
    with zoo.compat.installed():
        found = model(**inputs(), attention_mask=mask).logits
    assert calls["selective_scan"] == 2
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found[:, 6:], expected[:, 6:], rtol=0.05, atol=0.05)

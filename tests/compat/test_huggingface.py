"""Hugging Face's models give the same answers and gradients on our ops, and do run on them."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import zoo.compat
from tests.compat.hf_models import MODELS, PARTS, build
from zoo.compat.huggingface import CHOICES, FUNCTIONS, FUSED
from zoo.errors import ZooError

#: The newest release of transformers that all of this was tried with.
NEWEST = (5, 24)
OPS = {
    # model: the op of a whole sequence, of a step
    "mamba": ("selective_scan", "selective_state_update"),
    "falcon_mamba": ("selective_scan", "selective_state_update"),
    "mamba2": ("ssd", "selective_state_update"),
    "jamba": ("selective_scan", "selective_state_update"),
}
#: At strong decays transformers' own delta rule loses digits, which deeper layers magnify.
TOLERANCES = {"qwen4_exp": 4e-3}
#: Of another function than our ops: a decay for each channel.
OTHER = ("chunk_kda", "fused_recurrent_kda")


def test_every_model_that_asks_is_tried() -> None:
    installed = tuple(int(n) for n in version("transformers").split(".")[:2])
    if installed > NEWEST:
        warnings.warn(f"transformers {NEWEST} was tried, {installed} is newer", stacklevel=1)
    asked: dict[str, set[tuple[str, str, str]]] = {}
    question = re.compile(
        r'@use_kernel_func_from_hub_with_fallback\(\s*"(\w+)",\s*"(\w+)",?\s*\)\s*def (\w+)'
    )
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        found = {match for match in question.findall(file.read_text()) if match[0] not in OTHER}
        if found:
            asked[file.parent.name] = found
    assert not asked.keys() - MODELS.keys(), "a model that asks and is not tried here"
    for function, package, name in set().union(*asked.values()):
        assert CHOICES[name] == (function, package)
        assert function in FUNCTIONS or function in FUSED


class Adapter(nn.Module):
    """A linear layer with a low-rank one beside it, as peft puts it in a layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapt(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, Adapter):
                setattr(parent, name, Adapter(child))


def inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 50, (2, 21), generator=torch.Generator().manual_seed(1))}


def answer(model: PreTrainedModel, **more: object) -> Tensor:
    return model(**inputs(), use_cache=False, **more)[0]


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    out = answer(model)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 3e-4) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        scale = expected[name].abs().max().clamp(min=1e-6)
        assert (tensor - expected[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("name", MODELS)
def test_answers_and_gradients(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        expected = answer(model)
        with zoo.compat.installed():
            close(answer(model), expected)
    model.train()
    expected_gradients = gradients(model)
    with zoo.compat.installed():
        same(gradients(model), expected_gradients, TOLERANCES.get(name, 3e-4))


@pytest.mark.parametrize("name", MODELS)
def test_every_projection_is_called(name: str) -> None:
    """Adapters learn the same, and the same hooks fire, in training and out of it."""
    model = build(name)
    adapt(model)
    called: Counter[str] = Counter()
    for key, part in model.named_modules():
        if isinstance(part, (Adapter, nn.Conv1d)):
            part.register_forward_hook(lambda *_, key=key: called.update([key]))
    for training in (False, True):
        model.train(training)
        called.clear()
        expected, fired = gradients(model), called.copy()
        called.clear()
        with zoo.compat.installed():
            same(gradients(model), expected, TOLERANCES.get(name, 3e-4))
        assert called == fired
    assert any(".down." in name for name in expected)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(PARTS)))
def test_generation_with_cache(name: str) -> None:
    model = build(name).eval()

    def generate() -> tuple[Tensor, Tensor]:
        settings = dict(max_new_tokens=8, do_sample=False, output_scores=True, eos_token_id=None)
        out = model.generate(**inputs(), **settings, return_dict_in_generate=True)
        return out.sequences, torch.stack(out.scores)

    sequences, scores = generate()
    with zoo.compat.installed():
        found_sequences, found_scores = generate()
    assert torch.equal(found_sequences, sequences)
    close(found_scores, scores)


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


@pytest.mark.parametrize("name", OPS)
def test_ops_are_used(name: str, calls: Counter[str]) -> None:
    model = build(name)
    layers = 1 if name == "jamba" else 2
    op, step = OPS[name]
    answer(model)
    assert not calls
    with zoo.compat.installed():
        for training in (False, True):
            calls.clear()
            answer(model.train(training))
            assert calls == {op: layers, "causal_conv1d": layers}
        calls.clear()
        model.eval().generate(**inputs(), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert calls[step] == calls["causal_conv1d_update"] == 7 * layers
    calls.clear()
    answer(model)
    assert not calls, "after uninstalling, transformers has its own functions back"


def test_what_an_op_does_not_take_goes_back() -> None:
    """LFM models with another kernel, or an activation that our op has not."""
    model = build("mamba").eval()
    for block in model.backbone.layers:
        block.mixer.activation = "gelu"
    with torch.no_grad():
        expected = answer(model)
        with zoo.compat.installed():
            close(answer(model), expected)
            # Not where the model's own code would mix packed sequences.
            mixer, x = model.backbone.layers[0].mixer, torch.randn(2, 21, 32)
            with pytest.raises(ZooError, match="activation must be None, 'silu' or 'swish'"):
                mixer(x, seq_idx=torch.zeros(2, 21, dtype=torch.int32))


def test_packed_sequences_stay_apart() -> None:
    """In training too, where transformers' whole block would keep them apart."""
    mixer = build("mamba2").train().backbone.layers[0].mixer
    x, border = torch.randn(2, 21, 32), 9
    packed = (torch.arange(21) >= border).int().expand(2, -1).contiguous()
    with zoo.compat.installed():
        found = mixer(x, seq_idx=packed)
        expected = [mixer(part) for part in x.split([border, 21 - border], dim=1)]
    close(found, torch.cat(expected, dim=1))


def test_compiled_model() -> None:
    model = build("mamba").eval()
    with torch.no_grad():
        expected = answer(model)
        with zoo.compat.installed():
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            close(answer(compiled), expected)


@pytest.mark.slow  # transformers is imported anew
def test_models_imported_later_need_nothing() -> None:
    code = """
import zoo.compat
zoo.compat.install()
import torch
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba
model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)).train()
from zoo.compat import selective_scan_interface as ours
calls = []
scan = ours.selective_scan
ours.selective_scan = lambda *a, **k: calls.append("scan") or scan(*a, **k)
model.backbone.layers[0].mixer.x_proj.register_forward_hook(lambda *a: calls.append("x_proj"))
model(torch.arange(5)[None], use_cache=False).logits.sum().backward()
zoo.compat.uninstall()
model(torch.arange(5)[None], use_cache=False)
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['x_proj', 'scan', 'x_proj']\n", done.stderr


@torch.no_grad()
def test_padding_and_half_precision(calls: Counter[str]) -> None:
    model = build("mamba").eval().to(torch.bfloat16)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, :6] = 0
    expected = answer(model, attention_mask=mask)
    with zoo.compat.installed():
        found = answer(model, attention_mask=mask)
    assert calls["selective_scan"] == 2
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found[:, 6:], expected[:, 6:], rtol=0.05, atol=0.05)


def test_adapters_of_peft() -> None:
    """They learn, and what they learn without us; peft refuses ``out_proj``, and of ``dt_proj``
    transformers reads the weight alone."""
    settings = peft.LoraConfig(r=2, target_modules=["in_proj", "x_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(build("mamba"), settings).train()
    expected = gradients(tuned)
    assert {name for name, p in tuned.named_parameters() if p.requires_grad} == expected.keys()
    assert len(expected) == 2 * 2 * 2 and all(g.abs().max() > 0 for g in expected.values())
    with zoo.compat.installed():
        same(gradients(tuned), expected)

"""Whole models: a pass or a training step, and where its time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from zoo.bench.measure import median_seconds
from zoo.bench.rows import Setting

#: Beginnings of the names of PyTorch's operators -> how the bench calls them.
_GROUPS = {
    "aten::addmm": "matrix products",
    "aten::mm": "matrix products",
    "aten::bmm": "matrix products",
    "aten::baddbmm": "matrix products",
    "aten::mkldnn_convolution": "convolutions",
    "aten::cudnn_convolution": "convolutions",
    "aten::thnn_conv2d": "convolutions",
    "aten::_slow_conv2d_forward": "convolutions",
    "aten::_conv_depthwise2d": "convolutions",
    "aten::convolution_backward": "convolutions",
    "aten::native_layer_norm": "norms",
    "aten::native_batch_norm": "norms",
    "aten::copy_": "copies",
    "Optimizer": "optimizer",
    "aten::_foreach": "optimizer",
    "aten::_fused_adam": "optimizer",
}
_SMALLEST_SHARE = 0.03


@dataclass
class ModelRow:
    """A measured model; ``shares``: of the time in each kind of operator."""

    model: str
    what: str
    seconds: float
    shares: dict[str, float]
    peers: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCase:
    """A model at work.

    Attributes:
        model: its name.
        what: what it does.
        build: makes the step from the device.
        peer: name of the way without our kernels, and the surroundings in which ours are used.
    """

    model: str
    what: str
    build: Callable[[str], Callable[[], Any]]
    peer: str = ""
    surroundings: Callable[[], Any] = nullcontext


def _vmamba(batch: int, train: bool) -> Callable[[str], Callable[[], Any]]:
    def build(device: str) -> Callable[[], Any]:
        import zoo

        model = zoo.create_model("vmamba_tiny").to(device)
        images = torch.randn(batch, 3, 224, 224, device=device)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        loss = torch.nn.CrossEntropyLoss()
        return _step(model, train, lambda: loss(model(images), labels), lambda: model(images))

    return build


def _hf_mamba(layers: int, length: int, train: bool) -> Callable[[str], Callable[[], Any]]:
    def build(device: str) -> Callable[[], Any]:
        from transformers import MambaConfig, MambaForCausalLM

        config = MambaConfig(hidden_size=768, num_hidden_layers=layers, vocab_size=50280)
        model: torch.nn.Module = MambaForCausalLM(config)
        model.to(device)
        ids = torch.randint(0, 50280, (1, length), device=device)
        return _step(
            model,
            train,
            lambda: model(ids, labels=ids).loss,
            lambda: model(ids, logits_to_keep=1, use_cache=True),
        )

    return build


def _step(
    model: torch.nn.Module,
    train: bool,
    loss: Callable[[], Tensor],
    forward: Callable[[], Any],
) -> Callable[[], Any]:
    model.train(train)
    if not train:
        return torch.inference_mode()(forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


@contextmanager
def _compat() -> Iterator[None]:
    import zoo.compat

    with zoo.compat.installed():
        yield


_HF = "transformers alone"

MODELS: tuple[ModelCase, ...] = (
    ModelCase("VMamba-T", "1 image", _vmamba(1, train=False)),
    ModelCase("VMamba-T", "training step of 4 images", _vmamba(4, train=True)),
    ModelCase("Mamba-130m (transformers)", "prefill of 512 tokens",
              _hf_mamba(24, 512, train=False), _HF, _compat),
    ModelCase("Mamba-130m, 4 layers (transformers)", "training step of 256 tokens",
              _hf_mamba(4, 256, train=True), _HF, _compat),
)  # fmt: skip


def measure_model(case: ModelCase, setting: Setting) -> ModelRow:
    """Time a step with our kernels, and the same without them if the case has a peer."""
    torch.manual_seed(0)
    step = case.build(setting.device)
    with case.surroundings():
        shares = shares_of(step, setting.device)
        seconds = median_seconds({"": (step, setting.threads)}, setting.seconds)[""]
    row = ModelRow(case.model, case.what, seconds, shares)
    if case.peer:
        alone = median_seconds({"": (step, setting.threads)}, setting.seconds)[""]
        row.peers, row.ratios = {case.peer: alone}, {case.peer: alone / seconds}
    return row


def shares_of(step: Callable[[], Any], device: str) -> dict[str, float]:
    """The share of a step's time that each kind of operator takes."""
    step()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        time = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        group = _group(event.key)
        spent[group] = spent.get(group, 0.0) + time
    total = sum(spent.values())
    shares = {name: time / total for name, time in spent.items() if name != "other"}
    shown = {n: s for n, s in sorted(shares.items(), key=lambda item: -item[1])
             if s >= _SMALLEST_SHARE}  # fmt: skip
    return {**shown, "other": 1 - sum(shown.values())}


def _group(name: str) -> str:
    if name.startswith("zoo::"):
        return name.removeprefix("zoo::")
    for start, group in _GROUPS.items():
        if name.startswith(start):
            return group
    return "other"

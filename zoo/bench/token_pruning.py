"""What pruned patches save: time against the multiply-adds that are gone."""

from __future__ import annotations

import torch

import zoo
from zoo.bench.measure import median_seconds
from zoo.bench.models import ModelRow, shares_of
from zoo.bench.rows import Setting
from zoo.metrics.flops import multiply_adds

#: Whole networks whose pruned forms, ``token_pruning_<name>``, are measured.
PRUNED = ("vim_small", "plainmamba_l1")
_BATCH = 2


@torch.inference_mode()
def measure_pruned(name: str, setting: Setting) -> ModelRow:
    """Time the network that drops patches, at the keep ratios of its recipe, and the whole one."""
    torch.manual_seed(0)
    images = torch.randn(_BATCH, 3, 224, 224, device=setting.device)
    whole, pruned = (
        zoo.create_model(prefix + name).eval().to(setting.device)
        for prefix in ("", "token_pruning_")
    )
    removed = 1 - multiply_adds(pruned, images) / multiply_adds(whole, images)
    shares = shares_of(lambda: pruned(images), setting.device)
    calls = {"": (lambda: pruned(images), setting.threads)}
    calls["all patches"] = (lambda: whole(images), setting.threads)
    peers = median_seconds(calls, setting.seconds)
    seconds = peers.pop("")
    return ModelRow(
        model=f"{name}, pruned",
        what=f"{_BATCH} images, {removed:.0%} of the multiply-adds removed",
        seconds=seconds,
        shares=shares,
        peers=peers,
        ratios={peer: time / seconds for peer, time in peers.items()},
    )

"""The stand-ins: who answers for which name, and what is said about names that nobody answers."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zoo.compat
from zoo.compat import devices, stand_ins
from zoo.compat.names import MODULES, OPS, PACKAGES


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    zoo.compat.uninstall()
    assert not [name for name in sys.modules if name.partition(".")[0] in PACKAGES]


def test_every_module_can_be_imported() -> None:
    assert set(zoo.compat.install()) == set(PACKAGES)
    for name in MODULES:
        module = importlib.import_module(name)
        assert sys.modules[name] is module
        for other in module.__all__:
            assert callable(getattr(module, other)), other
        assert module.__all__ or name not in OPS


def test_names_of_the_papers() -> None:
    with zoo.compat.installed():
        import causal_conv1d_cuda
        import selective_scan_cuda
        import selective_scan_cuda_core
        import selective_scan_cuda_oflex
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
        from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
        from mamba_ssm import mamba_inner_fn, selective_scan_fn
        from mamba_ssm.ops.selective_scan_interface import bimamba_inner_fn
        from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
        from mamba_ssm.ops.triton.layernorm import RMSNorm as OldRMSNorm
        from mamba_ssm.ops.triton.layernorm_gated import RMSNorm as RMSNormGated
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    from zoo.compat import selective_scan_interface as ours

    assert selective_scan_fn is ours.selective_scan_fn
    assert mamba_inner_fn is ours.mamba_inner_fn
    assert bimamba_inner_fn is ours.bimamba_inner_fn
    assert OldRMSNorm is RMSNorm and RMSNorm is not RMSNormGated
    modules = selective_scan_cuda, selective_scan_cuda_core, selective_scan_cuda_oflex
    assert all(callable(module.fwd) and callable(module.bwd) for module in modules)
    assert callable(causal_conv1d_cuda.causal_conv1d_fwd)
    functions = [causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states]
    functions += [layer_norm_fn, rms_norm_fn, selective_state_update, mamba_chunk_scan_combined]
    assert all(function.__module__.startswith("zoo.compat.") for function in functions)


def test_install_is_idempotent_and_can_be_undone() -> None:
    finders = len(sys.meta_path)
    assert zoo.compat.install() == zoo.compat.install()
    assert len(sys.meta_path) == finders + 2
    with zoo.compat.installed():
        importlib.import_module("mamba_ssm")
    assert importlib.util.find_spec("mamba_ssm") is not None, "it was installed before the block"
    zoo.compat.uninstall()
    zoo.compat.uninstall()
    assert len(sys.meta_path) == finders
    assert importlib.util.find_spec("mamba_ssm") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'mamba_ssm'"):
        importlib.import_module("mamba_ssm")


def test_guard_of_the_device_lets_a_cpu_pass() -> None:
    def guarded() -> None:
        for device in (torch.device("cpu"), "cpu"):
            with torch.cuda.device(device):
                pass

    with pytest.raises(ValueError, match="cuda"):
        guarded()
    with zoo.compat.installed():
        guarded()
        with pytest.raises(ValueError, match="cuda"):
            torch.cuda.device("meta")
    with pytest.raises(ValueError, match="cuda"):
        guarded()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without CUDA")
def test_cuda_tensors_stay_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    devices._say_once.cache_clear()
    with zoo.compat.installed():
        tensor, layer = torch.zeros(2), torch.nn.Linear(2, 2)
        assert tensor.cuda() is tensor and tensor.cuda(0, non_blocking=True) is tensor
        assert layer.cuda() is layer and layer.weight.device.type == "cpu"
    assert caplog.text.count("there is no CUDA device; what asks for one by .cuda()") == 1
    with pytest.raises((RuntimeError, AssertionError)):
        tensor.cuda()


def test_attributes_lead_to_submodules() -> None:
    """As in the real package, which imports them all at once."""
    with zoo.compat.installed():
        import mamba_ssm

        assert callable(mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined)
        assert mamba_ssm.__version__.startswith("2.")


def test_missing_names_are_explained() -> None:
    zoo.compat.install()
    import mamba_ssm

    text = (
        "mamba_ssm is answered by zoo.compat, which has no 'Mamba9' in it, only selective_scan_fn"
    )
    with pytest.raises(AttributeError, match=text):
        mamba_ssm.Mamba9  # noqa: B018
    assert not hasattr(mamba_ssm, "Mamba9")
    with pytest.raises(ImportError, match=text):
        from mamba_ssm import Mamba9  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"no 'distributed' in it, .*, utils; for the"):
        importlib.import_module("mamba_ssm.distributed.tensor_parallel")
    with pytest.raises(ImportError, match="has no 'CausalConv1dFn' in it"):
        from causal_conv1d.causal_conv1d_interface import CausalConv1dFn  # noqa: F401


def test_installed_packages_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    caplog.set_level(logging.INFO, "zoo")
    provided = zoo.compat.install()
    assert "mamba_ssm" not in provided and "causal_conv1d" in provided
    assert "mamba_ssm is installed and stays as it is" in caplog.text
    import mamba_ssm

    assert mamba_ssm.real
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mamba_ssm\.ops'"):
        importlib.import_module("mamba_ssm.ops")
    del sys.modules["mamba_ssm"]


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mamba_ssm and causal_conv1d as they are where pip has put them, and torch has no GPU."""
    files = {
        "mamba_ssm/__init__.py": "from mamba_ssm.ops.selective_scan_interface import "
        "selective_scan_fn\nfrom mamba_ssm.modules.mamba_simple import Mamba\n",
        "mamba_ssm/modules/__init__.py": "",
        "mamba_ssm/modules/mamba_simple.py": "from mamba_ssm.ops.triton.layer_norm import "
        "RMSNorm\nclass Mamba: norm = RMSNorm\n",
        "mamba_ssm/ops/__init__.py": "",
        "mamba_ssm/ops/selective_scan_interface.py": "import selective_scan_cuda\n"
        "def selective_scan_fn(): pass\n",
        "mamba_ssm/ops/triton/__init__.py": "",
        "mamba_ssm/ops/triton/layer_norm.py": "raise ImportError('triton')\n",
        "mamba_ssm/ops/triton/softplus.py": "own = True\n",
        "selective_scan_cuda.py": "raise ImportError('undefined symbol')\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def test_ops_of_an_installed_package_that_cannot_run(
    installed_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stand_ins, "has_gpu", lambda: False)
    monkeypatch.setattr(zoo.compat, "has_gpu", lambda: False)
    provided = zoo.compat.install()
    assert "mamba_ssm" not in provided and "selective_scan_cuda" not in provided
    import mamba_ssm
    import selective_scan_cuda
    from mamba_ssm.ops.triton.softplus import own

    lines = [r.getMessage() for r in caplog.records if "mamba_ssm" in r.getMessage()]
    assert lines == ["zoo.compat: mamba_ssm is installed, but there is no GPU: its ops are ours"]
    assert mamba_ssm.__file__ == str(installed_package / "mamba_ssm" / "__init__.py")
    assert mamba_ssm.Mamba.__module__ == "mamba_ssm.modules.mamba_simple", "not an op"
    assert mamba_ssm.selective_scan_fn.__module__ == "zoo.compat.selective_scan_interface"
    assert mamba_ssm.Mamba.norm.__module__ == "zoo.compat.layer_norm"
    assert own and selective_scan_cuda.fwd.__module__ == "zoo.compat.kernels"
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mamba_ssm\.models'"):
        importlib.import_module("mamba_ssm.models.mixer_seq_simple")
    zoo.compat.uninstall()
    assert "mamba_ssm" not in sys.modules, "it had taken ops of ours in"


def test_installed_package_on_a_gpu_keeps_what_works(
    installed_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (installed_package / "mamba_ssm/ops/triton/layer_norm.py").write_text("class RMSNorm: pass\n")
    monkeypatch.setattr(stand_ins, "has_gpu", lambda: True)
    monkeypatch.setattr(zoo.compat, "has_gpu", lambda: True)
    assert "causal_conv1d" in zoo.compat.install()
    import mamba_ssm
    import selective_scan_cuda

    assert mamba_ssm.selective_scan_fn.__module__ == "mamba_ssm.ops.selective_scan_interface"
    assert mamba_ssm.Mamba.norm.__module__ == "mamba_ssm.ops.triton.layer_norm"
    assert selective_scan_cuda.fwd.__module__ == "zoo.compat.kernels"
    assert "selective_scan_cuda is installed, but it cannot be loaded" in caplog.text


def test_package_imported_too_early(
    installed_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stand_ins, "has_gpu", lambda: False)
    monkeypatch.setattr(zoo.compat, "has_gpu", lambda: False)
    (installed_package / "selective_scan_cuda.py").write_text("")
    (installed_package / "mamba_ssm/ops/triton/layer_norm.py").write_text("class RMSNorm: pass\n")
    import mamba_ssm

    zoo.compat.install()
    assert "mamba_ssm was imported before install() and keeps its own ops" in caplog.text
    assert importlib.import_module("mamba_ssm") is mamba_ssm
    zoo.compat.uninstall()
    assert sys.modules["mamba_ssm"] is mamba_ssm


def test_install_imports_nothing_heavy() -> None:
    code = "import sys, zoo.compat; zoo.compat.install(); import mamba_ssm, causal_conv1d_cuda\n"
    code += "print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_old_transformers_are_mentioned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zoo.compat.huggingface, "version", lambda name: "4.57.6")
    zoo.compat.install()
    assert "transformers 4.57.6 does not ask for such functions as 5.15" in caplog.text

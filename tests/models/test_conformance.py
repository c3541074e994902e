"""What every registered model must do, by the small configurations of its fingerprints.

Of every registered name the first case stands for it, of every file the first case for what takes
long. A model that cannot do something stands in :data:`EXCLUDED` with the reason; what it can do
after all fails the list.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import io
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

import zoo
from tests.fingerprints import Case, load, tensors
from tests.formula import fill, uniform
from tests.settings import digest, known
from tests.tiers import all_but_first
from zoo.errors import ZooError

FILES = sorted(Path(__file__).parent.glob("*/*.yaml"))
#: Layers that others put hooks and adapters on.
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)

#: Why a model cannot pass, the tests, and the files or single names ("file:name") that it is about.
EXCLUDED: list[tuple[str, str, str]] = [
    (
        "it reads a language model, through hooks of that model's layers",
        "compile export",
        "decoding/hidden_transfer decoding/ppd",
    ),
    (
        "which boxes are kept is a choice that rounding changes",
        "bfloat16 autocast int8",
        "vision/mask_rcnn",
    ),
    (
        "torchvision's detectors have shapes that depend on the data",
        "compile export",
        "vision/mask_rcnn",
    ),
    (
        "pictures are padded to the largest of a batch, and the backbone scans the padding too",
        "one_is_as_in_a_batch",
        "vision/mask_rcnn",
    ),
    (
        "training needs targets; tests/models/vision/test_mask_rcnn.py has them",
        "a_step_changes_every_parameter",
        "vision/mask_rcnn",
    ),
    (
        "which tokens are kept is a choice that rounding changes",
        "bfloat16 autocast int8",
        "vision/token_pruning",
    ),
    (
        "the library has an error of its own: sizes are multiples of 32",
        "any_size_or_a_clear_error",
        "vision/smp:smp_fpn vision/smp:smp_segformer",
    ),
    (
        "the first call makes the kernel one of its length, which an exported program repeats",
        "export",
        "ssm/sashimi",
    ),
    (
        "a spike is a choice that rounding changes",
        "bfloat16 autocast",
        "ssm/lmuformer:lmuformer_attention",
    ),
]


def system(case: Case) -> str:
    """Family and system of a case."""
    return f"{case.file.parent.name}/{case.file.stem.lstrip('_')}"


def representatives() -> list[Case]:
    """The first plain call of every registered name in every file."""
    found = {}
    for file in FILES:
        for case in load(file).values():
            if ":" not in case.model and not case.train and case.call == "__call__":
                found.setdefault((file, case.model), case)
    return list(found.values())


CASES = representatives()
FIRST = [next(group) for _, group in itertools.groupby(CASES, key=lambda case: case.file)]
#: Where compilers work, the first of a family stands for it.
SLOW = all_but_first(FIRST, lambda case: case.file.parent)


def each(cases: list[Case], slow: Collection[Case] = ()) -> Callable:
    """Parametrise a test; excluded ones must fail."""

    def decorate(test: Callable) -> Callable:
        name = test.__name__.removeprefix("test_")

        def parameter(case: Case) -> Any:
            places = {system(case), f"{system(case)}:{case.model}"}
            reasons = [
                reason
                for reason, tests, names in EXCLUDED
                if name in tests.split() and places & set(names.split())
            ]
            # processors round differently
            marks = [
                pytest.mark.xfail(reason=reason, strict=not reason.endswith("rounding changes"))
                for reason in reasons
            ]
            if case in slow:
                marks.append(pytest.mark.slow)
            label = f"{case.file.parent.name}-{case.file.stem}-{case.model}"
            return pytest.param(case, marks=marks, id=label)

        return pytest.mark.parametrize("case", [parameter(case) for case in cases])(test)

    return decorate


@functools.cache
def pristine(file: Path, name: str) -> nn.Module:
    case = load(file)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.build().eval()
    fill(model, case.values)
    return model


def built(case: Case) -> nn.Module:
    """A copy of the case's model with its weights by formula, in float32 and eval mode."""
    return copy.deepcopy(pristine(case.file, case.name))


def forward(case: Case, model: nn.Module, **changed: Any) -> dict[str, Tensor]:
    """Every tensor that the case's call gives, without gradients."""
    with torch.no_grad():
        return case.run(model, {**case.arguments(), **changed})


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(mine, theirs)


def near(mine: dict[str, Tensor], exact: dict[str, Tensor], share: float) -> None:
    """Finite, and the root mean square of the errors within a share of that of the numbers."""
    assert mine.keys() == exact.keys()
    for path, expected in exact.items():
        if expected.is_floating_point() and expected.numel():
            assert mine[path].isfinite().all(), path
            error = (mine[path].float() - expected).norm() / expected.norm()
            assert error < share, f"{path} is {error:.1%} off"


def objective(outputs: dict[str, Tensor]) -> Tensor:
    """A sum of all outputs, each element with a weight of its own."""
    learns = {p: t for p, t in outputs.items() if t.requires_grad}
    learns = {p: torch.view_as_real(t) if t.is_complex() else t for p, t in learns.items()}
    return sum((t * uniform(p, tuple(t.shape)).to(t.dtype)).sum() for p, t in learns.items())


def is_idle(case: Case, name: str) -> bool:
    """Whether a case of the file says that a parameter has no influence."""
    patterns = [pattern for other in load(case.file).values() for pattern in other.unused]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def without_dropout(model: nn.Module) -> nn.Module:
    """Nothing is dropped in training, so that all of it learns from two samples."""
    for module in model.modules():
        if isinstance(module, (nn.modules.dropout._DropoutNd, DropPath)):
            setattr(module, "p" if hasattr(module, "p") else "drop_prob", 0.0)
    return model


def test_every_registered_model_has_a_case():
    cased = {case.model for file in FILES for case in load(file).values()}
    systems = {zoo.model_info(name).system for name in cased if ":" not in name}
    missing = {
        f"{info.family}/{info.system}"
        for info in map(zoo.model_info, zoo.list_models())
        if info.system not in systems
    }
    assert missing == set()


SETTINGS = known()


@pytest.mark.parametrize("name", zoo.list_models())
def test_builds_without_memory_and_has_the_declared_count(name):
    info = zoo.model_info(name)
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert all(t.is_meta for t in itertools.chain(model.parameters(), model.buffers()))
    assert sum(p.numel() for p in model.parameters()) == info.parameters
    assert info.module == f"zoo.models.{info.family}.{info.module.rpartition('.')[2]}"
    assert digest(model) == SETTINGS.get(name), (
        f"settings of {name} are not those that were entered, or none were: look at `python -m "
        f"tests.settings show {name}` before and after the change, then `write {name}`"
    )


@each(CASES)
def test_a_step_changes_every_parameter(case):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # values by formula: many blocks start at zero, and let no gradient through
        model = without_dropout(built(case)).train()
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        before = {n: p.detach().clone() for n, p in parameters.items()}
        objective(case.run(model, case.arguments())).backward()
    # eps is next to nothing, so that a parameter with however small a gradient moves.
    torch.optim.Adam(parameters.values(), eps=1e-30).step()
    still = [n for n, p in parameters.items() if torch.equal(p, before[n]) and not is_idle(case, n)]
    assert still == []
    assert all(p.isfinite().all() for p in parameters.values())


@each(CASES)
def test_state_dict_goes_through_a_file(case, tmp_path):
    model = built(case)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    if hasattr(model, "remap_state_dict"):
        own = model.state_dict()
        again = model.remap_state_dict(dict(own))
        assert again.keys() == own.keys()
        assert all(torch.equal(again[key], value) for key, value in own.items())
    other = case.build().eval()
    zoo.load_pretrained(other, str(tmp_path / "weights.pth"))
    same(forward(case, other), forward(case, model))


@each(CASES)
def test_copies_and_eval_compute_the_same(case):
    model = built(case)
    outputs = forward(case, model)
    same(forward(case, model), outputs)
    file = io.BytesIO()
    torch.save(model, file)  # pickle
    file.seek(0)
    same(forward(case, torch.load(file, weights_only=False)), outputs)
    same(forward(case, copy.deepcopy(model)), outputs)


@each(CASES)
def test_bfloat16(case):
    model = built(case)
    exact = forward(case, model)
    inputs = {name: lowered(value) for name, value in case.arguments().items()}
    near(forward(case, model.bfloat16(), **inputs), exact, 0.15)


def lowered(value: Any) -> Any:
    """A nest of inputs with floats in bfloat16."""
    if isinstance(value, Tensor):
        return value.bfloat16() if value.is_floating_point() else value
    if isinstance(value, list):
        return [lowered(part) for part in value]
    return {k: lowered(v) for k, v in value.items()} if isinstance(value, dict) else value


@each(CASES)
def test_autocast(case):
    model = built(case)
    exact = forward(case, model)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = case.run(model, case.arguments())
    near(outputs, exact, 0.1)
    if any(t.requires_grad for t in outputs.values()):
        objective(outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each(CASES)
def test_any_size_or_a_clear_error(case):
    """Larger pictures, longer sequences: an answer, or a line that says why not."""
    inputs = {name: grown(spec) for name, spec in case.inputs.items()}
    assert inputs != case.inputs, "no input has a size"
    try:
        outputs = forward(dataclasses.replace(case, inputs=inputs), built(case))
    except ZooError:
        return
    assert all(t.isfinite().all() for t in outputs.values() if t.is_floating_point())


def grown(spec: Any, single: bool = False) -> Any:
    """A description of a larger input; in a list stand single pictures."""
    if isinstance(spec, list):
        return [grown(part, True) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if "shape" not in spec:
        return {key: grown(part, single) for key, part in spec.items()}
    shape = list(spec["shape"])
    if len(shape) + single >= 4:
        shape[-2:] = shape[-2] + 3, shape[-1] + 5
    elif len(shape) > 1:
        shape[1] += 1
    return {**spec, "shape": shape}


@each(CASES)
def test_one_is_as_in_a_batch(case):
    model, inputs = built(case), case.arguments()
    sizes = [len(t) for _, t in tensors("input", inputs) if t.dim()]
    if sizes[0] == 1:
        two = {name: doubled(spec) for name, spec in case.inputs.items()}
        inputs = dataclasses.replace(case, inputs=two).arguments()
        sizes = [2]
    whole = case.run(model, inputs)
    last = {name: picked(value, sizes[0]) for name, value in inputs.items()}
    compared = 0
    for path, alone in forward(case, model, **last).items():
        pairs = enumerate(zip(alone.shape, whole[path].shape, strict=True))
        batch = [axis for axis, pair in pairs if pair == (1, sizes[0])]
        if len(batch) == 1:
            expected = whole[path].narrow(batch[0], sizes[0] - 1, 1)
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared, "no output has a batch"


def doubled(spec: Any) -> Any:
    if isinstance(spec, dict) and "shape" in spec and spec["shape"][0] == 1:
        return {**spec, "shape": [2, *spec["shape"][1:]]}
    return spec


def picked(value: Any, batch: int) -> Any:
    """The last of a batch."""
    if isinstance(value, Tensor):
        return value[-1:] if value.dim() and len(value) == batch else value
    if isinstance(value, dict):
        return {key: picked(part, batch) for key, part in value.items()}
    return value[-1:] if isinstance(value, list) and len(value) == batch else value


@each(CASES)
def test_layers_are_called(case):
    """A hook on every layer is reached, so that adapters on them train."""
    model = built(case)
    called: set[str] = set()
    layers = {name: part for name, part in model.named_modules() if isinstance(part, LAYERS)}
    for name, part in layers.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    outputs = forward(case, model)
    assert [n for n in layers if n not in called and not is_idle(case, f"{n}.weight")] == []
    same(outputs, forward(case, built(case)))


@each(FIRST)
def test_adapters_learn(case):
    """A low-rank adapter around every linear layer gets a gradient."""
    torch.manual_seed(0)  # of adapters, which move what a router chooses
    model = built(case).requires_grad_(False)
    adapters = {}
    for name, part in list(model.named_modules()):
        if type(part) is nn.Linear:
            parent, _, child = name.rpartition(".")
            adapters[name] = Adapted(part)
            setattr(model.get_submodule(parent), child, adapters[name])
    if not adapters:
        pytest.skip("there is no linear layer")
    objective(case.run(model, case.arguments())).backward()
    gradients = {name: adapted.up.weight.grad for name, adapted in adapters.items()}
    still = [name for name, grad in gradients.items() if grad is None or not grad.any()]
    assert [name for name in still if not is_idle(case, f"{name}.weight")] == []


class Adapted(nn.Module):
    """LoRA (arXiv 2106.09685) of rank 2."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


@each(FIRST)
def test_int8(case):
    """Linear layers quantised as they are called stay near."""
    model = built(case)
    exact = forward(case, model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    near(forward(case, quantised), exact, 0.3)  # 0.24 where products of bytes saturate (AVX2)


@pytest.fixture
def fresh_compiler():
    """No graphs of other tests, and none for them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@each(FIRST, SLOW)
def test_compile(case, fresh_compiler):
    """One graph without breaks, run as it is: what a backend does with ops is theirs to test."""
    model = built(case)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        outputs = dict(tensors("output", compiled(**case.arguments())))
    torch.testing.assert_close(outputs, forward(case, model), rtol=1e-4, atol=1e-5)


@each(FIRST, SLOW)
def test_export(case):
    model, inputs = built(case), case.arguments()
    program = torch.export.export(model, (), inputs)
    with torch.no_grad():
        outputs = dict(tensors("output", program.module()(**inputs)))
    torch.testing.assert_close(outputs, forward(case, model), rtol=1e-4, atol=1e-5)

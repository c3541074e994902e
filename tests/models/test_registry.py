import json
import subprocess
import sys

import pytest
import timm
import torch

import zoo
from tests.tiny import ROOT
from zoo.errors import ZooError
from zoo.models import _catalogue, registry
from zoo.models._catalogue import catalogue
from zoo.models.registry import register_model

VISION = {"vmamba", "vim", "plainmamba", "efficientvmamba"}
TINY = {"depths": (1, 1, 1, 1), "dims": 8}


def run(code):
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_list():
    names = zoo.list_models("*vmamba_*")
    assert "vmamba_tiny" in names and "efficientvmamba_base" in names and "vim_tiny" not in names
    assert names == sorted(names)
    assert zoo.list_models("no such model") == []


def test_every_vision_model_is_one_of_timm():
    models = {name: zoo.model_info(name) for name in zoo.list_models()}
    vision = {name for name, info in models.items() if info.system in VISION}
    assert len(vision) == 12 + 5 + 3 + 3
    assert vision <= set(timm.list_models())
    for name in vision:
        info = models[name]
        cfg = timm.get_pretrained_cfg(name)
        assert info.family == "vision" and info.description.endswith(".")
        assert bool(cfg.has_weights) == (info.source is not None)
        assert cfg.input_size == (3, 224, 224) and cfg.num_classes == 1000


def test_classifier_and_stem_are_where_timm_is_told():
    for name in zoo.list_models():
        if zoo.model_info(name).system in VISION:
            with torch.device("meta"):
                model = zoo.create_model(name)
            cfg = model.pretrained_cfg
            assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
            assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == 3


def test_info():
    info = zoo.model_info("vim_tiny")
    assert (info.family, info.system) == ("vision", "vim")
    assert info.source == "hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"
    assert zoo.model_info("vmamba_tiny_m2").source is None


def test_every_decorated_function_is_in_the_catalogue():
    files = (ROOT / "zoo" / "models").glob("*/*.py")
    written = sum(text.count("\n@register_") for text in (file.read_text() for file in files))
    assert written == len(catalogue()) == len(zoo.list_models())


MODEL = """
from zoo.models.registry import register_model
from zoo.models.family import parts
from zoo.models.family.parts import COMMON

HUB = "hf://owner/"
PLACES: dict[str, object] = {
    "head": "head",
    "out": (0, 1),
}


@register_model(source=HUB + "name", parameters=1_000, **PLACES)
def one(
    width: int = 3,
    **kwargs,
) -> object:
    \"\"\"The first.\"\"\"


@register_model(
    source=parts.HUB,
    **COMMON,
)
def two(**kwargs):
    \"\"\"The second,

    and more.
    \"\"\"


@register_model()
def three(**kwargs):
    return None
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Another folder of models."""
    folder = tmp_path / "zoo" / "models" / "family"
    folder.mkdir(parents=True)
    (folder / "parts.py").write_text('HUB = "hf://parts"\nCOMMON = {"head": "fc"}\n')
    monkeypatch.setattr(_catalogue, "_ROOT", folder.parent)
    caches = (_catalogue.catalogue, _catalogue._source)
    for cache in caches:
        cache.cache_clear()
    yield folder
    for cache in caches:
        cache.cache_clear()


def test_the_catalogue_reads_constants(sources):
    (sources / "_paper.py").write_text(MODEL)
    found = catalogue()
    assert {name: entry.description for name, entry in found.items()} == {
        "one": "The first.",
        "two": "The second,",
        "three": "",
    }
    assert found["one"].arguments == {
        "source": "hf://owner/name",
        "parameters": 1000,
        "head": "head",
        "out": (0, 1),
    }
    assert found["two"].arguments == {"source": "hf://parts", "head": "fc"}
    info = registry.model_info("one")
    assert (info.family, info.system) == ("family", "paper")
    assert (info.source, info.parameters) == ("hf://owner/name", 1000)


@pytest.mark.parametrize("argument", ["make()", "NOWHERE", "parts.NOWHERE", "1 + 'a'"])
def test_an_argument_that_is_no_constant(sources, argument):
    (sources / "paper.py").write_text(MODEL.replace("1_000", argument))
    with pytest.raises(ValueError, match=r"family\.paper\.one: an argument of @register_model"):
        catalogue()


def test_a_name_stands_in_one_file(sources):
    (sources / "paper.py").write_text(MODEL)
    (sources / "other.py").write_text(MODEL)
    with pytest.raises(ValueError, match=r"'one' is taken by zoo.models.family.other: give"):
        catalogue()


def test_a_model_of_another_package():
    @register_model(parameters=2)
    def test_model_of_another_package(**kwargs):
        """A line."""
        return torch.nn.Linear(1, 1, **kwargs)

    name = "test_model_of_another_package"
    try:
        assert name in zoo.list_models("test_*")
        info = zoo.model_info(name)
        assert (info.system, info.description, info.parameters) == ("test_registry", "A line.", 2)
        assert isinstance(zoo.create_model(name, bias=False), torch.nn.Linear)
    finally:
        registry._others.pop(name)
        registry._builders.pop(name)


def test_unknown_name():
    with pytest.raises(
        ZooError, match=r"there is no model 'vmamba_tinny': did you mean vmamba_tiny"
    ):
        zoo.create_model("vmamba_tinny")
    with pytest.raises(ZooError, match=r"there is no model 'qqqqqq': see zoo.list_models\(\)"):
        zoo.create_model("qqqqqq")


def test_unknown_argument():
    with pytest.raises(ZooError, match=r"cannot build 'vmamba_tiny'.*'width'"):
        zoo.create_model("vmamba_tiny", width=3)


def test_no_published_weights():
    with pytest.raises(ZooError, match="no weights of 'vmamba_tiny_m2' are published"):
        zoo.create_model("vmamba_tiny_m2", pretrained=True)


def test_a_name_is_taken_once():
    def vmamba_tiny():
        raise AssertionError

    with pytest.raises(ValueError, match=r"'vmamba_tiny' is taken by zoo.models.vision.vmamba"):
        register_model()(vmamba_tiny)


@pytest.fixture
def official(tmp_path):
    """A file like the authors': weights under "model", training state beside them."""
    torch.manual_seed(0)
    model = zoo.create_model("vmamba_tiny", **TINY).eval()
    file = tmp_path / "official.pth"
    torch.save({"model": model.state_dict(), "epoch": 1, "max_accuracy": 82.6}, file)
    return model, file


def same(model, other):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other.eval()(images))


def test_pretrained_from_a_file(official):
    model, file = official
    same(model, zoo.create_model("vmamba_tiny", pretrained=str(file), **TINY))


def test_pretrained_features(official):
    model, file = official
    other = zoo.create_model("vmamba_tiny", pretrained=str(file), features_only=True, **TINY)
    images = torch.randn(1, 3, 32, 32)
    maps = model.forward_intermediates(images, intermediates_only=True)
    for mine, theirs in zip(other.eval()(images), maps, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_pretrained_through_timm(official):
    model, file = official
    weights = torch.load(file, weights_only=True)
    for overlay in ({"file": str(file)}, {"file": str(file), "custom_load": True}):
        cfg = {"pretrained_cfg_overlay": overlay}
        same(model, timm.create_model("vmamba_tiny", pretrained=True, **cfg, **TINY))
    cfg = {"pretrained_cfg_overlay": {"state_dict": weights}}
    same(model, timm.create_model("vmamba_tiny", pretrained=True, **cfg, **TINY))


def test_another_number_of_classes_replaces_the_head(official):
    model, file = official
    other = zoo.create_model("vmamba_tiny", pretrained=str(file), num_classes=3, **TINY).eval()
    images = torch.randn(1, 3, 32, 32)
    assert other(images).shape == (1, 3)
    torch.testing.assert_close(other.forward_features(images), model.forward_features(images))


def test_imports_load_no_more_than_they_need():
    code = """if True:
        import json, sys
        seen = []
        import zoo; zoo.__version__; seen.append(list(sys.modules))
        import zoo.ops; seen.append(list(sys.modules))
        import timm
        model = timm.create_model("vim_tiny", depth=1, embed_dim=16, num_classes=2)
        print(json.dumps([*seen, [type(model).__name__, *timm.list_models("plainmamba*")]]))
    """
    with_zoo, with_ops, made = json.loads(run(code))
    assert "torch" not in with_zoo
    heavy = {"timm", "lightning", "transformers", "torchvision", "datasets", "matplotlib"}
    assert "torch" in with_ops and not heavy & {name.partition(".")[0] for name in with_ops}
    assert not any(name.startswith(("zoo.models", "zoo.layers")) for name in with_ops)
    assert made == ["Vim", "plainmamba_l1", "plainmamba_l2", "plainmamba_l3"]


@pytest.mark.slow
def test_timm_knows_the_models_if_it_was_there_first():
    code = "import timm, zoo; print(*timm.list_models('plainmamba*'))"
    assert run(code) == "plainmamba_l1 plainmamba_l2 plainmamba_l3\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("base_lm_small", {"hidden_sise": 8}, "hidden_sise is no setting of Llama; did you mean"),
        ("sinet", {"gate": "shut"}, "gate is 'shut', expected one of softmax, sigmoid, open"),
        (
            "prelude_net_tiny",
            {"decoder": "rnn"},
            "decoder is 'rnn', expected one of conv_lstm, conv",
        ),
        ("prelude_net_tiny", {"mode": "see"}, "mode is 'see', expected one of infer, predict"),
        ("prelude_net_tiny", {"hybrid": "no"}, "hybrid is 'no', expected one of joint, detached"),
        ("taskexpert_conv", {"gate": "open"}, "gate is 'open', expected one of dynamic, static"),
        ("taskexpert_conv", {"norm": "layer"}, "norm is 'layer', expected one of batch, group"),
        (
            "medusa_medical_resnet50",
            {"mode": "add"},
            "mode is 'add', expected one of residual, gate",
        ),
    ],
)
def test_words_that_are_no_choice(name, arguments, message):
    with pytest.raises(ZooError, match=message):
        zoo.create_model(name, **arguments)

"""What replaces parts of torchvision's detectors, by definitions of its own."""

import pytest
import torch

import zoo
from tests.models.vision.test_upernet import authors_key
from zoo.errors import ZooError
from zoo.models.vision._adapter import AdaptedMaps
from zoo.models.vision._detection import Anchors, Regions, Scaling, paste


def official_heads(classes):
    """Names and shapes of MMDetection's FPN, RPNHead, Shared2FCBBoxHead and FCNMaskHead."""
    keys = {}

    def layer(name, *shape):
        keys[f"{name}.weight"], keys[f"{name}.bias"] = shape, shape[:1]

    for i in range(4):
        layer(f"neck.fpn_convs.{i}.conv", 256, 256, 3, 3)
        layer(f"roi_head.mask_head.convs.{i}.conv", 256, 256, 3, 3)
    layer("rpn_head.rpn_conv", 256, 256, 3, 3)
    layer("rpn_head.rpn_cls", 3, 256, 1, 1)
    layer("rpn_head.rpn_reg", 12, 256, 1, 1)
    layer("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49)
    layer("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    layer("roi_head.bbox_head.fc_cls", classes + 1, 1024)
    layer("roi_head.bbox_head.fc_reg", 4 * classes, 1024)
    layer("roi_head.mask_head.upsample", 256, 256, 2, 2)
    layer("roi_head.mask_head.conv_logits", classes, 256, 1, 1)
    return keys


@pytest.mark.parametrize(
    ("name", "backbone", "dim", "arguments"),
    [
        ("mask_rcnn_vmamba_tiny", "vmamba_tiny", 96, {}),
        ("mask_rcnn_vmamba_base", "vmamba_base_s2l15", 128, {}),
        ("mask_rcnn_efficientvmamba_small", "efficientvmamba_small", 96, {"dims": 96}),
    ],
)
def test_official_keys(name, backbone, dim, arguments):
    with torch.device("meta"):
        model, inner = zoo.create_model(name), zoo.create_model(backbone, **arguments)
        official = {
            f"backbone.{key}": value
            for key, value in inner.state_dict().items()
            if not key.startswith("classifier.")
        }
        if backbone.startswith("efficient"):
            official = {authors_key(key, inner): value for key, value in official.items()}
        heads = official_heads(80)
        for i in range(4):
            heads[f"neck.lateral_convs.{i}.conv.weight"] = (256, dim * 2**i, 1, 1)
            heads[f"neck.lateral_convs.{i}.conv.bias"] = (256,)
            heads |= {f"backbone.outnorm{i}.{part}": (dim * 2**i,) for part in ("weight", "bias")}
        official |= {key: torch.empty(shape) for key, shape in heads.items()}
        remapped = model.remap_state_dict(official)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in remapped.items()} == expected
    assert len(remapped) == len(official)


def normed(keys, conv, norm, channels):
    """BatchNorm beside a convolution, which has no bias then."""
    for part in ("weight", "bias", "running_mean", "running_var"):
        keys[f"{norm}.{part}"] = (channels,)
    keys[f"{norm}.num_batches_tracked"] = ()
    keys.pop(f"{conv}.bias", None)


def official_adapter(dim, channels, hidden):
    """Names and shapes of the adapter of PlainMamba's authors, 6 heads with 4 points."""
    keys = {"level_embed": (3, dim), "up.weight": (dim, dim, 2, 2), "up.bias": (dim,)}
    pyramid = [("stem.0", 3, 1), ("stem.3", 1, 1), ("stem.6", 1, 1)]
    pyramid += [("conv2.0", 1, 2), ("conv3.0", 2, 4), ("conv4.0", 4, 4)]
    for name, inner, out in pyramid:
        inner = 3 if inner == 3 else inner * channels
        keys[f"spm.{name}.weight"] = (out * channels, inner, 3, 3)
        place, _, number = name.partition(".")
        normed(keys, f"spm.{name}", f"spm.{place}.{int(number) + 1}", out * channels)
    for i, width in enumerate((1, 2, 4, 4), 1):
        keys[f"spm.fc{i}.weight"] = (dim, width * channels, 1, 1)
        keys[f"spm.fc{i}.bias"] = (dim,)
        normed(keys, "", f"ad_norm{i}", dim)
    for i in range(4):
        place = f"interactions.{i}."
        keys[f"{place}injector.gamma"] = (dim,)
        parts = ["injector", "extractor"]
        parts += ["extra_extractors.0", "extra_extractors.1"] if i == 3 else []
        for part in parts:
            places = 6 * 4 * (3 if part == "injector" else 1)
            shapes = {"query_norm": (dim,), "feat_norm": (dim,), "attn.value_proj": (dim, dim)}
            shapes |= {"attn.sampling_offsets": (2 * places, dim), "attn.output_proj": (dim, dim)}
            shapes |= {"attn.attention_weights": (places, dim)}
            if part != "injector":
                shapes |= {"ffn_norm": (dim,), "ffn.fc1": (hidden, dim), "ffn.fc2": (dim, hidden)}
                shapes |= {"ffn.dwconv.dwconv": (hidden, 1, 3, 3)}
            for name, shape in shapes.items():
                keys[f"{place}{part}.{name}.weight"] = shape
                keys[f"{place}{part}.{name}.bias"] = shape[:1]
    return {f"backbone.{key}": shape for key, shape in keys.items()}


def test_official_keys_of_plainmamba():
    keys = official_heads(80) | official_adapter(192, 64, 48)
    for i in range(4):
        keys[f"neck.lateral_convs.{i}.conv.weight"] = (256, 192, 1, 1)
        keys[f"roi_head.bbox_head.shared_convs.{i}.conv.weight"] = (256, 256, 3, 3)
        for place in ("neck.lateral_convs", "neck.fpn_convs", "roi_head.bbox_head.shared_convs"):
            normed(keys, f"{place}.{i}.conv", f"{place}.{i}.bn", 256)
    for part in ("weight", "bias"):
        del keys[f"roi_head.bbox_head.shared_fcs.1.{part}"]
    with torch.device("meta"):
        model = zoo.create_model("mask_rcnn_plainmamba_l1")
        inner = zoo.create_model("plainmamba_l1", num_classes=0, final_norm=False)
        official = {f"backbone.{key}": value for key, value in inner.state_dict().items()}
        official |= {key: torch.empty(shape) for key, shape in keys.items()}
        remapped = model.remap_state_dict(official)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in remapped.items()} == expected
    assert len(remapped) == len(official)


def test_an_adapter_takes_the_weights_of_its_classifier(tmp_path):
    small = {"embed_dims": 8, "num_layers": 4, "img_size": 32}
    classifier = zoo.create_model("plainmamba_l1", **small, num_classes=3)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "l1.pth")
    maps = AdaptedMaps("plainmamba_l1", heads=2, stem_channels=4, **small)
    before = maps.up.weight.clone()
    zoo.load_pretrained(maps, tmp_path / "l1.pth")
    assert torch.equal(
        maps.net.layers[3].mamba.in_proj.weight, classifier.layers[3].mamba.in_proj.weight
    )
    assert torch.equal(maps.up.weight, before)


def test_an_adapter_runs_its_layers_once_by_quarters(monkeypatch):
    small = {"embed_dims": 8, "num_layers": 8, "img_size": 32}
    maps = AdaptedMaps("plainmamba_l1", heads=2, stem_channels=4, **small).eval()
    seen = []
    run = maps.net.run
    numbers = {id(layer): i for i, layer in enumerate(maps.net.layers)}
    monkeypatch.setattr(maps.net, "run", lambda x, *a: seen.append(numbers[id(x)]) or run(x, *a))
    for i, interaction in enumerate(maps.interactions):
        interaction.injector.register_forward_hook(lambda *a, i=i: seen.append(f"injector {i}"))
    with torch.no_grad():
        found = maps(torch.zeros(1, 3, 32, 64))
    assert [tuple(m.shape[1:]) for m in found] == [(8, 8, 16), (8, 4, 8), (8, 2, 4), (8, 1, 2)]
    quarters = [(f"injector {i}", 2 * i, 2 * i + 1) for i in range(4)]
    assert seen == [step for quarter in quarters for step in quarter]


def test_adapter_mistakes_are_one_line():
    small = {"embed_dims": 8, "num_layers": 4, "img_size": 32}
    with pytest.raises(ZooError, match=r"4, 8, \.\.\. layers, not plainmamba_l1"):
        AdaptedMaps("plainmamba_l1", heads=2, **small | {"num_layers": 6})
    with pytest.raises(ZooError, match="heads are 3, expected a divisor of the width 8"):
        AdaptedMaps("plainmamba_l1", heads=3, **small)
    with pytest.raises(ZooError, match="sides are multiples of 32 with an adapter"):
        AdaptedMaps("plainmamba_l1", heads=2, **small)(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ZooError, match="box_layers is 1, expected 2"):
        zoo.create_model("mask_rcnn_vmamba_tiny", box_layers=1)


def test_background_is_first_and_has_neither_box_nor_mask():
    with torch.device("meta"):
        model = zoo.create_model("mask_rcnn_vmamba_tiny", num_classes=2)
    rows = {
        "rpn_head.rpn_cls.bias": torch.zeros(3),  # what the map knows MMDetection by
        "roi_head.bbox_head.fc_cls.bias": torch.tensor([1.0, 2.0, 9.0]),
        "roi_head.bbox_head.fc_reg.bias": torch.arange(1.0, 9.0),
        "roi_head.mask_head.conv_logits.bias": torch.tensor([5.0, 6.0]),
    }
    heads = model.remap_state_dict(rows)
    head = "detector.roi_heads."
    assert heads[head + "box_predictor.cls_score.bias"].tolist() == [9, 1, 2]
    assert heads[head + "box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + list(range(1, 9))
    assert heads[head + "mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 5, 6]


def test_anchors_stand_at_the_strides_and_keep_their_area():
    anchors = Anchors([4, 64], [[30], [100]], (0.5, 2.0))
    maps = [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]
    pictures = type("List", (), {"tensors": torch.zeros(1, 3, 8, 100), "image_sizes": [(8, 100)]})
    (boxes,) = anchors(pictures, maps)
    assert boxes.shape == (2 * 3 * 2 + 2 * 2, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = torch.tensor([900.0] * 12 + [10000.0] * 4)
    torch.testing.assert_close(sides.prod(1), areas)
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 2.0] * 8))
    centers = (boxes[:, 2:] + boxes[:, :2]) / 2
    corners = [[4 * x, 4 * y] for y in (0, 1) for x in (0, 1, 2) for _ in (0, 1)]
    corners += [[0, 0], [0, 0], [64, 0], [64, 0]]
    torch.testing.assert_close(centers, torch.tensor(corners, dtype=torch.float32))


def test_regions_read_a_map_where_its_pixels_are():
    """The map holds the place of its own pixels' centres: a cell gives the place of its centre."""
    stride, side = 4, 7
    places = stride * (torch.arange(30) + 0.5)
    x = torch.stack([places.expand(30, 30), places[:, None].expand(30, 30)])[None]
    box = torch.tensor([[20.0, 12.0, 75.5, 61.0]])
    cells = Regions([stride], side)({"0": x}, [box], [(120, 120)])[0]
    steps = (torch.arange(side) + 0.5) / side
    torch.testing.assert_close(cells[0], (20 + 55.5 * steps).expand(side, side))
    torch.testing.assert_close(cells[1], (12 + 49 * steps)[:, None].expand(side, side))


def test_regions_come_from_the_map_of_their_size():
    sizes = [10, 111, 113, 223, 225, 447, 449]
    maps = {str(i): torch.full((2, 1, 450, 450), float(i)) for i in range(4)}
    boxes = torch.tensor([[0.0, 0.0, size, size] for size in sizes])
    found = Regions([1, 1, 1, 1], 2)(maps, [boxes[:5], boxes[5:]], [(450, 450)] * 2)
    assert found[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_pictures_are_scaled_to_whole_sides_and_boxes_with_them():
    scaling = Scaling(800, 1333, [0.0], [1.0]).eval()
    for old, new in {(427, 640): (800, 1199), (300, 900): (444, 1333)}.items():
        target = {"boxes": torch.tensor([[0.0, 0.0, old[1], old[0]]])}
        image, scaled = scaling.resize(torch.zeros(1, *old), target)
        assert image.shape[1:] == new
        assert scaled["boxes"].tolist() == [[0, 0, new[1], new[0]]]


def test_masks_train_half_a_pixel_aside():
    scaling = Scaling(8, 8, [0.0], [1.0])
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 4:] = 1
    target = {"boxes": torch.zeros(1, 4), "masks": mask}
    _, scaled = scaling.resize(torch.zeros(1, 8, 8), target)
    assert scaled["masks"][0, 5].tolist() == [0, 0, 0, 0, 0.5, 1, 1, 1]


def test_masks_are_pasted_into_parts_of_pixels():
    # a ramp over a box from 2.5 to 8.5: pixel x, whose centre is x + 0.5, has (x - 2) / 6 of it
    ramp = ((torch.arange(12) + 0.5) / 12).expand(1, 12, 12)
    box = torch.tensor([[2.5, 1.0, 8.5, 7.0]])
    pasted = paste(ramp, box, (9, 11))
    assert pasted.shape == (1, 9, 11)
    inside = (torch.arange(3, 8) - 2) / 6
    torch.testing.assert_close(pasted[0, 1:7, 3:8], inside.expand(6, 5))
    assert pasted[0, 8].abs().max() == 0 and pasted[0, :, 9:].abs().max() == 0
    assert paste(ramp, torch.tensor([[3.0, 3.0, 3.0, 3.0]]), (9, 11)).isfinite().all()

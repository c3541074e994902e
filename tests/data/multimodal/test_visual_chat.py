import json

import pytest
import torch
from PIL import Image

from zoo.data.formats.maps import SmallSample
from zoo.data.formats.tiles import tile_grid, tiles
from zoo.data.multimodal.visual_chat import VisualChat
from zoo.data.synthetic.colour_grids import COLOURS
from zoo.errors import ZooError

SETTINGS = dict(image_size=16, image_tokens=16, max_tiles=1, batch_size=4)


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "grids"
    data = VisualChat(str(root), sample=SmallSample(12, 4, 4, 16), **SETTINGS)
    data.setup("fit")
    data.setup("test")
    return data


def test_made_conversations_tell_the_truth(grids):
    sample = grids.source("train")[0]
    encoded = grids.encode(sample["turns"], [Image.open(path) for path in sample["images"]])
    assert encoded["pixel_values"].shape == (1, 3, 16, 16)
    assert (encoded["input_ids"] == grids.image_token).sum() == 16
    said = grids.tokenizer.decode(encoded["input_ids"][encoded["mask"] > 0])
    answers = [text for speaker, text in sample["turns"] if speaker == "gpt"]
    assert said == " ".join(f"{text} <|im_end|>" for text in answers)
    cell, _ = sample["turns"][0][1].replace("<image>", "").split()
    row, column = cell[1], "abcd".index(cell[0]) + 1
    pixels = grids.to_display(encoded["pixel_values"][0])
    colour = torch.tensor(pixels[int(row) * 4 - 2, int(column) * 4 - 2]).float()
    distances = {name: (colour - torch.tensor(c)).abs().sum() for name, c in COLOURS.items()}
    assert min(distances, key=distances.get) == answers[0]


def test_batches(grids):
    batch = next(iter(grids.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert batch["input_ids"].shape == batch["mask"].shape == batch["present"].shape
    short = {"input_ids": torch.tensor([1, 2]), "mask": torch.ones(2)}
    long = grids.train_transform(grids.source("train")[1])
    mixed = grids.collate([{**long, **short, "pixel_values": torch.zeros(0, 3, 16, 16)}, long])
    assert mixed["present"].sum(1).tolist() == [2, len(long["mask"])]
    assert len(mixed["pixel_values"]) == 1 and mixed["mask"][0].sum() == 2


def test_an_open_turn_and_a_system_turn(grids):
    image = Image.new("RGB", (16, 16))
    data = VisualChat(str(grids.root), system="a1", **SETTINGS)
    ids = data.encode([("human", "<image>\na1 ?"), ("gpt", "")], [image])["input_ids"]
    text = data.tokenizer.decode(ids)
    assert text.startswith("<|im_start|> <unk> a1 <|im_end|> <|im_start|> user <img>")
    assert text.endswith("<|im_end|> <|im_start|> assistant")
    with pytest.raises(ZooError, match="1 pictures but fewer"):
        data.encode([("human", "a1")], [image])


def test_tiles():
    assert tile_grid(448, 448, 448, 12) == (1, 1)
    assert tile_grid(2000, 1000, 448, 12) == (4, 2)  # as 2 x 1, and with room for more
    assert tile_grid(600, 300, 448, 12) == (2, 1)
    wide = Image.new("RGB", (900, 300))
    wide.paste((255, 0, 0), (600, 0, 900, 300))
    cut = tiles(wide, 100, 4)
    assert [tile.size for tile in cut] == [(100, 100)] * 4
    assert cut[2].getpixel((50, 50)) == (255, 0, 0) and cut[0].getpixel((50, 50)) == (0, 0, 0)
    assert len(tiles(wide, 100, 4, thumbnail=False)) == 3


def test_published_files(tmp_path, grids):
    turns = [{"from": "human", "value": "a1 ?"}, {"from": "gpt", "value": "red"}]
    lines = [{"image": "a.png", "conversations": turns}] * 10
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    meta = {"x": {"root": "pictures", "annotation": "x.jsonl", "repeat_time": 2.5}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    data = VisualChat(str(tmp_path), tokenizer=str(grids.root / "tokenizer"), **SETTINGS)
    first = data.source("train")[0]
    assert first["turns"] == [("human", "<image>\na1 ?"), ("gpt", "red")]
    assert first["images"] == [tmp_path / "pictures" / "a.png"]
    assert len(data.source("train")) + len(data.source("val")) + len(data.source("test")) == 25
    with pytest.raises(ZooError, match="no such file"):
        data.train_transform(first)
    (tmp_path / "x.jsonl").write_text('{"conversations": [{}]}')
    with pytest.raises(ZooError, match="line 1"):
        VisualChat(str(tmp_path), **SETTINGS).setup("fit")
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(ZooError, match="expected meta"):
        VisualChat(str(tmp_path), **SETTINGS).setup("fit")
    with pytest.raises(ZooError, match="tokenizer"):
        VisualChat(str(tmp_path), **SETTINGS).tokenizer  # noqa: B018

from pathlib import Path

import pytest

from zoo.data.formats.files import (
    by_stem,
    natural_sorted,
    number_in,
    numbered,
    reading,
)
from zoo.data.formats.pictures import paired
from zoo.errors import ZooError


def test_numbers_in_names_count_as_numbers():
    names = ["2.png", "10.png", "a1b10", "a1b9", "a2b1", "01.png", "1.png", "x/10", "x/9", "x10/1"]
    ordered = [
        "01.png",
        "1.png",
        "2.png",
        "10.png",
        "a1b9",
        "a1b10",
        "a2b1",
        "x/9",
        "x/10",
        "x10/1",
    ]
    assert [str(p) for p in natural_sorted(map(Path, names))] == ordered
    assert natural_sorted([Path("._1.png"), Path("1.png")]) == [Path("1.png")]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("000012.jpg", 12),
        ("c3_f7.txt", 7),
        ("cover.png", None),
        ("v2/frame_0.png", 0),
        ("a.3", None),
    ],
)
def test_the_last_number_counts(name, number):
    assert number_in(name) == number


def test_one_file_of_each_number_and_name():
    files = [Path("f10.png"), Path("f2.jpg"), Path("title.png")]
    assert numbered(files) == {2: Path("f2.jpg"), 10: Path("f10.png")}
    assert list(by_stem(files)) == ["f2", "f10", "title"]
    with pytest.raises(ZooError, match="both have the number 2"):
        numbered([Path("2.png"), Path("02.png")])
    with pytest.raises(ZooError, match="have one name"):
        by_stem([Path("2.png"), Path("2.jpg")])


def test_pictures_are_paired_by_name(tmp_path):
    for name in ("a/2.png", "a/10.png", "b/10.tif", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pairs = paired(tmp_path / "a", tmp_path / "b")
    assert [(a.name, b.name) for a, b in pairs] == [("2.png", "2.jpg"), ("10.png", "10.tif")]
    (tmp_path / "b" / "3.jpg").touch()
    with pytest.raises(ZooError, match=r"a lacks 1 of the 3 pictures of .*b, such as 3"):
        paired(tmp_path / "a", tmp_path / "b")


def test_a_librarys_errors_become_one_line(tmp_path):
    with (
        pytest.raises(ZooError, match=r"it is missing, expected a list"),
        reading(tmp_path / "it", "a list"),
    ):
        (tmp_path / "it").read_text()
    with (
        pytest.raises(ZooError, match=r"cannot be read \(first\), expected a list"),
        reading(tmp_path / "it", "a list"),
    ):
        raise RuntimeError("first\nsecond")
    with (
        pytest.raises(ZooError, match=r"cannot be read \(MemoryError\)"),
        reading(tmp_path / "it", "a list"),
    ):
        raise MemoryError
    with pytest.raises(ZooError, match="mine"), reading(tmp_path / "it", "a list"):
        raise ZooError("mine")

"""Recipes by name and by path, copies of them, and where they are when the package is installed."""

import shutil
import sys
from pathlib import Path

import pytest

import zoo.cp
import zoo.recipes
from tests.tiny import ROOT, tiny_recipe
from zoo.errors import ZooError
from zoo.recipes import all_recipes, find_recipe, recipe_name

SMALL = ROOT / "recipes/vision/vmamba/small.yaml"
WAYS = ("vision/vmamba/small", "vision/vmamba/small.yaml", "recipes/vision/vmamba/small.yaml")


def test_all_recipes():
    found = all_recipes()
    assert set(found.values()) == set(ROOT.glob("recipes/*/*/*.yaml"))
    assert found["vision/vmamba/small"] == SMALL
    assert all(recipe_name(path) == name for name, path in found.items())


@pytest.mark.parametrize("given", [*WAYS, str(SMALL)])
def test_from_any_folder(in_tmp_path, given):
    assert find_recipe(given) == SMALL


@pytest.mark.parametrize("given", WAYS[1:])
def test_a_file_of_the_working_directory_goes_first(in_tmp_path, given):
    mine = in_tmp_path / given
    mine.parent.mkdir(parents=True)
    mine.write_text("")
    assert find_recipe(given) == Path(given)


def test_a_recipe_of_the_working_directory_goes_first(in_tmp_path):
    mine = in_tmp_path / "recipes/vision/vmamba/small.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("")
    (mine.parent / "mine.yaml").write_text("")
    assert find_recipe("vision/vmamba/small") == mine
    assert find_recipe("vision/vmamba/mine") == mine.parent / "mine.yaml"
    assert find_recipe("vision/vmamba/paper") == SMALL.parent / "paper.yaml"


@pytest.mark.parametrize(
    "given, expected",
    [
        ("vision/vmamba/smal", "did you mean vision/vmamba/small"),
        ("vmamba/small", "did you mean vision/vmamba/small"),
        ("recipes/vision/vmamba/smal.yaml", "did you mean vision/vmamba/small"),
        ("nothing", "nothing does not exist, expected a recipe .* zoo list shows what there is"),
        ("folder", "folder is a folder, expected a recipe"),
        ("/vision/vmamba/small", "/vision/vmamba/small does not exist"),
        ("../vision/vmamba/small", "does not exist"),
    ],
)
def test_a_misspelt_name(in_tmp_path, given, expected):
    (in_tmp_path / "folder").mkdir()
    with pytest.raises(ZooError, match=expected):
        find_recipe(given)


def test_a_name_of_a_run():
    assert recipe_name(Path("a/recipes/b/recipes/vision/x/small.yaml")) == "vision/x/small"
    assert recipe_name(Path("site/zoo/_recipes/vision/x/small.yaml")) == "vision/x/small"
    assert recipe_name(Path("elsewhere/mine.yaml")) == "mine"


def test_in_an_installed_package(in_tmp_path, monkeypatch):
    package = in_tmp_path / "site" / "zoo"
    shutil.copytree(ROOT / "recipes/vision", package / "_recipes/vision")
    (in_tmp_path / "site" / "recipes" / "x" / "y").mkdir(parents=True)  # another package's
    (in_tmp_path / "site" / "recipes" / "x" / "y" / "z.yaml").write_text("")
    monkeypatch.setattr(zoo.recipes, "__file__", str(package / "recipes.py"))
    assert find_recipe("vision/vmamba/small") == package / "_recipes/vision/vmamba/small.yaml"
    assert {name.partition("/")[0] for name in all_recipes()} == {"vision"}


def test_cp(in_tmp_path, capsys):
    assert zoo.cp.main(["vision/vmamba/small", "mine.yaml"]) == 0
    assert (in_tmp_path / "mine.yaml").read_bytes() == SMALL.read_bytes()
    assert "zoo train mine.yaml" in capsys.readouterr().out
    assert zoo.cp.main(["vision/vmamba/small", "."]) == 0
    assert (in_tmp_path / "small.yaml").is_file()
    assert zoo.cp.main(["vision/vmamba/small", "new/mine.yml"]) == 0
    capsys.readouterr()
    for arguments, expected in (
        (["vision/vmamba/small", "mine.yaml"], "mine.yaml exists already"),
        (["vision/vmamba/small", "mine.txt"], "mine.txt must end in .yaml"),
        (["vision/vmamba/smal", "a.yaml"], "did you mean vision/vmamba/small"),
        (["vision/vmamba/small", "mine.yaml/a.yaml"], "cannot be made"),
    ):
        assert zoo.cp.main(arguments) == 2
        assert expected in capsys.readouterr().err


def test_commands_take_a_name(in_tmp_path, capsys, monkeypatch):
    tiny_recipe(in_tmp_path / "other" / "x")
    shutil.copytree(in_tmp_path / "other/x/recipes", in_tmp_path / "recipes/family")
    import zoo.evaluate
    import zoo.predict
    import zoo.train

    assert zoo.train.main(["family/test/tiny", "--print_config"]) == 0
    assert "class_path: zoo.data.Digits" in capsys.readouterr().out
    assert zoo.evaluate.main(["family/test/tiny"]) == 2
    assert "has nothing trained in it" in capsys.readouterr().err
    given = ["a.png", "--recipe", "family/test/tiny", "--pretrained", "no.pth"]
    assert zoo.predict.main(given) == 2
    assert "no.pth" in capsys.readouterr().err
    assert "recipes" not in sys.modules

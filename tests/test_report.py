"""The page of a run: all of it in one file."""

import re

import zoo.report


def test_a_run_as_one_page(trained_run, tmp_path, capsys):
    path = tmp_path / "report.html"
    assert zoo.report.main([str(trained_run), "--output", str(path)]) == 0
    page = path.read_text()
    assert "<h1>test/tiny</h1>" in page and trained_run.name in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing beside it
    pictures = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert pictures[0] == "learning curve" and "confusion matrix" in pictures
    rows = (trained_run / "metrics.csv").read_text().splitlines()
    header, last = rows[0].split(","), rows[-1].split(",")
    acc = f"{float(last[header.index('test/acc1')]):.4g}"
    assert f"<li>acc1 <b>{acc}</b></li>" in page
    course = page[page.index("<h2>Course</h2>") :]
    assert len(re.findall("<tr><td>[0-9]", course)) == 3  # epochs
    assert "class_path: zoo.tasks.ImageClassification" in page
    assert str(path) in capsys.readouterr().out


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert zoo.report.main([str(tmp_path)]) == 2
    assert "has no recipe.yaml, expected the folder of a run" in capsys.readouterr().err
    assert zoo.report.main([str(tmp_path), "--output", "it.txt"]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_names_are_text(trained_run, tmp_path):
    """A recipe's own words are no markup."""
    run = tmp_path / "family" / "<b>" / "time"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("# <script>alert(1)</script>\n")
    page = zoo.report.report(run)
    assert "<script>" not in page and "&lt;script&gt;" in page

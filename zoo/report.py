"""``python -m zoo.report RUN``: what came of a run, as one HTML file, pictures inside."""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path
from typing import Any

from zoo.atomic import write_atomically
from zoo.command import command
from zoo.errors import ZooError
from zoo.show import say

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
         max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } .when { color: #666; margin-top: 0; }
  .scores { display: flex; flex-wrap: wrap; gap: 0.75rem; padding: 0; }
  .scores li { list-style: none; border: 1px solid #ddd; border-radius: 0.5rem;
               padding: 0.5rem 1rem; }
  .scores b { display: block; font-size: 1.4rem; }
  figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #666; }
  pre { background: #f6f6f6; border-radius: 0.5rem; padding: 1rem; overflow-x: auto; }
  table { border-collapse: collapse; display: block; overflow-x: auto; }
  td, th { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #eee; }
  th:first-child, td:first-child { text-align: left; }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p class="when">{{ when }}</p>
{% for split, values in scores.items() if values %}
<h2>{{ titles[split] }}</h2>
<ul class="scores">
{% for score, value in values.items() %}<li>{{ score }} <b>{{ value }}</b></li>
{% endfor %}</ul>
{% endfor %}
{% if pictures %}<h2>Pictures</h2>
{% for caption, data in pictures %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}{% endif %}
<h2>Use it</h2>
<pre>zoo predict FILES --checkpoint {{ run }}
zoo evaluate --checkpoint {{ run }}
zoo train --resume {{ run }}</pre>
{% if epochs %}<h2>Course</h2>
<table>
<tr>{% for column in epochs[0] %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in epochs %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
<h2>Recipe</h2>
<pre>{{ recipe }}</pre>
<h2>Environment of this report</h2>
<table>{% for key, value in environment.items() %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
</body>
</html>
"""

TITLES = {"test": "Test", "val": "Last validation", "train": "Last epoch of training"}
#: Pictures by the ends of their names, as a reader wants them.
FIRST = ("learning_curve", "examples", "predictions", "confusion_matrix")


@command
def main(argv: list[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="zoo report", allow_abbrev=False, description="What came of a run, as one HTML file."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run's folder")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default RUN/report.html)"
    )
    given = parser.parse_args(argv)
    output = given.output or given.run / "report.html"
    if output.suffix not in (".html", ".htm"):
        raise ZooError(f"--output: {output} must end in .html")
    page = report(given.run)
    try:
        write_atomically(output, page.encode())
    except (NotADirectoryError, PermissionError) as error:
        raise ZooError(f"--output: {output} cannot be written: {error.strerror}") from None
    say(f"{output}: {len(page) / 2**20:.1f} MiB, open it in a browser")
    return 0


def report(run: Path) -> str:
    """A run as HTML, its pictures inside.

    Args:
        run: its folder.

    Raises:
        ZooError: it is none.
    """
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        raise ZooError(
            f"{run} has no recipe.yaml, expected the folder of a run (runs/<recipe>/<time>)"
        )
    from jinja2 import Environment

    from zoo.info import report as environment
    from zoo.runs.metrics import last_scores

    page = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return page.render(
        name=run.parent.relative_to(run.parents[2]) if len(run.parents) > 2 else run.parent.name,
        when=run.name,
        run=run,
        titles=TITLES,
        scores=last_scores(run / "metrics.csv"),
        pictures=_pictures(run),
        epochs=_epochs(run / "metrics.csv"),
        recipe=recipe.read_text(),
        environment=environment(),
    )


def _pictures(run: Path) -> list[tuple[str, str]]:
    def order(path: Path) -> tuple[int, str]:
        known = path.stem in FIRST
        return FIRST.index(path.stem) if known else len(FIRST), path.stem

    return [
        (path.stem.replace("_", " "), base64.b64encode(path.read_bytes()).decode())
        for path in sorted(run.glob("*.png"), key=order)
    ]


def _epochs(table: Path) -> list[dict[str, Any]]:
    """What training and validation measured in each epoch, one row each."""
    from zoo.runs.metrics import MetricsTable

    epochs: dict[str, dict[str, str]] = {}
    for row in MetricsTable(table).read():
        measured = {
            name: f"{float(value):.4g}"
            for name, value in row.items()
            if value and name.startswith(("train/", "val/")) and name != "train/loss_step"
        }
        if measured:
            epochs.setdefault(row["epoch"], {}).update(measured)
    columns = sorted({name for row in epochs.values() for name in row})
    return [
        {"epoch": epoch, **{name: row.get(name, "") for name in columns}}
        for epoch, row in epochs.items()
    ]


if __name__ == "__main__":
    sys.exit(main())

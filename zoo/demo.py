"""``python -m zoo.demo RUN``: a page on which one drops a file and sees the result."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import allow_class_option
from zoo.command import command
from zoo.errors import ZooError
from zoo.show import say

if TYPE_CHECKING:
    from gradio import Blocks

    from zoo.predictor import Predictor

#: So many results can be downloaded; of earlier ones the files are gone.
KEPT = 20


@command
def main(argv: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="zoo demo",
        allow_abbrev=False,
        description="Serve a page on which one drops a picture, a pair, a sound or a text.",
    )
    parser.add_argument("run", metavar="RUN", help="as zoo.load takes it: run, .ckpt, hf://")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the first GPU)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    allow_class_option(parser)
    given = parser.parse_args(argv)

    from zoo.predictor import load

    predictor = load(given.run, device=given.device, allowed=given.allow_class)
    shown = page(predictor, Path(given.run).name)
    try:
        shown.launch(
            server_name=given.host, server_port=given.port, prevent_thread_lock=True, quiet=True
        )
    except OSError as error:
        raise ZooError(f"--port {given.port}: {error}; choose another") from None
    say(f"http://{given.host}:{given.port}   (Ctrl-C ends it)")
    shown.block_thread()
    return 0


def page(predictor: Predictor, title: str) -> Blocks:
    """The page: an input for each file that the task takes, the picture of the result, its values,
    and what was written.

    Raises:
        ZooError: the task predicts nothing of files that a page can take.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError:
        raise ZooError("zoo demo needs gradio: pip install 'ssm-zoo[demo]'") from None

    task = predictor.task
    kept: deque[Any] = deque(maxlen=KEPT)

    def predict(*values: str | None) -> tuple[Any, dict[str, Any], list[str]]:
        try:
            with tempfile.TemporaryDirectory() as made:
                predicted = predictor.predict(
                    *(
                        _as_file(value, name, Path(made))
                        for name, value in zip(task.input_names, values, strict=True)
                    )
                )
        except ZooError as error:
            raise gradio.Error(" ".join(str(error).split()), print_exception=False) from None
        kept.append(predicted)
        own = {name: value for name, value in predicted.values.items() if name not in _PATHS}
        files = [str(path) for ending, path in predicted.files.items() if ending != ".png"]
        return predicted.figure, own, files

    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {title}\n{type(task).__name__}")
        with gradio.Row():
            with gradio.Column():
                inputs = [_input(gradio, name, task.input_suffixes) for name in task.input_names]
                button = gradio.Button("Predict", variant="primary")
            with gradio.Column(scale=2):
                figure = gradio.Image(label="result", interactive=False)
                values = gradio.JSON(label="values")
                files = gradio.Files(label="files", interactive=False)
        button.click(predict, inputs, [figure, values, files], api_name="predict")
    return blocks


#: Columns of a prediction that name its files.
_PATHS = frozenset({"file", "before", "after", "folder"})


def _input(gradio: Any, name: str, suffixes: frozenset[str]) -> Any:
    if ".png" in suffixes:
        return gradio.Image(type="filepath", label=name)
    if ".wav" in suffixes:
        return gradio.Audio(type="filepath", label=name)
    if ".txt" in suffixes and ".csv" not in suffixes:
        return gradio.Textbox(lines=5, label=name)
    if not suffixes:
        raise ZooError("zoo demo: the task of this run predicts nothing of files")
    return gradio.File(type="filepath", file_types=sorted(suffixes), label=name)


def _as_file(value: str | None, name: str, folder: Path) -> Path:
    """What the page gave: the path of a file, or a text."""
    if not value:
        raise ZooError(f"give the {name} first")
    try:
        if Path(value).is_file():
            return Path(value)
    except OSError:  # a text may be too long for a name
        pass
    path = folder / f"{name}.txt"
    path.write_text(value)
    return path


if __name__ == "__main__":
    sys.exit(main())

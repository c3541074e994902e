"""Made pictures of coloured cells, and questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

COLOURS = {
    "red": (214, 50, 50),
    "green": (60, 160, 70),
    "blue": (50, 90, 200),
    "yellow": (235, 205, 60),
    "purple": (140, 70, 170),
    "white": (240, 240, 240),
}
#: Cells a side.
GRID = 4


def draw_grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """4 x 4 cells of a colour each.

    Returns:
        picture uint8 [S, S, 3], S the largest multiple of 4 up to ``size``; and the numbers of
        the colours in :data:`COLOURS` [4, 4].
    """
    cells = rng.integers(len(COLOURS), size=(GRID, GRID))
    noise = rng.normal(0, 6, (GRID, GRID, 3))
    shades = np.array(list(COLOURS.values()))
    colours = (shades[cells] + noise).clip(0, 255).astype(np.uint8)
    side = size // GRID
    return colours.repeat(side, axis=0).repeat(side, axis=1), cells


def ask(cells: np.ndarray, places: Iterable[int]) -> list[tuple[str, str]]:
    """Questions about cells, counted row by row, and the answers."""
    names = list(COLOURS)
    spots = [divmod(place, GRID) for place in places]
    return [(f"{cell_name(*spot)} ?", names[cells[spot]]) for spot in spots]


def cell_name(row: int, column: int) -> str:
    """As on a chess board, rows from the top: "b3" for the second column of the third row."""
    return f"{'abcd'[column]}{row + 1}"


def word_tokenizer(special: Sequence[str], speakers: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: special ones, the first being padding, those of the speakers, and
    what :func:`ask` says."""
    cells = [cell_name(row, column) for row in range(GRID) for column in range(GRID)]
    words = [*special, "<unk>", *speakers, *cells, "?", *COLOURS]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )

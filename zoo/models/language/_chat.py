"""The conversations of Vicuna as text (FastChat's template ``vicuna_v1.1``)."""

from __future__ import annotations

from collections.abc import Sequence

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna_text(
    turns: Sequence[tuple[str, str]], end: str = "</s>"
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as one text.

    Args:
        turns: ``("user" or "assistant", words)``, the user first and then by turns. If the user is
            the last, the text ends where the assistant's words begin.
        end: token that ends the assistant's words.

    Returns:
        The text, and where in it the assistant's words stand, with the token that ends them.
    """
    text, spans = f"{SYSTEM} ", []
    for speaker, words in turns:
        if speaker == "user":
            text += f"USER: {words} ASSISTANT:"
            continue
        start = len(text)
        text += f" {words}{end}"
        spans.append((start, len(text)))
    return text, spans

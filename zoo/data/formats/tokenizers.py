"""Tokenizers of other people, from a folder or the Hugging Face hub."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zoo.errors import ZooError

#: Numbers without a token that a vocabulary may have for each token.
SPARSEST = 4


def load_tokenizer(
    place: str, setting: str = "data.init_args.tokenizer"
) -> PreTrainedTokenizerBase:
    """A tokenizer; code that comes with it is not run.

    Args:
        place: folder or hub name.
        setting: what named it, for messages.

    Raises:
        ZooError: there is none, it is broken, would run code, or its numbers are far apart.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        vocabulary_size(tokenizer, f"{setting} '{place}'")
    except ZooError:
        raise
    except Exception as error:  # files of strangers raise almost anything in there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ZooError(
            f"{setting} '{place}' cannot be loaded: {reason}; expected a folder with "
            "tokenizer.json, or a name on the Hugging Face hub"
        ) from error
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """One more than the highest number of a token: rows of an embedding that all of them need.

    Raises:
        ZooError: it has no tokens, or so many numbers between them that an embedding would mostly
            be empty.
    """
    numbers = tokenizer.get_vocab().values()
    size = max(numbers, default=-1) + 1
    if not 0 < size <= SPARSEST * (len(numbers) + 1000):
        raise ZooError(
            f"{name} has {len(numbers):,} tokens with numbers up to {size - 1:,}, expected numbers "
            "without gaps"
        )
    return size

"""Text of speech: how it is written for comparison, and its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from zoo.errors import ZooError

#: Padding (and CTC's blank), start and end of a text, whatever is not in the alphabet.
SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
PAD, SOS, EOS, UNKNOWN = range(4)
ENGLISH = "' abcdefghijklmnopqrstuvwxyz"


def plain_text(text: str) -> str:
    """Lower case, letters, digits, apostrophes, single spaces: error rates are counted on that."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower().replace("\u2019", "'")).split())


class Tokens:
    """Text to numbers and back; 0 to 3 are ``SPECIAL``.

    Args:
        tokenizer: with those four tokens first.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def characters(cls, alphabet: str = ENGLISH) -> Tokens:
        """A token for each character."""
        names = [*SPECIAL, *alphabet]
        model = models.WordLevel({name: i for i, name in enumerate(names)}, SPECIAL[UNKNOWN])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return cls(tokenizer)

    @classmethod
    def pieces(cls, texts: Iterable[str], vocab_size: int) -> Tokens:
        """Pieces of words by byte-pair encoding (Sennrich et al. 2016), learned from texts."""
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Tokens:
        """What :meth:`to_json` wrote."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """All that is needed to make the same tokens again."""
        return self.tokenizer.to_str()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without start and end."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; special ones are left out."""
        return self.tokenizer.decode([t for t in tokens if t > UNKNOWN]).strip()


def check_alphabet(tokens: Tokens, texts: Iterable[str], key: str) -> None:
    """Raise :class:`ZooError` if a text has characters that the tokens cannot write."""
    for text in texts:
        if UNKNOWN in tokens.encode(text):
            strange = sorted({c for c in text if UNKNOWN in tokens.encode(c)} - {" "})
            raise ZooError(
                f"{key}: the transcript {text!r} has characters that no token stands for: "
                f"{''.join(strange)}"
            )

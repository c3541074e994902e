"""Tokenizers: of other people, from a folder or the Hugging Face hub, or trained here."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


#: BERT's special tokens, in the order of their numbers when they are trained here.
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of BERT's kind: lower case, word pieces, ``[CLS] a [SEP] b [SEP]``.

    Args:
        texts: that it is trained on.
        vocab_size: at most so many tokens.
    """
    special = list(BERT_TOKENS.values())
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, special.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return wordpiece(tokenizer.to_str())


def wordpiece(written: str) -> PreTrainedTokenizerFast:
    """The tokenizer that :func:`train_wordpiece` made, from its ``backend_tokenizer.to_str()``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(written),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **BERT_TOKENS,
    )

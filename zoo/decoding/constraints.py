"""What moves the target's distribution before anything is verified, and what ends a text.

The settings of :class:`transformers.GenerationConfig` and any processor of transformers: each is a
function of a text and of the logits after it. So they are applied at every node of a tree with the
node's own text, and a lossless verifier then gives the distribution that they define, exactly.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import logits_process as processes
from transformers.generation.stopping_criteria import StopStringCriteria

from zoo.decoding.verify import Draft
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: Any function of texts ``[n, T]`` and logits ``[n, V]`` that gives logits, such as a
#: :class:`transformers.LogitsProcessor`.
Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Prompt:
    """What processors need to know about a sequence before its first token."""

    length: int
    limit: int
    stop: list[int]
    device: torch.device
    source: Tensor | None


def _begin(prompt: _Prompt, config: GenerationConfig) -> int:
    """Where the new text begins; a first token that is forced is not counted."""
    forced = prompt.length == 1 and config.forced_bos_token_id is not None
    return prompt.length + int(forced)


#: Name of a setting, the value with which it changes nothing (None never does), and what makes a
#: processor of any other; in the order in which transformers applies them.
_MAKE: tuple[tuple[str, Any, Callable[[Any, _Prompt, GenerationConfig], Processor]], ...] = (
    ("sequence_bias", None, lambda v, p, c: processes.SequenceBiasLogitsProcessor(v)),
    (
        "encoder_repetition_penalty",
        1,
        lambda v, p, c: processes.EncoderRepetitionPenaltyLogitsProcessor(v, p.source),
    ),
    ("repetition_penalty", 1, lambda v, p, c: processes.RepetitionPenaltyLogitsProcessor(v)),
    ("no_repeat_ngram_size", 0, lambda v, p, c: processes.NoRepeatNGramLogitsProcessor(v)),
    (
        "encoder_no_repeat_ngram_size",
        0,
        lambda v, p, c: processes.EncoderNoRepeatNGramLogitsProcessor(v, p.source),
    ),
    (
        "bad_words_ids",
        None,
        lambda v, p, c: processes.NoBadWordsLogitsProcessor(v, p.stop or None),
    ),
    ("min_length", 0, lambda v, p, c: processes.MinLengthLogitsProcessor(v, p.stop, p.device)),
    (
        "min_new_tokens",
        0,
        lambda v, p, c: processes.MinNewTokensLengthLogitsProcessor(p.length, v, p.stop, p.device),
    ),
    ("forced_bos_token_id", None, lambda v, p, c: processes.ForcedBOSTokenLogitsProcessor(v)),
    (
        "forced_eos_token_id",
        None,
        lambda v, p, c: processes.ForcedEOSTokenLogitsProcessor(p.limit, v, p.device),
    ),
    ("remove_invalid_values", False, lambda v, p, c: processes.InfNanRemoveLogitsProcessor()),
    (
        "exponential_decay_length_penalty",
        None,
        lambda v, p, c: processes.ExponentialDecayLengthPenalty(v, torch.tensor(p.stop), p.length),
    ),
    (
        "suppress_tokens",
        None,
        lambda v, p, c: processes.SuppressTokensLogitsProcessor(v, p.device),
    ),
    (
        "begin_suppress_tokens",
        None,
        lambda v, p, c: processes.SuppressTokensAtBeginLogitsProcessor(v, _begin(p, c), p.device),
    ),
)
#: Settings that do nothing for a model without stop tokens, or without an encoder.
_NEED_STOP = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
_NEED_SOURCE = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
#: Settings that need more than a text and its logits.
_UNKNOWN = (("guidance_scale", 1), ("watermarking_config", None))


def generation_settings(
    model: nn.Module, config: GenerationConfig | None, given: dict[str, Any]
) -> GenerationConfig:
    """The settings of a call.

    Args:
        model: the target, whose own settings hold where nothing else was said.
        config: settings that go before the model's own, where they are not None.
        given: values that go before both, by their names; None says nothing.

    Raises:
        ZooError: for settings that decoding does not have.
    """
    own = getattr(model, "generation_config", None)
    layers = [vars(layer) for layer in (own, config) if layer is not None] + [given]
    config = copy.deepcopy(config or own or GenerationConfig())
    for layer in layers:
        for name, value in layer.items():
            if value is not None:
                setattr(config, name, value)
    for name, off in _UNKNOWN:
        if getattr(config, name, None) not in (None, off):
            raise ZooError(
                f"{name} is {getattr(config, name)!r} in the generation configuration, which "
                "decoding does not have: set it to None there, or use the model's own generate"
            )
    if (config.num_beams or 1) > 1:
        log.warning("%d beams are configured; decoding follows one text", config.num_beams)
    return config


class Constraints:
    """Processors for each sequence of a batch; false if there are none.

    Args:
        config: settings; see :func:`generation_settings`.
        extra: the user's own processors, applied after those of the settings; of two of one class,
            the user's is taken.
        prompts: the texts at the beginning.
        max_new_tokens: of each sequence.
        stop: stop tokens.
        device: of the logits.
        sources: what an encoder read, for each sequence.

    Raises:
        ZooError: for a setting with a wrong value, or a processor that remembers what it was asked.
    """

    def __init__(
        self,
        config: GenerationConfig,
        extra: Iterable[Processor] | None,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Iterable[int],
        device: torch.device,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._extra = list(extra or ())
        made: dict[Any, list[Processor]] = {}  # sequences that begin alike share theirs
        self._chains: list[list[Processor]] = []
        for row, text in enumerate(prompts):
            source = None if sources is None else torch.tensor([sources[row]], device=device)
            key = (len(text), row if sources is not None else None)
            if key not in made:
                limit = len(text) + max_new_tokens
                prompt = _Prompt(len(text), limit, sorted(stop), device, source)
                made[key] = _chain(config, prompt, self._extra)
            self._chains.append(made[key])
        # what knows a source takes one text at a time
        knows = (
            processes.EncoderRepetitionPenaltyLogitsProcessor,
            processes.EncoderNoRepeatNGramLogitsProcessor,
        )
        self._alone = any(isinstance(p, knows) for chain in made.values() for p in chain)

    def __bool__(self) -> bool:
        return any(self._chains)

    def check(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> None:
        """Refuse a user's processor that answers the same question in two ways.

        Args:
            logits: ``[B, V]``.
            texts: what they follow.
        """
        if not self._extra:
            return
        ids = torch.tensor([list(texts[0])], device=logits.device)
        longer = torch.cat([ids, ids[:, -1:]], dim=1)
        for processor in self._extra:
            first, _, again = (
                processor(x, logits[:1].float().clone()).clone() for x in (ids, longer, ids)
            )
            if not torch.equal(first.nan_to_num(), again.nan_to_num()):
                raise ZooError(
                    f"the logits processor {type(processor).__name__} gives two answers for one "
                    "text: in a tree it is asked about many texts in any order, so it must be a "
                    "function of its arguments alone"
                )

    def after(
        self, logits: Tensor, texts: Sequence[Sequence[int]], numbers: Sequence[int]
    ) -> Tensor:
        """Logits ``[n, V]`` after texts, in float32; ``numbers`` are those of their sequences."""
        if not self:
            return logits
        logits = logits.float().clone()
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for place, (text, number) in enumerate(zip(texts, numbers, strict=True)):
            chain = self._chains[number]
            groups[id(chain), len(text), place if self._alone else -1].append(place)
        for places in groups.values():
            ids = torch.tensor([list(texts[place]) for place in places], device=logits.device)
            scores = logits[places]
            for processor in self._chains[numbers[places[0]]]:
                scores = processor(ids, scores)
            logits[places] = scores
        return logits

    def at_nodes(
        self,
        logits: Tensor,
        draft: Draft,
        sequences: Sequence[Sequence[int]],
        numbers: Sequence[int],
    ) -> Tensor:
        """Logits ``[B, N, V]`` of trees, each node's after its own text.

        Args:
            logits: of the target.
            draft: the trees, whose roots are the last tokens of ``sequences``.
            sequences: the decided texts.
            numbers: which sequences of the call these are.
        """
        if not self:
            return logits
        tokens = draft.tokens.tolist()
        rows, nodes, texts = [], [], []
        for row, (tree, sequence) in enumerate(zip(draft.trees, sequences, strict=True)):
            for node in range(len(tree)):
                rows.append(row)
                nodes.append(node)
                texts.append([*sequence, *(tokens[row][n] for n in tree.path(node)[1:])])
        logits = logits.float().clone()
        logits[rows, nodes] = self.after(logits[rows, nodes], texts, [numbers[r] for r in rows])
        return logits


def _chain(config: GenerationConfig, prompt: _Prompt, extra: list[Processor]) -> list[Processor]:
    """The processors of one sequence."""
    chain: list[Processor] = []
    for name, off, make in _MAKE:
        value = getattr(config, name, None)
        idle = (name in _NEED_STOP and not prompt.stop) or (
            name in _NEED_SOURCE and prompt.source is None
        )
        if idle or value is None or (off is not None and value == off):
            continue
        try:
            chain.append(make(value, prompt, config))
        except (ValueError, TypeError, IndexError) as error:
            raise ZooError(f"{name} is {value!r}: {error}") from error
    kinds = {type(processor) for processor in extra}
    return [*(p for p in chain if type(p) not in kinds), *extra]


class Stop:
    """What ends a text: one of some tokens, or one of some strings.

    Args:
        tokens: stop tokens.
        strings: stop strings.
        tokenizer: what the strings are compared by.

    Raises:
        ZooError: if there are strings and no tokenizer.
    """

    def __init__(
        self,
        tokens: Iterable[int] = (),
        strings: str | Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.tokens = frozenset(tokens)
        self._strings: StopStringCriteria | None = None
        if strings:
            if tokenizer is None:
                raise ZooError(
                    f"stop_strings are {strings!r}, which only a tokenizer can tell: give the "
                    "target's as tokenizer"
                )
            names = strings if isinstance(strings, str) else list(strings)
            self._strings = StopStringCriteria(tokenizer, names)

    def ends(self, text: Sequence[int]) -> bool:
        """Whether the text's last token is the last of all."""
        if text[-1] in self.tokens:
            return True
        if self._strings is None:
            return False
        ids = torch.tensor([list(text)])
        return bool(self._strings(ids, torch.empty(1, 0))[0])


def token_set(given: Any, setting: str) -> frozenset[int]:
    """Tokens from a number, a tensor or any nest of these.

    Raises:
        ZooError: if there is something else among them; the message names the ``setting``.
    """
    if given is None:
        return frozenset()
    try:
        return frozenset(_tokens(given))
    except (TypeError, ValueError):
        raise ZooError(f"{setting} is {given!r}, expected a token's number, or several") from None


def _tokens(given: Any) -> Iterator[int]:
    if hasattr(given, "tolist"):  # tensors and arrays
        given = given.tolist()
    if isinstance(given, Iterable) and not isinstance(given, str):
        for part in given:
            yield from _tokens(part)
    elif isinstance(given, (str, bool)) or int(given) != given:
        raise TypeError(given)
    else:
        yield int(given)

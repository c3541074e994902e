"""From encoded audio to text: greedy and beam search over any decoder that goes step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.decoding.beam import Beams
from zoo.decoding.speech.ctc import BLANK, CTCPrefixScorer
from zoo.layers.cache import Cache
from zoo.models.speech._protocol import StepDecoder


@dataclass
class Search:
    """How text is looked for.

    Args:
        beams: texts that are followed at once; 1 is greedy.
        ctc_weight: share of CTC's score in a beam search; the rest is the decoder's.
        length_bonus: added to a text's score for each token, which long texts need.
        max_tokens: longest text.
    """

    beams: int = 1
    ctc_weight: float = 0.3
    length_bonus: float = 0.0
    max_tokens: int = 400


def transcribe(
    decoder: StepDecoder,
    memory: Tensor,
    lengths: Tensor,
    ctc_logits: Tensor | None = None,
    search: Search | None = None,
) -> list[list[int]]:
    """Tokens of the most likely texts, without start and end.

    Args:
        decoder: in evaluation mode.
        memory: encoded audio [B, T, C], padding at the ends.
        lengths: frames of each [B].
        ctc_logits: [B, T, V], for a beam search that weighs them in; None: the decoder alone.
        search: see :class:`Search`; greedy by default.
    """
    search = search or Search()
    if search.beams == 1:
        return greedy(decoder, decoder.begin(memory, lengths), search.max_tokens)
    texts = []
    for i, length in enumerate(lengths.tolist()):
        cache = decoder.begin(memory[i : i + 1, :length], lengths[i : i + 1])
        scorer = None
        if ctc_logits is not None and search.ctc_weight > 0:
            log_probs = ctc_logits[i, :length].float().log_softmax(-1)
            scorer = CTCPrefixScorer(log_probs.cpu(), decoder.EOS)
        texts.append(beam_search(decoder, cache, search, scorer))
    return texts


@torch.no_grad()
def greedy(decoder: StepDecoder, cache: Cache, max_tokens: int) -> list[list[int]]:
    """The likeliest next token until all texts have ended; ``cache`` moves on."""
    device = cache.layers[0].tensors()[0].device
    token = torch.full((cache.batch_size,), decoder.SOS, device=device)
    ended = torch.zeros_like(token, dtype=torch.bool)
    texts: list[list[int]] = [[] for _ in range(cache.batch_size)]
    for _ in range(max_tokens):
        logits = decoder.step(token, cache)
        logits[:, [BLANK, decoder.SOS]] = -torch.inf
        token = logits.argmax(-1)
        ended |= token == decoder.EOS
        if bool(ended.all()):
            break
        for text, new, over in zip(texts, token.tolist(), ended.tolist(), strict=True):
            if not over:
                text.append(new)
    return texts


@torch.no_grad()
def beam_search(
    decoder: StepDecoder, cache: Cache, search: Search, scorer: CTCPrefixScorer | None = None
) -> list[int]:
    """The best text of one recording, whose ``cache`` is at its beginning."""
    share = search.ctc_weight if scorer is not None else 0.0
    beams = Beams(search.beams)
    last = torch.tensor([decoder.SOS])
    scores = torch.zeros(1)  # of the decoder
    states = None if scorer is None else scorer.begin()
    device = cache.layers[0].tensors()[0].device
    for length in range(1, search.max_tokens + 1):
        said = decoder.step(last.to(device), cache).float().log_softmax(-1).cpu()
        whole = scores[:, None] + said  # [N, V]
        total = (1 - share) * whole + search.length_bonus * length
        if scorer is not None and states is not None:
            heard, longer = scorer.score(states, torch.where(last == decoder.SOS, BLANK, last))
            total = total + share * heard
        # any text may end, whether its end is among the best or not
        for text, end in zip(beams.texts, total[:, decoder.EOS].tolist(), strict=True):
            beams.finish(text, end)
        total[:, [BLANK, decoder.SOS, decoder.EOS]] = -torch.inf
        candidates = beams.propose(total, search.beams)
        beams.keep(candidates)
        # without a bonus scores only fall
        if beams.settled(beams.values[0] if candidates and search.length_bonus <= 0 else torch.inf):
            break
        rows = [candidate.row for candidate in candidates]
        last = torch.tensor([candidate.token for candidate in candidates])
        scores = whole[rows, last]
        cache = cache.select(rows)
        if scorer is not None:
            states = longer[rows, last]
    return beams.best.tokens if beams.best is not None else []

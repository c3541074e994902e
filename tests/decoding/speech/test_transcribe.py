"""CTC against all paths of a short recording; searches against all texts of a small decoder."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

import zoo
from zoo.decoding.speech.ctc import CTCPrefixScorer, ctc_align, ctc_greedy
from zoo.decoding.speech.transcribe import Search, beam_search, greedy, transcribe

FRAMES, VOCAB, EOS = 5, 4, 3


def text_of(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


@pytest.fixture(scope="module")
def log_probs():
    torch.manual_seed(0)
    return torch.randn(FRAMES, VOCAB).log_softmax(-1)


@pytest.fixture(scope="module")
def texts(log_probs) -> dict[tuple[int, ...], float]:
    """Probability of every text, over all its paths."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(VOCAB), repeat=FRAMES):
        found[text_of(path)] += math.exp(sum(float(log_probs[t, k]) for t, k in enumerate(path)))
    return found


def test_prefix_scores_are_sums_over_all_paths(log_probs, texts):
    def begins(prefix):
        return math.log(sum(p for text, p in texts.items() if text[: len(prefix)] == prefix))

    scorer = CTCPrefixScorer(log_probs, EOS)
    first, states = scorer.score(scorer.begin(), torch.tensor([0]))
    assert first[0, EOS] == pytest.approx(math.log(texts[()]), abs=1e-4)
    assert first[0, 0] == -math.inf
    for a in (1, 2):
        assert first[0, a] == pytest.approx(begins((a,)), abs=1e-4)
    second, states = scorer.score(states[0, [1, 2]], torch.tensor([1, 2]))
    for row, a in enumerate((1, 2)):
        assert second[row, EOS] == pytest.approx(math.log(texts[(a,)]), abs=1e-4)
        for b in (1, 2):
            assert second[row, b] == pytest.approx(begins((a, b)), abs=1e-4)
    third, _ = scorer.score(states[0, [1, 2]], torch.tensor([1, 2]))
    assert third[0, 1] == pytest.approx(begins((1, 1, 1)), abs=1e-4)


@pytest.mark.parametrize("text", [[1, 2], [1, 1], [2], [2, 1, 2]])
def test_alignment_is_the_likeliest_path(log_probs, text):
    def likelihood(path):
        return sum(float(log_probs[t, k]) for t, k in enumerate(path))

    paths = itertools.product(range(VOCAB), repeat=FRAMES)
    best = max((p for p in paths if text_of(p) == tuple(text)), key=likelihood)
    spans = ctc_align(log_probs, text)
    got = [0] * FRAMES
    for token, (start, end) in zip(text, spans, strict=True):
        got[start:end] = [token] * (end - start)
    assert tuple(got) == best


def test_what_does_not_fit_has_no_alignment(log_probs):
    assert ctc_align(log_probs, [1, 1, 1, 1]) == []
    assert ctc_align(log_probs, []) == []


def test_greedy_reading_takes_out_blanks_and_repetitions():
    best = torch.tensor([0, 2, 2, 0, 2, 1, 1, 0])
    assert ctc_greedy(torch.nn.functional.one_hot(best, 3).float()) == [2, 2, 1]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    sizes = {"d_model": 32, "vocab_size": 6, "n_mels": 8, "encoder_layers": 1, "decoder_layers": 1}
    model = zoo.create_model("samba_asr_tiny", **sizes).eval()
    with torch.no_grad():
        model.decoder.embed.weight.mul_(15)  # so that it has opinions
    return model


@pytest.fixture(scope="module")
def heard(model):
    lengths = torch.tensor([20, 13])
    with torch.no_grad():
        memory, lengths = model.encoder(torch.randn(2, 20, 8), lengths)
        return memory, lengths, model.ctc(memory)


def score(model, memory, lengths, text) -> float:
    tokens = torch.tensor([[model.SOS, *text]])
    with torch.no_grad():
        said = model.decoder(tokens, memory, lengths).log_softmax(-1)[0]
    return sum(float(said[i, t]) for i, t in enumerate([*text, model.EOS]))


def test_greedy_takes_the_best_next_token(model, heard):
    memory, lengths, _ = heard
    found = transcribe(model, memory, lengths, search=Search(max_tokens=8))
    for i, text in enumerate(found):
        tokens = torch.tensor([[model.SOS, *text]])
        with torch.no_grad():
            logits = model.decoder(tokens, memory[i : i + 1], lengths[i : i + 1])[0]
        best = logits[:, 2:].argmax(-1) + 2  # neither padding nor start
        assert best[: len(text)].tolist() == text
        assert len(text) == 8 or best[len(text)] == model.EOS


def test_a_wide_beam_finds_the_best_text(model, heard):
    memory, lengths, _ = heard
    memory, lengths = memory[:1], lengths[:1]
    tokens = [t for t in range(6) if t not in (0, model.SOS, model.EOS)]
    every = [t for n in range(4) for t in itertools.product(tokens, repeat=n)]
    best = max(every, key=lambda text: score(model, memory, lengths, text))
    search = Search(beams=200, max_tokens=4)
    assert tuple(beam_search(model, model.begin(memory, lengths), search)) == best
    (first,) = greedy(model, model.begin(memory, lengths), 4)
    assert score(model, memory, lengths, best) >= score(model, memory, lengths, first)


def test_ctc_can_overrule_the_decoder(model, heard):
    memory, lengths, ctc = heard
    wanted = torch.zeros_like(ctc)
    wanted[:, :, 0] = 5.0
    for place, token in ((2, 4), (5, 3)):
        wanted[:, place, token] = 30.0
    search = Search(beams=4, ctc_weight=0.95, max_tokens=6)
    assert transcribe(model, memory, lengths, wanted, search) == [[4, 3], [4, 3]]

import pytest
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.speech._samba_asr_streaming import SambaStream
from zoo.models.speech.samba_asr import SambaASR

TINY = {"d_model": 32, "vocab_size": 12, "n_mels": 8}
TRANSFORMER = {"mixer": "attention", "cross": "attention", "ffn_mult": 4}
FORMS = [{}, {"bidirectional": False}, {"cross": "attention"}, {"cross": "none"}, TRANSFORMER]


@pytest.mark.parametrize(
    ("name", "both", "causal"),
    [
        ("tiny", 301_856, 236_576),
        ("s", 17_100_680, 11_847_560),
        ("b", 68_634_504, 48_297_864),
        ("l", 148_955_528, 103_704_968),
        ("xl", 448_717_704, 288_727_944),
    ],
)
def test_parameter_count(name, both, causal):
    assert count(f"samba_asr_{name}") == both
    assert count(f"samba_asr_{name}", bidirectional=False) == causal


def recordings(model: SambaASR):
    torch.manual_seed(1)
    lengths = torch.tensor([21, 14, 5])
    tokens = torch.randint(3, model.vocab_size, (3, 6))
    tokens[:, 0] = model.SOS
    return torch.randn(3, 21, model.n_mels), lengths, tokens


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form):
    model = zoo.create_model("samba_asr_tiny", **TINY, **form).eval()
    features, lengths, tokens = recordings(model)
    with torch.no_grad():
        logits, ctc, encoded = model(features, lengths, tokens)
        assert encoded.tolist() == [11, 7, 3] and logits.shape == (3, 6, 12)
        for i, (length, size) in enumerate(zip(lengths, encoded, strict=True)):
            alone = model(features[i : i + 1, :length], lengths[i : i + 1], tokens[i : i + 1])
            torch.testing.assert_close(alone[0][0], logits[i], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(alone[1][0], ctc[i, :size], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_teacher_forcing(form):
    model = zoo.create_model("samba_asr_tiny", **TINY, **form).eval()
    features, lengths, tokens = recordings(model)
    with torch.no_grad():
        parallel = model(features, lengths, tokens)[0]
        cache = model.begin(*model.encoder(features, lengths))
        before = cache.nbytes
        steps = torch.stack([model.step(token, cache) for token in tokens.T], 1)
    torch.testing.assert_close(steps, parallel, atol=1e-5, rtol=1e-4)
    constant = form.get("mixer") != "attention"
    assert (cache.nbytes == before) == constant, "a state of one size, unless it is attention's"


@pytest.mark.parametrize("form", FORMS)
def test_learning(form):
    model = zoo.create_model("samba_asr_tiny", **TINY, **form, dropout=0.0)
    features, lengths, tokens = recordings(model)

    def outputs():
        logits, ctc, _ = model(features, lengths, tokens)
        return torch.cat([logits, ctc], 1)

    check_learning(model, outputs, (3, 17, 12))


def test_the_decoder_hears_unless_it_is_deaf():
    for form, hears in (({}, True), ({"cross": "none"}, False)):
        model = zoo.create_model("samba_asr_tiny", **TINY, **form).eval()
        features, lengths, tokens = recordings(model)
        other = model(features.flip(0), lengths.flip(0), tokens)[0]
        assert torch.allclose(model(features, lengths, tokens)[0], other) != hears


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_a_stream_equals_the_whole_at_constant_memory(size):
    model = zoo.create_model("samba_asr_tiny", **TINY, bidirectional=False).eval()
    features = torch.randn(37, 8)
    with torch.no_grad():
        memory, lengths = model.encoder(features[None], torch.tensor([37]))
        whole, cache = model.ctc(memory)[0], model.begin(memory, lengths)
    stream, pieces = SambaStream(model), features.split(size)
    heard, kept = [], []
    for i, piece in enumerate(pieces):
        heard.append(stream.feed(piece, last=i == len(pieces) - 1))
        kept.append(stream.nbytes)
    torch.testing.assert_close(torch.cat(heard), whole, atol=1e-5, rtol=1e-4)
    token = torch.tensor([1])
    torch.testing.assert_close(
        model.step(token, stream.cache()), model.step(token, cache), atol=1e-5, rtol=1e-4
    )
    assert max(kept) - min(kept) <= 4 * 8 * 4, "but for up to four waiting frames"


def test_wrong_arguments_are_said():
    for arguments, said in (
        ({"mixer": "lstm"}, "mamba or attention, not 'lstm'"),
        ({"cross": "bridge"}, "one of prefix, attention, none, not 'bridge'"),
        ({"mixer": "attention"}, "set cross to attention"),
    ):
        with pytest.raises(ZooError, match=said):
            SambaASR(**TINY, **arguments)
    with pytest.raises(ZooError, match="bidirectional=False"):
        SambaStream(zoo.create_model("samba_asr_tiny", **TINY))

import pytest
import torch

from zoo.data.language.text import PythonSource
from zoo.errors import ZooError
from zoo.tasks.language.language_modeling import LanguageModeling

MODEL = dict(d_model=16, n_layer=2, vocab_size=300)
LAYERS = {
    "mamba_130m": {"ssm_cfg": {"d_state": 4}},
    "mamba2_130m": {
        "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 8},
        "attn_layer_idx": [1],
        "attn_cfg": {"num_heads": 2, "causal": True, "d_conv": 3, "rotary_emb_dim": 8},
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_loss_of_a_packed_document_ignores_the_one_before(name):
    torch.manual_seed(0)
    task = LanguageModeling(name, {**MODEL, **LAYERS[name]}).eval()
    ids = torch.randint(300, (1, 20))
    seq_idx = torch.tensor([[0] * 8 + [1] * 12], dtype=torch.int32)
    mask = torch.ones(1, 20)
    mask[0, 8] = 0

    def second(ids, *seq_idx):
        losses, counted, _ = task._losses(ids, mask, *seq_idx)
        assert counted[0].tolist() == [1] * 7 + [0] + [1] * 11
        return losses[0, 8:]

    other = ids.clone()
    other[0, :8] = torch.randint(300, (8,))
    torch.testing.assert_close(second(other, seq_idx), second(ids, seq_idx))
    alone = task._losses(ids[:, 8:], mask[:, 8:])[0][0]
    torch.testing.assert_close(second(ids, seq_idx), alone, rtol=1e-4, atol=1e-5)
    assert (second(other) - second(ids)).abs().max() > 1e-4  # what packing without it would do


def test_a_model_that_cannot_keep_documents_apart():
    data = PythonSource(length=16, vocab_size=300, separate=True, batch_size=2)
    task = LanguageModeling("base_lm_draft")
    with pytest.raises(ZooError, match="LlamaForCausalLM cannot keep documents apart"):
        task.check_data(data)
    LanguageModeling("mamba_130m", MODEL).check_data(data)


def test_files_that_are_no_text_are_said(tmp_path):
    data = PythonSource(length=16, vocab_size=300, batch_size=2)
    task = LanguageModeling("mamba_130m", MODEL)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for name, expected in (
        ("gone", "is missing, expected a text file"),
        ("binary", "cannot be read"),
        ("empty", "0 tokens, expected a text of 2 or more"),
    ):
        with pytest.raises(ZooError, match=rf"{name}\.txt.* {expected}"):
            task.predict_files([tmp_path / f"{name}.txt"], data, tmp_path)


def test_wrong_arguments_of_a_model_are_said():
    with pytest.raises(ZooError, match=r"^model\.init_args\.model or model_args: "):
        LanguageModeling("mamba_130m", {**MODEL, "d_model": "abc"})

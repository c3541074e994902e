import pytest
import torch

from zoo.errors import ZooError
from zoo.metrics.attention import attention_entropy, attention_kl, monotonicity
from zoo.models.decoding.base_lm import base_lm_small
from zoo.models.language._causal_lm import load_causal_lm, save_causal_lm
from zoo.tasks.language.language_modeling import LanguageModeling
from zoo.tasks.recurrent.attention_distillation import AttentionDistillation


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(0)
    shape = dict(vocab_size=21, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    save_causal_lm(base_lm_small(**shape, initializer_range=0.5), None, tmp_path)
    return str(tmp_path)


def test_the_loss_is_that_of_the_weights_and_of_the_heads(teacher):
    ids = torch.randint(21, (2, 6))
    xent = torch.zeros(())
    for factors in ((1.0, 0.0), (0.0, 1000.0), (2.0, 3.0)):
        task = AttentionDistillation(teacher, xent_factor=factors[0], mse_factor=factors[1])
        found = task.compare(ids)
        xent = torch.stack([-(c.true * c.pred.log()).nan_to_num().sum(-1).mean() for c in found])
        mse = torch.stack([(c.y_pred - c.y_true).square().mean() for c in found])
        expected = factors[0] * xent.mean() + factors[1] * mse.mean()
        torch.testing.assert_close(task.training_loss((ids, torch.ones(2, 6))), expected)
    kl = torch.stack([attention_kl(c.true, c.pred).mean() for c in found])
    entropy = torch.stack([attention_entropy(c.true).mean() for c in found])
    torch.testing.assert_close(kl + entropy, xent)


def test_only_the_maps_learn(teacher):
    task = AttentionDistillation(teacher, {"window": 2})
    learns = {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert learns == {
        f"model.layers.{layer}.self_attn.{name}"
        for layer in (0, 1)
        for name in ("feature_map_q.mlp.layer", "feature_map_k.mlp.layer", "window_factors")
    }
    task.training_loss((torch.randint(21, (2, 6)), torch.ones(2, 6))).backward()
    assert all(
        p.grad is not None and p.grad.any() for p in task.model.parameters() if p.requires_grad
    )
    with pytest.raises(ZooError, match="not both 0"):
        AttentionDistillation(teacher, xent_factor=0)


def test_monotonicity_is_spearmans():
    scores = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 3.0, 2.0]]])
    for last, expected in (([0.1, 0.7, 0.2], 1.0), ([0.7, 0.1, 0.2], -1.0), ([0.2, 0.3, 0.5], 0.5)):
        weights = scores.clone()
        weights[0, -1] = torch.tensor(last)
        assert monotonicity(scores, weights).item() == pytest.approx(expected)


def test_adapters_alone_learn_and_are_merged(teacher, tmp_path):
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj"]}
    task = LanguageModeling(teacher, lora=lora)
    learns = [n for n, p in task.model.named_parameters() if p.requires_grad]
    assert len(learns) == 8 and all("lora_" in n for n in learns)
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids, mask = torch.randint(21, (2, 6)), torch.ones(2, 6)
    save_causal_lm(task.merged(), None, tmp_path / "merged")
    task.eval()
    merged = load_causal_lm(tmp_path / "merged")(input_ids=ids).logits
    torch.testing.assert_close(task.model(input_ids=ids).logits, merged, rtol=1e-4, atol=1e-4)
    task.training_loss((ids, mask)).backward()
    for wrong in ({"rank": 2}, {"target_modules": ["nothing"]}):
        with pytest.raises(ZooError, match=r"model\.init_args\.lora: "):
            LanguageModeling(teacher, lora=wrong)

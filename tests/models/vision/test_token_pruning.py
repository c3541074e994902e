import pytest
import torch
import torch.nn.functional as F

from zoo.errors import ZooError
from zoo.layers.kept_tokens import gap_scan, gaps_before, put, spread, step_sizes, take
from zoo.layers.scan_orders import only_kept, snake
from zoo.metrics.flops import multiply_adds
from zoo.models.vision._pruning import SCORES, best
from zoo.models.vision.token_pruning import PrunedPlainMamba, PrunedVim
from zoo.models.vision.vim import Vim
from zoo.ops import selective_scan
from zoo.proofs.vision.token_pruning import Aligned

VIM = {
    "img_size": 32,
    "patch_size": 8,
    "stride": 8,
    "depth": 4,
    "embed_dim": 32,
    "num_classes": 10,
    "drop_path_rate": 0.0,
    "prune_after": (1, 2),
}
PLAIN = {
    "img_size": 64,
    "embed_dims": 24,
    "num_layers": 4,
    "layers_with_dwconv": (0, 2),
    "num_classes": 10,
    "drop_path_rate": 0.0,
    "prune_after": (1, 2),
}


@pytest.mark.parametrize(
    ("score", "expected"),
    [("clip", [3, 3]), ("sum", [-1, 3]), ("l1", [7, 3]), ("l2", [5, 5**0.5])],
)
def test_scores(score, expected):
    found = SCORES[score](torch.tensor([[[3.0, -4.0], [1.0, 2.0]]]))
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_the_best_in_their_order():
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.5], [4.0, 1.0, 2.0, 3.0]])
    assert best(scores, 2).tolist() == [[1, 3], [0, 3]]
    assert SCORES["random"](torch.zeros(2, 3, 5)).shape == (2, 3)


@pytest.mark.parametrize("gap", ["decay", "close"])
def test_token_counts_of_the_released_schedule(gap):
    model = PrunedVim(embed_dim=16, gap=gap, num_classes=2).eval()
    with torch.no_grad():
        tokens, _ = model.tokens(torch.randn(2, 3, 224, 224))
        counts = [x.shape[1] for x, _, _ in model.states(tokens, 23)]
    assert counts == [197] * 5 + [157] * 5 + [125] * 5 + [101] * 9


def test_aligned_scan_is_the_scan_of_the_whole_sequence():
    errors = Aligned().measure(0).values
    assert errors["sequence"] < 1e-4 and errors["grid"] < 1e-4 and errors["held"] < 1e-5


def test_gradients_of_the_aligned_scan():
    torch.manual_seed(0)
    B, D, N, L, n = 2, 3, 2, 9, 5
    places = torch.rand(B, L).topk(n).indices.sort().values
    u, dt, b, c = (torch.randn(B, k, n, dtype=torch.float64) for k in (D, D, N, N))
    A, skip, bias = -torch.rand(D, N).double(), torch.randn(D).double(), torch.randn(D).double()

    def aligned(u, dt, b, c, bias):
        steps = step_sizes(dt, bias)
        return gap_scan(u, steps, A, b, c, skip, F.softplus(bias), gaps_before(places))

    def whole(u, dt, b, c, bias):
        full = [spread(t.transpose(1, 2), places, L).transpose(1, 2) for t in (u, dt, b, c)]
        y = selective_scan(*full[:2], A, *full[2:], skip, delta_bias=bias, delta_softplus=True)
        return take(y.transpose(1, 2), places).transpose(1, 2)

    given = [t.requires_grad_() for t in (u, dt, b, c, bias)]
    weight = torch.randn(B, D, n, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((f(*given) * weight).sum(), given) for f in (aligned, whole)
    )
    torch.testing.assert_close(found, wanted)


def test_taking_and_putting_back():
    x, places = torch.randn(2, 6, 3), torch.tensor([[0, 2, 5], [1, 3, 4]])
    few = take(x, places)
    assert torch.equal(few, torch.stack([x[0, places[0]], x[1, places[1]]]))
    assert torch.equal(put(x, few, places), x)
    assert spread(few, places, 6).count_nonzero() == few.count_nonzero()
    assert torch.equal(take(spread(few, places, 6), places), few)


def test_orders_of_what_is_kept():
    order = only_kept(snake(2, 3), torch.tensor([[0, 3, 4, 5]]))
    # by rows: cell 0, then 5, 4, 3 after the cells 1 and 2, which are gone
    assert order.index[0].tolist() == [[0, 3, 2, 1]]
    assert order.gaps[0].tolist() == [[0, 2, 0, 0]]
    assert torch.equal(order.index[0].gather(1, order.inverse[0]), torch.arange(4)[None])
    assert only_kept(snake(2, 3), torch.tensor([[0, 5]]), gaps=False).gaps is None


@pytest.mark.parametrize("gap", ["decay", "hold", "close", "mask"])
@pytest.mark.parametrize(("cls", "arguments"), [(PrunedVim, VIM), (PrunedPlainMamba, PLAIN)])
def test_keeping_everything_changes_nothing(cls, arguments, gap):
    torch.manual_seed(0)
    model = cls(**{**arguments, "gap": gap, "keep_ratio": 1.0}).eval()
    images = torch.randn(2, 3, 64, 64)
    backbone = cls.__base__
    plain = backbone(**{k: v for k, v in arguments.items() if k != "prune_after"}).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)


def test_weights_of_the_backbone_load():
    backbone = Vim(**{k: v for k, v in VIM.items() if k != "prune_after"})
    PrunedVim(**VIM).load_state_dict(backbone.state_dict())


def test_class_token_stays_whatever_its_score():
    torch.manual_seed(0)
    model = PrunedVim(**{**VIM, "keep_ratio": 0.3, "score": "random"}).eval()
    with torch.no_grad():
        tokens, _ = model.tokens(torch.randn(16, 3, 64, 64))
        *_, places = model.states(tokens, 3)[-1]
        assert (places == 32).sum(dim=1).eq(1).all()
        kept = model.kept_patches(torch.randn(3, 3, 64, 48))
    assert [k.shape for k in kept] == [(3, 8, 6)] * 2
    assert [k.flatten(1).sum(1).tolist() for k in kept] == [[14] * 3, [4] * 3]


def test_fewer_multiply_adds():
    images = torch.randn(1, 3, 64, 64)
    counts = [
        multiply_adds(PrunedVim(**{**VIM, "keep_ratio": r}).eval(), images) for r in (1.0, 0.7, 0.4)
    ]
    assert counts == sorted(counts, reverse=True) and counts[2] < 0.8 * counts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": "fill"}, "gap is one of decay, hold, close, mask, not fill"),
        ({"score": "best"}, "score is one of clip, sum, l1, l2, random, official_code, not best"),
        ({"keep_ratio": 1.5}, "keep_ratio is a number above 0 and at most 1.*not 1.5"),
        ({"keep_ratio": [0.5, 0.0]}, "keep_ratio is a number above 0 and at most 1"),
        ({"keep_ratio": [0.5]}, r"one for each of prune_after \[1, 2\]"),
        ({"prune_after": (2, 4)}, r"prune_after is numbers of layers from 1 to 3.*not \[2, 4\]"),
        ({"bimamba_type": "v1"}, "a pruned Vim has bimamba_type v2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ZooError, match=message):
        PrunedVim(**{**VIM, **arguments})

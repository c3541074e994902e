import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.cache import Cache, KeyValues, RecurrentState
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2

MIXERS = {
    "mamba": lambda: Mamba(16, d_state=4),
    "mamba2": lambda: Mamba2(16, d_state=8, headdim=8, chunk_size=4),
    "groups": lambda: Mamba2(16, d_state=4, headdim=4, ngroups=2, D_has_hdim=True, bias=True),
    "part": lambda: Mamba2(16, d_state=4, headdim=8, d_ssm=16, norm_before_gate=True),
    "limited": lambda: Mamba2(16, d_state=4, headdim=8, rmsnorm=False, dt_limit=(0.05, 0.5)),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_steps_and_parts_equal_one_pass(kind):
    torch.manual_seed(0)
    mixer, x = MIXERS[kind](), torch.randn(2, 13, 16)
    whole = mixer(x)
    state = mixer.allocate_state(2)
    with torch.no_grad():
        parts = [mixer(part, state) for part in x.split([2, 5, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    other = mixer.allocate_state(2)
    mixer(x, other)  # with gradients
    for after, expected in zip(state.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    single = mixer.allocate_state(2)
    recorded = torch.cat([mixer(token, single) for token in x.split(1, dim=1)], dim=1)
    recorded.sum().backward()
    torch.testing.assert_close(recorded, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MIXERS)
def test_packed_sequences_do_not_leak(kind):
    torch.manual_seed(0)
    mixer, x = MIXERS[kind](), torch.randn(1, 12, 16)
    idx = torch.tensor([[0] * 5 + [1] + [2] * 6], dtype=torch.int32)
    alone = [mixer(part) for part in x.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(mixer(x, seq_idx=idx), torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ZooError, match="seq_idx"):
        mixer(x, mixer.allocate_state(1), idx)


@pytest.mark.parametrize("bimamba_type", ["v1", "v2"])
def test_packed_sequences_in_both_directions(bimamba_type):
    torch.manual_seed(0)
    mixer, x = Mamba(16, d_state=4, bimamba_type=bimamba_type), torch.randn(1, 12, 16)
    idx = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3], dtype=torch.int32)
    alone = [mixer(part) for part in x[:, :9].split([5, 4], dim=1)]
    together = mixer(x, seq_idx=idx)[:, :9]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ZooError, match="one direction"):
        mixer(x, mixer.allocate_state(1))


def test_cache_of_recurrent_layers():
    torch.manual_seed(0)
    mixers = [Mamba(16, d_state=4), Mamba2(16, d_state=8, headdim=8)]
    cache = Cache([mixer.allocate_state(3) for mixer in mixers])
    size = cache.nbytes
    x = torch.randn(3, 7, 16)

    def read(cache, x):
        for mixer, state in zip(mixers, cache.layers, strict=True):
            x = mixer(x, state)
        return x

    with torch.no_grad():
        read(cache, x)
        kept = cache.clone()
        picked = cache.select([2, 2, 0])
        first = read(cache, x[:, :1])
        assert cache.constant_size and cache.nbytes == size == kept.nbytes
        torch.testing.assert_close(read(kept, x[:, :1]), first)
        rows = read(picked, x[[2, 2, 0], :1])
        torch.testing.assert_close(rows, first[[2, 2, 0]])
        both = Cache.stack([cache.select([1]), cache.select([0, 2])])
        assert both.batch_size == 3
        expected = read(cache, x[:, 1:2])[[1, 0, 2]]
        torch.testing.assert_close(read(both, x[[1, 0, 2], 1:2]), expected)
    with pytest.raises(ZooError, match="cannot be cut back to 3"):
        cache.truncate(3)


def test_keys_and_values():
    like = torch.zeros(1)
    a, b = KeyValues.empty(1, 2, 4, like), KeyValues.empty(2, 2, 4, like)
    rows = torch.randn(3, 2, 6, 4)
    a.append(rows[:1, :, :3], -rows[:1, :, :3])
    b.append(rows[1:], -rows[1:])
    assert a.padded is None and not a.constant_size
    both = Cache.stack([Cache([a]), Cache([b])]).layers[0]
    assert both.lengths == [3, 6, 6]
    assert both.padded.tolist() == [[True] * 3 + [False] * 3, [False] * 6, [False] * 6]
    keys, values = both.append(rows[:, :, :1], rows[:, :, :1])
    torch.testing.assert_close(keys[0, :, 3:], rows[0][:, [0, 1, 2, 0]])
    torch.testing.assert_close(values[1, :, :6], -rows[1])
    torch.testing.assert_close(both.select([0]).keys, keys[:1, :, 3:])
    with pytest.raises(ZooError, match="cannot be cut back"):
        both.truncate(2)
    cache = Cache([both.select([1, 2])])
    before = cache.nbytes
    cache.truncate(2)
    torch.testing.assert_close(cache.layers[0].keys, rows[1:, :, :2])
    assert cache.nbytes < before and cache.clone().layers[0].lengths == [2, 2]


def test_one_recurrent_layer_refuses_for_all():
    keys = KeyValues.empty(1, 1, 2, torch.zeros(1))
    keys.append(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    state = RecurrentState(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ZooError, match="recurrent"):
        Cache([keys, state]).truncate(2)
    assert keys.lengths == [5]

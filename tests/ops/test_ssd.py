import pytest
import torch

from zoo.errors import ZooError
from zoo.ops.selective_scan import selective_scan_reference
from zoo.ops.ssd import ssd, ssd_reference

BATCH, HEADS, WIDTH, GROUPS, STATE = 2, 6, 5, 3, 4


def make(length, dtype=torch.float64, requires_grad=False):
    torch.manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_(requires_grad)

    return {
        "x": normal(BATCH, length, HEADS, WIDTH),
        "dt": normal(BATCH, length, HEADS),
        "A": (-torch.rand(HEADS, dtype=dtype)).requires_grad_(requires_grad),
        "B": normal(BATCH, length, GROUPS, STATE),
        "C": normal(BATCH, length, GROUPS, STATE),
        "D": normal(HEADS, WIDTH),
        "z": normal(BATCH, length, HEADS, WIDTH),
        "dt_bias": normal(HEADS),
        "initial_states": normal(BATCH, HEADS, WIDTH, STATE),
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("length", "chunk"), [(50, 16), (7, 16), (32, 16), (1, 4), (9, 1)])
def test_agrees_with_the_reference(length, chunk, packed, reverse):
    inputs = make(length, requires_grad=True)
    options = {"dt_softplus": True, "dt_limit": (0.01, 2.0), "return_final_states": True}
    if packed:
        options["seq_idx"] = torch.randint(0, 3, (BATCH, length)).sort(dim=1).values
    results = []
    for function in (ssd, ssd_reference):
        y, state = function(**inputs, chunk_size=chunk, reverse=reverse, **options)
        loss = y.square().sum() + state.square().sum()
        results.append((y, state, *torch.autograd.grad(loss, list(inputs.values()))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
def test_passing_the_state_on_continues_the_sequence(reverse):
    inputs = make(20)
    state, start = inputs.pop("initial_states"), inputs.pop("D")
    whole, last = ssd(
        **inputs, D=start, initial_states=state, chunk_size=8, return_final_states=True,
        reverse=reverse,
    )  # fmt: skip
    sequences = ("x", "dt", "B", "C", "z")
    halves = [slice(0, 12), slice(12, 20)]
    parts = {}
    for part in reversed(halves) if reverse else halves:
        cut = {k: v[:, part] if k in sequences else v for k, v in inputs.items()}
        y, state = ssd(
            **cut, D=start, initial_states=state, chunk_size=8, return_final_states=True,
            reverse=reverse,
        )  # fmt: skip
        parts[part.start] = y
    torch.testing.assert_close(torch.cat([parts[0], parts[12]], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_is_a_selective_scan_with_one_decay_a_head():
    inputs = make(11)
    y = ssd(
        **{k: inputs[k] for k in ("x", "dt", "A", "B", "C", "D")}, chunk_size=4, dt_softplus=True
    )

    def per_channel(t):  # [B, L, H] to [B, H P, L]
        return t.repeat_interleave(WIDTH, 2).transpose(1, 2)

    expected = selective_scan_reference(
        inputs["x"].flatten(2).transpose(1, 2),
        per_channel(inputs["dt"]),
        inputs["A"].repeat_interleave(WIDTH)[:, None].expand(-1, STATE),
        inputs["B"].permute(0, 2, 3, 1),
        inputs["C"].permute(0, 2, 3, 1),
        inputs["D"].flatten(),
        delta_softplus=True,
    )
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected)


def test_half_precision_is_computed_in_float32():
    inputs = make(40, torch.float32)
    half = {k: v.bfloat16() for k, v in inputs.items()}
    exact = ssd(**{k: v.float() for k, v in half.items()}, dt_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ssd(**half, dt_softplus=True, return_final_states=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y, exact.bfloat16())


def test_gradients():
    inputs = make(6, requires_grad=True)
    names = list(inputs)

    def function(*values):
        return ssd(**dict(zip(names, values, strict=True)), chunk_size=4, dt_softplus=True)

    torch.autograd.gradcheck(function, tuple(inputs.values()), fast_mode=True)


def test_compiles_as_one_graph():
    inputs = make(10, torch.float32)
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs, chunk_size=4), ssd(**inputs, chunk_size=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"ssd takes x \[B, L, H, P\]"),
        ({"x": torch.zeros(BATCH, 0, HEADS, WIDTH)}, "without empty dimensions"),
        ({"B": torch.zeros(BATCH, 5, 4, STATE)}, "6 heads cannot be divided among 4 groups"),
        ({"dt": torch.zeros(BATCH, 5, 2)}, r"dt has shape \(2, 5, 2\), expected \(2, 5, 6\)"),
        ({"chunk_size": 0}, "chunk_size is at least 1"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ZooError, match=message):
        ssd(**{**make(5), **changes})

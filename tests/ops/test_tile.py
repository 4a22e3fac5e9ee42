"""tile against its definition, its backends against each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghn_fast.ops.tile import RULES, Tile, TileTable, tile, tile_, tile_backward
from tests.ops.triton_device import DEVICE, needs_triton

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BACKENDS = ["cpp", "reference"]


def definition(block: Tensor, entry: Tile) -> Tensor:
    """Element after element."""
    out = torch.empty(entry.shape, dtype=torch.float64)
    for place in itertools.product(*map(range, entry.shape)):
        p = block[tuple(i % n for i, n in zip(place, block.shape, strict=True))].double()
        out[place] = {
            "scale": entry.scale * p,
            "norm_weight": 2 * torch.sigmoid(p / 2),
            "bias": torch.tanh(p / 5),
        }[entry.rule]
    return out


def random_blocks(
    number: int, shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype, seed: int
) -> Tensor:
    """(number, *shape) whose dimensions lie in memory in the given order."""
    sizes = (number, *shape)
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn([sizes[i] for i in order], generator=g, dtype=torch.float64)
    return dense.to(dtype).permute(torch.tensor(order, dtype=torch.int64).argsort().tolist())


def some_blocks(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        random_blocks(3, (7, 5, 2, 2), (0, 3, 4, 1, 2), dtype, 0),
        random_blocks(2, (6,), (0, 1), dtype, 1),
        random_blocks(4, (5, 6, 3, 3), (0, 3, 4, 1, 2), dtype, 2),
        random_blocks(2, (1, 9, 4), (0, 1, 2, 3), dtype, 3),
    ]


SOME_TILES = TileTable(
    [
        Tile(0, 0, (16, 9, 3, 2), "scale", 0.3),
        Tile(0, 2, (3, 2, 1, 1), "scale", 2.0),
        Tile(1, 0, (20,), "bias"),
        Tile(1, 1, (4,), "norm_weight"),
        Tile(2, 0, (10, 12, 3, 3)),
        Tile(2, 3, (5, 6, 5, 4), "bias"),
        Tile(2, 3, (4, 5, 2, 2), "scale", 0.5),
        Tile(3, 1, (1, 9, 7)),
    ]
)


@st.composite
def one_tile(draw: st.DrawFn) -> tuple[Tensor, TileTable]:
    dims = draw(st.integers(0, 5))
    size = st.integers(1, 7 if dims < 4 else 4)
    block = tuple(draw(st.lists(size, min_size=dims, max_size=dims)))
    shape = tuple(draw(st.lists(size, min_size=dims, max_size=dims)))
    order = tuple(draw(st.permutations(range(dims + 1))))
    number = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    blocks = random_blocks(number, block, order, dtype, draw(st.integers(0, 99)))
    entry = Tile(0, draw(st.integers(0, number - 1)), shape, draw(st.sampled_from(RULES)), 0.7)
    return blocks, TileTable([entry])


@given(case=one_tile(), dtype=st.sampled_from(DTYPES), backend=st.sampled_from(BACKENDS))
@settings(max_examples=100, deadline=None)
def test_equals_definition(
    case: tuple[Tensor, TileTable], dtype: torch.dtype, backend: str
) -> None:
    blocks, table = case
    entry = table.tiles[0]
    expected = definition(blocks[entry.row], entry)
    (got,) = tile([blocks], table, dtype, backend)
    assert got.dtype == dtype
    # Exact up to one rounding to the blocks' precision and one to the parameter's.
    precision = max(torch.finfo(dtype).eps, torch.finfo(blocks.dtype).eps)
    torch.testing.assert_close(got.double(), expected, rtol=3 * precision, atol=3 * precision)


@given(case=one_tile(), order=st.permutations(range(5)), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_fills_parameters_of_any_layout(
    case: tuple[Tensor, TileTable], order: list[int], dtype: torch.dtype
) -> None:
    blocks, table = case
    shape = table.tiles[0].shape
    order = [i for i in order if i < len(shape)]
    memory = torch.full([shape[i] + 1 for i in order], 7.0, dtype=dtype)
    inner = memory[tuple(slice(1, None) for _ in order)]
    parameter = inner.permute(torch.tensor(order, dtype=torch.int64).argsort().tolist())
    tile_([blocks], table, [parameter], "cpp")
    assert torch.equal(parameter, tile([blocks], table, dtype, "cpp")[0])
    assert memory.eq(7).sum() >= memory.numel() - inner.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_as_pytorch_does(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=g).to(torch.int32)
    exact = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    between = (exact[1:] + exact[:-1]) / 2
    values = torch.cat([bits.view(torch.float32), exact, between])
    table = TileTable([Tile(0, 0, values.shape)])
    (got,) = tile([values[None]], table, dtype, "cpp")
    torch.testing.assert_close(got, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    blocks = [b.requires_grad_() for b in some_blocks()]

    def function(*blocks: Tensor) -> tuple[Tensor, ...]:
        return tuple(tile(blocks, SOME_TILES, backend=backend))

    assert torch.autograd.gradcheck(function, blocks)


@given(case=one_tile())
@settings(max_examples=60, deadline=None)
def test_gradient_equals_reference(case: tuple[Tensor, TileTable]) -> None:
    blocks, table = case
    blocks = blocks.double().requires_grad_()
    direction = torch.randn(table.tiles[0].shape, dtype=torch.float64)
    got, expected = (
        torch.autograd.grad(tile([blocks], table, backend=b), blocks, direction) for b in BACKENDS
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_parameters_of_other_types(dtype: torch.dtype) -> None:
    blocks = [b.float().requires_grad_() for b in some_blocks()]
    outs = [tile(blocks, SOME_TILES, dtype, backend) for backend in BACKENDS]
    directions = [torch.randn_like(out) for out in outs[0]]
    got, expected = (torch.autograd.grad(out, blocks, directions) for out in outs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_gradient_where_some_parameters_are_not_used() -> None:
    blocks = [b.requires_grad_() for b in some_blocks()]
    grads = {}
    for backend in BACKENDS:
        outs = tile(blocks, SOME_TILES, backend=backend)
        loss = outs[1].square().sum() + outs[6].transpose(0, 1).exp().sum()
        grads[backend] = torch.autograd.grad(loss, blocks, materialize_grads=True)
    for got, expected in zip(grads["cpp"], grads["reference"], strict=True):
        torch.testing.assert_close(got, expected)
    assert not grads["cpp"][0][1].any()  # no parameter is made from this block


def test_gradient_lies_as_the_blocks_do() -> None:
    blocks = [b.requires_grad_() for b in some_blocks()]
    outs = tile(blocks, SOME_TILES, backend="cpp")
    grads = torch.autograd.grad(outs, blocks, [torch.ones_like(out) for out in outs])
    assert [g.stride() for g in grads] == [b.stride() for b in blocks]


def test_blocks_that_are_only_scaled_are_not_kept() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    blocks = [b.requires_grad_() for b in some_blocks()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = tile(blocks, TileTable([Tile(0, 0, (16, 9, 3, 2))]), backend="cpp")
    assert outs[0].requires_grad
    assert sum(t.numel() for t in kept) == 0


def test_large_parameters() -> None:
    """Beyond what fits in the caches, with rows that do not begin at cache lines."""
    blocks = random_blocks(1, (64, 63, 3, 3), (0, 3, 4, 1, 2), torch.float32, 0)
    table = TileTable([Tile(0, 0, (1027, 1013, 3, 3), "scale", 0.1)])
    (got,) = tile([blocks], table, backend="cpp")
    assert got.nbytes > 32 << 20
    assert torch.equal(got, tile([blocks], table, backend="reference")[0])


def test_same_bits_for_any_number_of_threads(threads: None) -> None:
    blocks = random_blocks(2, (64, 64, 3, 3), (0, 3, 4, 1, 2), torch.float32, 0).requires_grad_()
    table = TileTable([Tile(0, i, (512, 512, 3, 3)) for i in range(2)])
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outs = tile([blocks], table, backend="cpp")
        results.append([*outs, *torch.autograd.grad(outs, blocks, outs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_filling_is_seen_by_autograd(backend: str) -> None:
    weight = torch.ones(20, requires_grad=True)
    squared = weight.square().sum()
    tile_(some_blocks(), TileTable([Tile(1, 0, (20,), "bias")]), [weight], backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
    assert weight.is_leaf
    assert not weight.eq(1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_filling_in_inference_mode(backend: str) -> None:
    with torch.inference_mode():
        weight = torch.ones(20)
        tile_(some_blocks(), TileTable([Tile(1, 0, (20,), "bias")]), [weight], backend)
    assert not weight.eq(1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_inference_mode(backend: str) -> None:
    table = TileTable([Tile(1, 0, (20,), "bias")])
    with torch.inference_mode():
        blocks, grads = some_blocks(), [torch.ones(20, dtype=torch.float64)]
        found = tile_backward(blocks, table, grads, backend)
    expected = tile_backward(some_blocks(), table, [torch.ones_like(grads[0])], backend)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend: str) -> None:
    assert tile([], TileTable([]), backend=backend) == []
    tile_([], TileTable([]), [], backend)
    (empty,) = tile(some_blocks(), TileTable([Tile(0, 0, (3, 0, 2, 2))]), backend=backend)
    assert empty.shape == (3, 0, 2, 2)


def test_registered_op() -> None:
    blocks = [b.float().detach().requires_grad_() for b in some_blocks()]
    arguments = (blocks, SOME_TILES.entries, SOME_TILES.scales, torch.float32, "cpp")
    torch.library.opcheck(torch.ops.ghn_fast.tile.default, arguments)


def test_compiles_as_one_graph() -> None:
    blocks = [b.requires_grad_() for b in some_blocks()]
    never_used = TileTable(SOME_TILES.tiles)

    def function() -> Tensor:
        return sum(out.square().sum() for out in tile(blocks, never_used))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(), blocks)
    for a, b in zip(got, torch.autograd.grad(function(), blocks), strict=True):
        torch.testing.assert_close(a, b)


def test_table_from_its_entries() -> None:
    again = TileTable.from_entries(SOME_TILES.entries, SOME_TILES.scales)
    assert again.tiles == SOME_TILES.tiles


def test_choice_of_backend() -> None:
    table = TileTable([Tile(0, 0, (3, 2))])
    blocks = torch.randn(1, 2, 2)
    assert torch.equal(*tile([blocks], table), *tile([blocks], table, backend="cpp"))
    (half,) = tile([blocks.bfloat16()], table)
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'cpp' works on"):
        tile([blocks.bfloat16()], table, backend="cpp")
    with pytest.raises(ValueError, match="'cpp' works on"):
        tile([blocks], table, torch.complex64, backend="cpp")
    with pytest.raises(ValueError, match="unknown backend"):
        tile([blocks], table, backend="cuda")
    with pytest.raises(ValueError, match="'triton' works on"):
        tile([blocks.double()], table, backend="triton")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Tile(0, 3, (1, 1, 1, 1)), "block 3 of tensor 0"),
        (Tile(0, -1, (1, 1, 1, 1)), "block -1 of tensor 0"),
        (Tile(4, 0, (1,)), "tensor 4"),
        (Tile(0, 0, (1, 1)), "equally many dimensions"),
    ],
)
def test_bad_tiles(entry: Tile, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile(some_blocks(), TileTable([entry]))


def test_bad_tables() -> None:
    with pytest.raises(ValueError, match="rule"):
        TileTable([Tile(0, 0, (1,), "softmax")])
    with pytest.raises(ValueError, match="6 dimensions"):
        TileTable([Tile(0, 0, (1,) * 6)])


def test_bad_blocks_and_parameters() -> None:
    table = TileTable([Tile(0, 0, (4, 2))])
    blocks = torch.randn(1, 2, 2)
    with pytest.raises(TypeError, match="different dtypes"):
        tile([blocks, blocks.double()], table)
    with pytest.raises(ValueError, match="different devices"):
        tile([blocks, blocks.to("meta")], table)
    with pytest.raises(ValueError, match="empty block"):
        tile([blocks[:, :0]], table)
    with pytest.raises(ValueError, match="2 parameters"):
        tile_([blocks], table, [torch.empty(4, 2)] * 2)
    with pytest.raises(ValueError, match="shape"):
        tile_([blocks], table, [torch.empty(2, 4)])
    with pytest.raises(ValueError, match="expanded"):
        tile_([blocks], table, [torch.empty(4, 1).expand(4, 2)])


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=needs_triton)])
def test_backward_without_autograd(backend: str) -> None:
    device, dtype = (DEVICE, torch.float32) if backend == "triton" else ("cpu", torch.float64)
    blocks = [b.to(device, dtype).requires_grad_() for b in some_blocks()]
    table = SOME_TILES
    parameters = tile(blocks, table, backend="reference")
    grads: list[Tensor | None] = [torch.randn_like(p) for p in parameters]
    grads[1] = None
    pairs = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
    expected = torch.autograd.grad(
        [p for p, _ in pairs], blocks, [g for _, g in pairs], materialize_grads=True
    )
    found = tile_backward([b.detach() for b in blocks], table, grads, backend)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="gradient 0 has shape"):
        tile_backward(blocks, table, [torch.zeros(1), *grads[1:]], backend)


def equal_on_triton(
    blocks: list[Tensor], table: TileTable, dtype: torch.dtype = torch.float32
) -> None:
    """Parameters and gradients are those of the reference."""
    results = []
    for device, backend in ((torch.device("cpu"), "reference"), (DEVICE, "triton")):
        leaves = [b.detach().to(device).requires_grad_() for b in blocks]
        outs = tile(leaves, table, dtype, backend)
        g = torch.Generator().manual_seed(0)
        directions = [torch.randn(t.shape, generator=g).to(device, dtype) for t in table.tiles]
        grads = torch.autograd.grad(outs, leaves, directions)
        results.append([t.cpu() for t in (*outs, *grads)])
        assert all(out.dtype == dtype for out in outs)
    precision = max(torch.finfo(t).eps for t in (dtype, blocks[0].dtype))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=8 * precision, atol=8 * precision)


@needs_triton
@given(case=one_tile(), dtype=st.sampled_from(DTYPES))
@settings(max_examples=30, deadline=None, phases=[Phase.generate])
def test_triton_equals_reference(case: tuple[Tensor, TileTable], dtype: torch.dtype) -> None:
    blocks, table = case
    equal_on_triton([blocks.float()], table, dtype)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_fills_many_parameters(dtype: torch.dtype) -> None:
    equal_on_triton(some_blocks(torch.float32), SOME_TILES, dtype)


@needs_triton
def test_triton_parameters_of_many_parts() -> None:
    """Wide and tall, more rows and columns than a program takes, not multiples of them."""
    blocks = [
        random_blocks(1, (17, 9, 3, 3), (0, 3, 4, 1, 2), torch.float32, 0),
        random_blocks(2, (40,), (0, 1), torch.float32, 1),
        random_blocks(1, (33, 1, 3, 3), (0, 3, 4, 1, 2), torch.float32, 2),
    ]
    tiles = [
        Tile(0, 0, (50, 70, 3, 3), "scale", 0.1),
        Tile(1, 1, (700,), "norm_weight"),
        Tile(2, 0, (300, 1, 3, 3)),
    ]
    equal_on_triton(blocks, TileTable(tiles))


@needs_triton
@given(case=one_tile(), order=st.permutations(range(5)), dtype=st.sampled_from(DTYPES))
@settings(max_examples=20, deadline=None, phases=[Phase.generate])
def test_triton_fills_parameters_of_any_layout(
    case: tuple[Tensor, TileTable], order: list[int], dtype: torch.dtype
) -> None:
    blocks, table = case
    blocks = blocks.float().to(DEVICE)
    shape = table.tiles[0].shape
    order = [i for i in order if i < len(shape)]
    memory = torch.full([shape[i] + 1 for i in order], 7.0, dtype=dtype, device=DEVICE)
    inner = memory[tuple(slice(1, None) for _ in order)]
    parameter = inner.permute(torch.tensor(order, dtype=torch.int64).argsort().tolist())
    tile_([blocks], table, [parameter], "triton")
    assert torch.equal(parameter, tile([blocks], table, dtype, "triton")[0])
    assert memory.eq(7).sum() >= memory.numel() - inner.numel()


@needs_triton
def test_triton_parameters_of_several_dtypes() -> None:
    table = TileTable([Tile(0, 0, (4, 6)), Tile(0, 0, (4, 6), "bias"), Tile(0, 0, (2, 3))])
    blocks = torch.randn(1, 2, 3, device=DEVICE)
    shapes = [tile.shape for tile in table.tiles]
    dtypes = [torch.float16, torch.float32, torch.float64]
    parameters = [
        torch.zeros(s, dtype=d, device=DEVICE) for s, d in zip(shapes, dtypes, strict=True)
    ]
    tile_([blocks], table, parameters, "triton")
    expected = tile([blocks.cpu()], table, backend="reference")
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.cpu(), value.to(parameter.dtype))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_narrow_blocks(dtype: torch.dtype) -> None:
    equal_on_triton(some_blocks(dtype), SOME_TILES, dtype)


@needs_triton
def test_triton_gradient_where_some_parameters_are_not_used() -> None:
    blocks = [b.float().to(DEVICE).requires_grad_() for b in some_blocks()]
    grads = {}
    for backend in ("triton", "reference"):
        outs = tile(blocks, SOME_TILES, backend=backend)
        loss = outs[1].square().sum() + outs[6].transpose(0, 1).exp().sum()
        grads[backend] = torch.autograd.grad(loss, blocks, materialize_grads=True)
    for got, expected in zip(grads["triton"], grads["reference"], strict=True):
        torch.testing.assert_close(got, expected)
    assert [g.stride() for g in grads["triton"]] == [b.stride() for b in blocks]


@needs_triton
def test_triton_registered_op() -> None:
    blocks = [b.float().to(DEVICE).requires_grad_() for b in some_blocks()]
    arguments = (blocks, SOME_TILES.entries, SOME_TILES.scales, torch.float32, "triton")
    torch.library.opcheck(torch.ops.ghn_fast.tile.default, arguments)


@needs_triton
def test_triton_nothing_to_do() -> None:
    blocks = [b.float().to(DEVICE) for b in some_blocks()]
    (empty,) = tile(blocks, TileTable([Tile(0, 0, (3, 0, 2, 2))]), backend="triton")
    assert empty.shape == (3, 0, 2, 2)
    (gradient,) = tile_backward([torch.zeros(0, 2, 2, device=DEVICE)], TileTable([]), [], "triton")
    assert gradient.shape == (0, 2, 2)


@needs_triton
def test_triton_refuses_what_it_cannot_count() -> None:
    from ghn_fast.kernels import tile as kernels

    small, large = ([1, 1, size, 1, 1, 1, 0, 0, 1, 0, 0] for size in (8, 2**31))
    lists = [0], [0], [1.0], torch.float32, DEVICE
    with pytest.raises(ValueError, match=r"of 2147483648 .* is too large for the Triton kernels"):
        kernels.fill([small], [large], *lists)
    with pytest.raises(ValueError, match="is too large for the Triton kernels"):
        kernels.fill_backward([small], [small], [0], [large], *lists)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_without_waiting() -> None:
    blocks = random_blocks(2, (64, 63, 3, 3), (0, 3, 4, 1, 2), torch.float32, 0)
    table = TileTable([Tile(0, i, (1027, 1013, 3, 3), "scale", 0.1) for i in range(2)])
    on_device = blocks.to(DEVICE).requires_grad_()
    tile([on_device], table)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs = tile([on_device], table)
        (grad,) = torch.autograd.grad(outs, [on_device], outs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = tile([blocks.requires_grad_()], table)
    (expected_grad,) = torch.autograd.grad(expected, [blocks], expected)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(outs, expected, strict=True))
    torch.testing.assert_close(grad.cpu(), expected_grad, rtol=1e-4, atol=1e-4)

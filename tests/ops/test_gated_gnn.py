"""gated_gnn against the definition, its backends against each other."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghn_fast._core import core
from ghn_fast.ops import gated_gnn as module
from ghn_fast.ops.gated_gnn import gated_gnn
from ghn_fast.ops.shortest_paths import shortest_paths
from tests.ops.triton_device import DEVICE, needs_triton


@dataclass
class Case:
    """Inputs of gated_gnn."""

    x: Tensor
    distances: Tensor
    num_nodes: Tensor
    weights: list[Tensor]  # of mlp, gru and, if any, mlp_ve
    rounds: int

    def __call__(self, backend: str | None = None) -> Tensor:
        w = self.weights
        return gated_gnn(
            self.x,
            self.distances,
            self.num_nodes,
            w[:4],
            w[8:] or None,
            w[4:8],
            self.rounds,
            backend,
        )

    def to(self, dtype: torch.dtype, requires_grad: bool = False) -> Case:
        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(requires_grad)

        return replace(self, x=move(self.x), weights=[move(w) for w in self.weights])

    def on(self, device: torch.device) -> Case:
        return replace(
            self,
            x=self.x.to(device),
            distances=self.distances.to(device),
            weights=[w.to(device) for w in self.weights],
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *self.weights]


def random_case(
    seed: int,
    sizes: list[int],
    hid: int = 8,
    widths: tuple[int, int | None] = (4, 4),
    rounds: int = 1,
) -> Case:
    """Float64, of random graphs with the given numbers of nodes; widths[1] None: GHN-1."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g) / shape[-1] ** 0.5

    def mlp(width: int) -> list[Tensor]:
        return [normal(width, hid), normal(width), normal(hid, width), normal(hid)]

    distances = [random_distances(n, g).flatten() for n in sizes]
    weights = [*mlp(widths[0]), normal(3 * hid, hid), normal(3 * hid, hid)]
    weights += [normal(3 * hid), normal(3 * hid)]
    if widths[1] is not None:
        weights += mlp(widths[1])
    x = torch.randn(sum(sizes), hid, dtype=torch.float64, generator=g)
    return Case(x, torch.cat(distances), torch.tensor(sizes), weights, rounds)


def random_distances(n: int, g: torch.Generator) -> Tensor:
    """Mostly a chain, with some gaps, branches and shortcuts."""
    density = torch.rand(1, generator=g).item() * 3 / max(n, 1)
    adjacency = torch.rand(n, n, generator=g) < density
    chain = torch.rand(max(n - 1, 0), generator=g) < 0.8
    adjacency |= torch.diag(chain, 1) if n > 1 else False
    return shortest_paths(n, adjacency.triu(1).nonzero())


def definition(case: Case) -> Tensor:
    """Node after node, neighbour after neighbour."""
    w_ih, w_hh, b_ih, b_hh = case.weights[4:8]
    h = list(case.x.unbind(0))

    def mlp(x: Tensor, weights: list[Tensor]) -> Tensor:
        return (weights[2] @ (weights[0] @ x + weights[1]).relu() + weights[3]).relu()

    def message(heard: list[tuple[int, int]]) -> Tensor:
        total = torch.zeros_like(case.x[0])
        for node, distance in heard:
            if distance == 1:
                total = total + mlp(h[node], case.weights[:4])
            if len(case.weights) > 8:
                total = total + mlp(h[node], case.weights[8:]) / distance
        return total

    def gru(m: Tensor, state: Tensor) -> Tensor:
        r_m, z_m, n_m = (w_ih @ m + b_ih).chunk(3)
        r_h, z_h, n_h = (w_hh @ state + b_hh).chunk(3)
        z = torch.sigmoid(z_m + z_h)
        return (1 - z) * torch.tanh(n_m + torch.sigmoid(r_m + r_h) * n_h) + z * state

    for _ in range(case.rounds):
        for forward in (True, False):
            first, entry = 0, 0
            for n in case.num_nodes.tolist():
                d = case.distances[entry : entry + n * n].view(n, n).tolist()
                for v in range(n) if forward else reversed(range(n)):
                    heard = [(u, d[u][v] if forward else d[v][u]) for u in range(n)]
                    heard = [(first + u, distance) for u, distance in heard if distance > 0]
                    h[first + v] = gru(message(heard), h[first + v])
                first, entry = first + n, entry + n * n
    return torch.stack(h)


def gradients(case: Case, backend: str) -> list[Tensor]:
    """The result and the gradients of a fixed function of it."""
    out = case(backend)
    direction = torch.randn(
        out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    grads = torch.autograd.grad(out, case.leaves, direction.to(out), materialize_grads=True)
    return [out, *grads]


@pytest.fixture(params=["baseline", "avx2"])
def narrower_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = core.isa()
    try:
        core.use_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    core.use_isa(before)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("width_ve", [4, 6, None])
@pytest.mark.parametrize("rounds", [1, 2])
def test_equals_definition(backend: str, width_ve: int | None, rounds: int) -> None:
    case = random_case(rounds, [7, 1, 12], widths=(4, width_ve), rounds=rounds)
    torch.testing.assert_close(case(backend), definition(case))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("width_ve", [3, None])
def test_gradcheck(backend: str, width_ve: int | None) -> None:
    case = random_case(3, [6, 4], hid=3, widths=(2, width_ve), rounds=2)

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return replace(case, x=x, weights=list(weights))(backend)

    case = case.to(torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, case.leaves)


@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    hid=st.sampled_from([5, 16, 32, 48, 64]),
    width=st.integers(1, 40),
    width_ve=st.none() | st.integers(1, 40),
    rounds=st.integers(1, 2),
)
@settings(max_examples=30, deadline=None)
def test_cpp_equals_reference(
    seed: int, sizes: list[int], hid: int, width: int, width_ve: int | None, rounds: int
) -> None:
    case = random_case(seed, sizes, hid, (width, width_ve), rounds)
    case = case.to(torch.float64, requires_grad=True)
    for got, expected in zip(gradients(case, "cpp"), gradients(case, "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("hid", [32, 48, 64])
@pytest.mark.parametrize("width_ve", [16, None])
def test_cpp_float32(hid: int, width_ve: int | None) -> None:
    case = random_case(hid, [60, 33, 80], hid, (hid // 2, width_ve))
    single = gradients(case.to(torch.float32, requires_grad=True), "cpp")
    double = gradients(case.to(torch.float64, requires_grad=True), "reference")
    for got, expected in zip(single, double, strict=True):
        assert got.dtype == torch.float32
        error = (got - expected).abs().max() / expected.abs().max()
        assert error < 1e-5


def test_long_graph_beyond_the_reach_of_virtual_edges() -> None:
    edges = torch.stack([torch.arange(199), torch.arange(1, 200)], 1)
    case = random_case(0, [200], 16, (8, 8)).to(torch.float64, requires_grad=True)
    case = replace(case, distances=shortest_paths(200, edges).flatten())
    for got, expected in zip(gradients(case, "cpp"), gradients(case, "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("hid", [16, 48, 80])
def test_narrower_instructions(narrower_isa: None, hid: int) -> None:
    case = random_case(hid, [60, 33, 7], hid, (24, 40)).to(torch.float64, requires_grad=True)
    double = gradients(case, "reference")
    for got, expected in zip(gradients(case, "cpp"), double, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    single = gradients(case.to(torch.float32, requires_grad=True), "cpp")
    for got, expected in zip(single, double, strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "backend", ["reference", "cpp", pytest.param("triton", marks=needs_triton)]
)
@pytest.mark.parametrize("place", [1, 3, 9, 11])
def test_what_is_no_number_stays_none(backend: str, place: int) -> None:
    """A ReLU must not make zero of it: training looks for losses that are not finite."""
    case = random_case(0, [5, 4], 8, (4, 4)).to(torch.float32, requires_grad=True)
    with torch.no_grad():
        case.weights[place].view(-1)[0] = float("nan")
    if backend == "triton":
        case = case.on(DEVICE)
    heard = case(backend)
    assert heard.isnan().any(dim=1).sum() == case("reference").isnan().any(dim=1).sum() > 5
    found = torch.autograd.grad(heard.sum(), case.weights)
    assert torch.nn.utils.get_total_norm(found).isnan()


@pytest.mark.parametrize("widths", [(0, 4), (4, 0)])
def test_a_hidden_layer_without_units(widths: tuple[int, int]) -> None:
    for backend in ("reference", "cpp"):
        with pytest.raises(ValueError, match=r"the hidden layer of mlp.* has no units"):
            random_case(0, [5, 4], 8, widths).to(torch.float32)(backend)


def test_half_precision_is_added_up_in_float32() -> None:
    case = random_case(3, [60, 40], 32, (32, 32))
    rounded = case.to(torch.bfloat16)
    exact = rounded.to(torch.float64)("reference")
    assert torch.equal(rounded("reference"), rounded.to(torch.float32)("reference").bfloat16())
    error = (rounded("reference").double() - exact).abs().max() / exact.abs().max()
    assert error < 2**-8


def test_instructions_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="avx1024"):
        core.use_isa("avx1024")


def test_same_bits_for_any_number_of_threads(threads: None) -> None:
    sizes = [60, 70, 5, 80, 66, 90, 40]
    # Enough work for three threads in either direction.
    case = random_case(0, sizes, 64, (32, 32), rounds=6).to(torch.float32, requires_grad=True)
    torch.set_num_threads(1)
    alone = gradients(case, "cpp")
    for count in (2, 3):
        torch.set_num_threads(count)
        together = gradients(case, "cpp")
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_graphs_of_a_batch_do_not_mix(backend: str) -> None:
    case = random_case(5, [9, 14, 3])
    together = case(backend)
    node, entry = 0, 0
    for n in case.num_nodes.tolist():
        alone = replace(
            case,
            x=case.x[node : node + n],
            distances=case.distances[entry : entry + n * n],
            num_nodes=torch.tensor([n]),
        )
        torch.testing.assert_close(alone(backend), together[node : node + n])
        node, entry = node + n, entry + n * n


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_any_topological_order(backend: str) -> None:
    # 0 -> 1 -> 3, 0 -> 2 -> 3, 2 -> 4: nodes 1 and 2 may be exchanged, so may 3 and 4.
    edges = torch.tensor([[0, 1], [0, 2], [1, 3], [2, 3], [2, 4]])
    order = torch.tensor([0, 2, 1, 4, 3])
    case = random_case(6, [5])
    first = replace(case, distances=shortest_paths(5, edges).flatten())
    second = replace(case, x=case.x[order], distances=shortest_paths(5, order[edges]).flatten())
    torch.testing.assert_close(first(backend)[order], second(backend))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_arguments_are_left_as_they_are(backend: str) -> None:
    case = random_case(7, [5, 8])
    before = [t.clone() for t in (*case.leaves, case.distances)]
    case(backend)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*case.leaves, case.distances), strict=True)
    )


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_strided_arguments(backend: str) -> None:
    case = random_case(8, [5, 8]).to(torch.float64, requires_grad=True)
    expected = gradients(case, backend)
    spread = [torch.stack([t, t], -1)[..., 0].detach().requires_grad_() for t in case.leaves]
    assert not spread[0].is_contiguous()
    got = gradients(replace(case, x=spread[0], weights=spread[1:]), backend)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 2]])
def test_empty_graphs(backend: str, sizes: list[int]) -> None:
    case = random_case(9, [*sizes, 4]).to(torch.float64, requires_grad=True)
    nodes = sum(sizes)
    entries = sum(n * n for n in sizes)
    case = replace(
        case,
        x=case.x[:nodes].detach().requires_grad_(),
        distances=case.distances[:entries],
        num_nodes=torch.tensor(sizes, dtype=torch.int64),
    )
    out, *grads = gradients(case, backend)
    assert out.shape == (nodes, 8)
    assert all(torch.isfinite(g).all() for g in grads)


def test_second_derivative_of_reference() -> None:
    case = random_case(10, [4], hid=2, widths=(2, 2)).to(torch.float64, requires_grad=True)

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return replace(case, x=x, weights=list(weights))("reference")

    assert torch.autograd.gradgradcheck(function, case.leaves)


def test_gradient_with_respect_to_x_alone() -> None:
    case = random_case(11, [6, 5]).to(torch.float64)
    case.x.requires_grad_()
    for backend in ("cpp", "reference"):
        case.x.grad = None
        case(backend).square().sum().backward()
        assert case.x.grad is not None
        assert case.x.grad.abs().sum() > 0


def test_autocast_keeps_full_precision() -> None:
    case = random_case(12, [6, 5]).to(torch.float32)
    for backend in ("cpp", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = case(backend)
        assert torch.equal(inside, case(backend))


def test_registered_op() -> None:
    case = random_case(13, [5, 7]).to(torch.float32, requires_grad=True)
    arguments = (case.x, case.distances, case.num_nodes, case.weights, case.rounds)
    torch.library.opcheck(torch.ops.ghn_fast.gated_gnn.default, (*arguments, True, "cpp"))


def test_compiles_as_one_graph() -> None:
    case = random_case(14, [5, 7]).to(torch.float32, requires_grad=True)
    compiled = torch.compile(lambda: case().square().sum(), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(case().square().sum(), case.leaves)
    for got, wanted in zip(torch.autograd.grad(compiled(), case.leaves), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_choice_of_backend() -> None:
    case = random_case(15, [5])
    assert module.default_backend(case.x) == "cpp"
    assert module.default_backend(case.x.bfloat16()) == "reference"
    assert module.default_backend(case.x.to("meta")) == "reference"
    assert torch.equal(case(), case("cpp"))
    assert case.to(torch.bfloat16)().dtype == torch.bfloat16


def break_shape_of_x(case: Case) -> Case:
    return replace(case, x=case.x[:-1])


def break_distances(case: Case) -> Case:
    return replace(case, distances=case.distances[:-1])


def break_order(case: Case) -> Case:
    distances = case.distances.clone()
    distances[-5] = 1  # in the last row, before the diagonal
    return replace(case, distances=distances)


def break_diagonal(case: Case) -> Case:
    distances = case.distances.clone()
    distances[0] = 1
    return replace(case, distances=distances)


def break_weights(index: int) -> Case:
    case = random_case(16, [5, 6])
    weights = list(case.weights)
    weights[index] = weights[index][:-1]
    return replace(case, weights=weights)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_shape_of_x, "do not fit"),
        (break_distances, "do not fit"),
        (break_order, "upper triangular"),
        (break_diagonal, "upper triangular"),
        (lambda case: replace(case, x=case.x[0]), "shape"),
        (lambda case: replace(case, rounds=0), "rounds"),
        (lambda case: replace(case, num_nodes=-case.num_nodes), "do not fit"),
        (lambda case: break_weights(0), "mlp must have shapes"),
        (lambda case: break_weights(5), "gru must have shapes"),
        (lambda case: break_weights(11), "mlp_ve must have shapes"),
    ],
)
def test_bad_values(backend: str, change, message: str) -> None:
    case = change(random_case(16, [5, 6]))
    with pytest.raises(ValueError, match=message):
        case(backend)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_bad_types(backend: str) -> None:
    case = random_case(17, [5, 6])
    with pytest.raises(TypeError, match="uint8"):
        replace(case, distances=case.distances.long())(backend)
    with pytest.raises(TypeError, match="int64"):
        replace(case, num_nodes=case.num_nodes.int())(backend)
    with pytest.raises(TypeError, match="dtype"):
        replace(case, weights=[w.float() for w in case.weights])(backend)


def test_bad_backends() -> None:
    case = random_case(18, [5, 6])
    with pytest.raises(ValueError, match="unknown backend"):
        case("cuda")
    with pytest.raises(ValueError, match="float32 and float64"):
        case.to(torch.bfloat16)("cpp")
    with pytest.raises(ValueError, match="float32, float16 and bfloat16"):
        case("triton")


def equal_on_triton(case: Case, tolerance: float = 1e-5) -> None:
    """Result and gradients in float32 are those of the reference in float64.

    A sum whose terms cancel has no digits left in float32, whoever adds it up, and on another
    processor other ones are lost. How far that may go is measured, by what the exact values do
    where all inputs are a little wrong.
    """
    case = case.to(torch.float32)
    exact = gradients(case.to(torch.float64, requires_grad=True), "reference")
    moved = [gradients(disturbed(case, seed), "reference") for seed in range(4)]
    got = gradients(case.on(DEVICE).to(torch.float32, requires_grad=True), "triton")
    for number, (value, expected) in enumerate(zip(got, exact, strict=True)):
        assert value.dtype == torch.float32
        error = (value.cpu() - expected).abs().max()
        inevitable = max((others[number] - expected).abs().max() for others in moved)
        assert error <= max(tolerance * expected.abs().max(), 4 * inevitable)


def disturbed(case: Case, seed: int) -> Case:
    """Float64, with each input as far from its value as float32's rounding may take it."""
    g = torch.Generator().manual_seed(seed)
    eps = torch.finfo(torch.float32).eps

    def disturb(tensor: Tensor) -> Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=g) * 2 - 1
        return tensor.double() * (1 + eps * signs)

    x, *weights = (disturb(tensor).requires_grad_() for tensor in case.leaves)
    return replace(case, x=x, weights=weights)


@needs_triton
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    hid=st.sampled_from([5, 16, 32, 48]),
    width=st.integers(1, 20),
    width_ve=st.none() | st.integers(1, 20),
)
@example(seed=115801327, sizes=[1, 2], hid=16, width=1, width_ve=None)  # a gradient cancels
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
def test_triton_equals_reference(
    seed: int, sizes: list[int], hid: int, width: int, width_ve: int | None
) -> None:
    equal_on_triton(random_case(seed, sizes, hid, (width, width_ve)))


@needs_triton
def test_triton_where_sizes_exceed_blocks() -> None:
    """Hidden units, nodes of a level and nodes heard."""
    edges = torch.cat([torch.tensor([[0, v], [v, 71]]) for v in range(1, 71)])
    case = random_case(0, [72], 96, (48, 65))
    equal_on_triton(replace(case, distances=shortest_paths(72, edges).flatten()), 1e-4)


@needs_triton
def test_triton_rounds() -> None:
    case = random_case(1, [4, 3], rounds=2)
    equal_on_triton(case)
    with torch.no_grad():
        kept = case.on(DEVICE).to(torch.float32)("triton")
    torch.testing.assert_close(kept.cpu().double(), case("reference"), rtol=1e-5, atol=1e-5)


@needs_triton
def test_triton_renumbers_nodes() -> None:
    # Two branches one after the other, which share levels: 0 -> 1 -> 2 -> 5, 0 -> 3 -> 4 -> 5.
    edges = torch.tensor([[0, 1], [1, 2], [2, 5], [0, 3], [3, 4], [4, 5]])
    case = random_case(2, [6])
    equal_on_triton(replace(case, distances=shortest_paths(6, edges).flatten()))


@needs_triton
@pytest.mark.parametrize("sizes", [[], [0], [2, 0, 1]])
def test_triton_empty_graphs(sizes: list[int]) -> None:
    case = random_case(9, [*sizes, 2])
    nodes, entries = sum(sizes), sum(n * n for n in sizes)
    case = replace(
        case,
        x=case.x[:nodes],
        distances=case.distances[:entries],
        num_nodes=torch.tensor(sizes, dtype=torch.int64),
    )
    got = gradients(case.on(DEVICE).to(torch.float32, requires_grad=True), "triton")
    exact = gradients(case.to(torch.float64, requires_grad=True), "reference")
    for value, expected in zip(got, exact, strict=True):
        torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@needs_triton
def test_triton_bfloat16() -> None:
    """Inputs and results are rounded, what is between is not."""
    case = random_case(3, [5], 16, (8, 8)).to(torch.bfloat16, requires_grad=True)
    got = gradients(case.on(DEVICE).to(torch.bfloat16, requires_grad=True), "triton")
    # The fixed function's direction is rounded too.
    exact = gradients(case.to(torch.float32, requires_grad=True), "reference")
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == torch.bfloat16
        error = (value.cpu().float() - expected).abs().max()
        assert error <= 2**-7 * expected.abs().max()


@needs_triton
def test_triton_under_autocast() -> None:
    case = random_case(12, [3, 2]).on(DEVICE).to(torch.float32)
    expected = case("triton")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(case("triton"), expected)
        narrow = replace(case, x=case.x.bfloat16())
        assert narrow("triton").dtype == torch.float32


@needs_triton
def test_triton_registered_op() -> None:
    case = random_case(13, [3, 2]).on(DEVICE).to(torch.float32, requires_grad=True)
    arguments = (case.x, case.distances, case.num_nodes, case.weights, case.rounds)
    torch.library.opcheck(
        torch.ops.ghn_fast.gated_gnn.default,
        (*arguments, True, "triton"),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


@needs_triton
def test_triton_frees_what_it_kept() -> None:
    case = random_case(14, [3]).on(DEVICE).to(torch.float32, requires_grad=True)
    out = case("triton")
    kept = [weakref.ref(tensor) for tensor in out.grad_fn.saved_tensors]  # type: ignore[union-attr]
    del out
    case_tensors = {id(tensor) for tensor in (case.distances, case.num_nodes, *case.leaves)}
    assert all(ref() is None or id(ref()) in case_tensors for ref in kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("hid", [32, 96, 384])
def test_on_a_gpu(hid: int) -> None:
    sizes = [160, 1, 509, 33, *[90] * 20]
    case = random_case(hid, sizes, hid, (hid // 2, hid // 2))
    equal_on_triton(case, 1e-4)
    on_device = case.on(DEVICE).to(torch.float32)
    assert module.default_backend(on_device.x) == "triton"
    first = on_device()
    assert all(torch.equal(first, on_device()) for _ in range(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_stream_without_waiting() -> None:
    case = random_case(0, [160, 90], 32, (16, 16)).on(DEVICE)
    case = case.to(torch.float32, requires_grad=True)
    expected = gradients(case, "triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            out = case()
            direction = torch.ones_like(out)
            torch.autograd.grad(out, case.leaves, direction)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(out, expected[0])

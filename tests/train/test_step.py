from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghn_fast._system.workers import one_core_workers
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.graph import GraphBatch
from ghn_fast.train import NetworkStream, Processes, TrainConfig, train_step
from ghn_fast.train.networks import Drawn
from ghn_fast.train.step import (
    Arrival,
    _add_decay,
    _limit_networks,
    _normalise_networks,
    _Outcome,
    train_step_as_they_come,
)

CONFIG = TrainConfig(meta_batch=3, widths=(16,), max_work=20)


@pytest.fixture(scope="module")
def networks() -> list[Drawn]:
    return NetworkStream(CONFIG, 10).draw(0)[0]


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 10, (8,), generator=generator)


def make_ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(hid=8, max_shape=(16, 16, 7, 7)).train()


def sgd(ghn: GHN) -> torch.optim.Optimizer:
    """Leaves what the gradient was in the weights."""
    return torch.optim.SGD(ghn.parameters(), lr=0.1)


def parts(networks: list[Drawn]) -> tuple[list[nn.Module], GraphBatch]:
    return [n.model for n in networks], GraphBatch([n.graph for n in networks])


class Scaled(nn.Module):
    """A network whose outputs are multiplied; its parameters keep their names."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.__dict__["_modules"] = model._modules
        self.__dict__["run"] = model
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.__dict__["run"](images)
        return outputs * self.factor


def scale(network: Drawn, factor: float) -> Drawn:
    return Drawn(Scaled(network.model, factor), network.graph, network.work)


def poison(network: Drawn) -> Drawn:
    return scale(network, float("nan"))


def gradients(ghn: GHN) -> list[Tensor]:
    return [torch.zeros(1) if p.grad is None else p.grad for p in ghn.parameters()]


def test_gradient_is_that_of_the_mean_loss(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    wanted = make_ghn()
    models, graphs = parts(networks)
    wanted(models, graphs)
    loss = torch.stack([F.cross_entropy(model(batch[0]), batch[1]) for model in models]).mean()
    loss.backward()
    ghn = make_ghn()
    result = train_step(ghn, models, graphs, *batch, sgd(ghn), grad_clip=0)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.updated
    for got, want in zip(gradients(ghn), gradients(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def test_parts_give_the_gradient_of_the_whole(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    """In float64, where rounding does not decide."""
    images, labels = batch
    results = []
    for accumulate in (1, 3):
        ghn = make_ghn().double()
        options = {"grad_clip": 0.0, "accumulate": accumulate}
        step = train_step(ghn, *parts(networks), images.double(), labels, sgd(ghn), **options)
        results.append((step.losses, gradients(ghn)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for whole, added in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(added, whole, rtol=1e-9, atol=1e-12)


def test_labels_are_smoothed(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    losses, models = [], [network.model for network in networks]

    def measure(model: nn.Module, arguments: object, logits: Tensor) -> None:
        losses.append(F.cross_entropy(logits.detach(), batch[1], label_smoothing=0.3).item())

    hooks = [model.register_forward_hook(measure) for model in models]
    ghn = make_ghn()
    smooth = train_step(ghn, *parts(networks), *batch, sgd(ghn), label_smoothing=0.3)
    for hook in hooks:
        hook.remove()
    assert smooth.losses == pytest.approx(losses, rel=1e-6)
    sharp = train_step(make_ghn(), *parts(networks), *batch, sgd(make_ghn()))
    assert smooth.loss != pytest.approx(sharp.loss, rel=1e-3)


def test_decay_of_predicted_parameters(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    wanted = make_ghn()
    models, graphs = parts(networks)
    wanted(models, graphs)
    losses = [F.cross_entropy(model(batch[0]), batch[1]) for model in models]
    norms = [p.norm() for model in models for p in model.parameters()]
    (torch.stack(losses).mean() + 0.5 * torch.stack(norms).sum() / len(models)).backward()
    ghn = make_ghn()
    result = train_step(ghn, models, graphs, *batch, sgd(ghn), grad_clip=0, predicted_decay=0.5)
    assert result.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    for got, want in zip(gradients(ghn), gradients(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def test_threads_change_nothing(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    models, graphs = parts(networks)
    alone, shared = make_ghn(), make_ghn()
    for count, ghn in ((1, alone), (3, shared)):
        # One core each: sums over several may be rounded otherwise from one run to the next.
        with one_core_workers(count) as workers:
            train_step(ghn, models, graphs, *batch, sgd(ghn), workers=workers)
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_need_not_be_on(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    """Neither in the thread that calls nor in those of the networks."""
    models, graphs = parts(networks)
    usual, off = make_ghn(), make_ghn()
    train_step(usual, models, graphs, *batch, sgd(usual))
    start = {"initializer": torch.set_grad_enabled, "initargs": (False,)}
    with torch.no_grad(), ThreadPoolExecutor(1, **start) as workers:
        assert train_step(off, models, graphs, *batch, sgd(off), workers=workers).updated
    for one, other in zip(gradients(usual), gradients(off), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6)


class Waits(TorchDispatchMode):
    """Counts the numbers that are fetched one by one, each a wait for the device if it is a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_does_not_wait_for_each_network(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    ghn = make_ghn()
    models, graphs = parts(networks)
    with Waits() as waits:
        train_step(ghn, models, graphs, *batch, sgd(ghn))
    assert waits.count == 1, "only the norm of the GHN's gradient"


def test_denormals_are_flushed_in_every_thread(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    seen = []

    def look(*arguments: object) -> None:
        seen.append(bool(smallest / 2 == 0))

    ghn = make_ghn()
    models, graphs = parts(networks)
    hooks = [model.register_forward_hook(look) for model in models]
    optimizer = sgd(ghn)
    optimizer.register_step_pre_hook(look)
    with ThreadPoolExecutor(2) as workers:
        train_step(ghn, models, graphs, *batch, optimizer, workers=workers)
    for hook in hooks:
        hook.remove()
    assert seen == [True] * (len(models) + 1)
    assert smallest / 2 > 0


def test_a_bad_network_is_left_out(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    good, bad = make_ghn(), make_ghn()
    train_step(good, *parts(networks[:2]), *batch, sgd(good), grad_clip=0)
    spoiled = [networks[0], networks[1], poison(networks[2])]
    result = train_step(bad, *parts(spoiled), *batch, sgd(bad), grad_clip=0)
    assert result.errors == {2: "the loss is nan"}
    assert result.updated
    assert len(result.own_top1) == 3
    assert math.isnan(result.own_top1[2])
    assert sum(result.own_top1[:2]) / 2 == pytest.approx(result.top1)
    for got, want in zip(gradients(bad), gradients(good), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def test_a_step_without_a_finite_loss_is_skipped(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    ghn = make_ghn()
    before = [parameter.clone() for parameter in ghn.parameters()]
    result = train_step(ghn, *parts([poison(networks[0])]), *batch, sgd(ghn))
    assert not result.updated
    assert result.loss != result.loss
    assert all(torch.equal(a, b) for a, b in zip(before, ghn.parameters(), strict=True))


def test_clipping_limits_the_gradient(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    ghn = make_ghn()
    result = train_step(ghn, *parts(networks), *batch, sgd(ghn), grad_clip=1e-3)
    norm = torch.stack([g.norm() for g in gradients(ghn)]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert result.gradient_norm > 1e-2


def test_an_exploding_network_does_not_decide_alone(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    steps = [(0.0, scale(networks[1], 100.0)), (1.5, networks[1]), (1.5, scale(networks[1], 100.0))]
    results = []
    for network_clip, second in steps:
        ghn = make_ghn()
        models, graphs = parts([networks[0], second, networks[2]])
        options = {"grad_clip": 0.0, "network_clip": network_clip}
        results.append(train_step(ghn, models, graphs, *batch, sgd(ghn), **options))
    unlimited, usual, limited = results
    assert unlimited.limited == 0 < limited.limited
    assert limited.gradient_norm < 5 * usual.gradient_norm < 0.5 * unlimited.gradient_norm


def test_the_median_and_the_count_are_of_all_processes() -> None:
    """The limit is 1.5 times the median 2; a network as long as the limit is not too long."""
    norms = [1.0, 1.5, 2.0, 3.0, 8.0]
    outcomes = [_Outcome(0.0, norm=norm, gradients=[torch.full((4,), norm / 2)]) for norm in norms]
    outcomes.append(_Outcome(0.0, norm=9.0, error="the loss is nan", gradients=[torch.ones(81)]))
    together = [outcome.summary() for outcome in outcomes]
    own = outcomes[3:]
    assert _limit_networks(own, together, 0.0) == 0
    assert _limit_networks(own, together, 1.5) == 1
    assert [outcome.gradients[0].norm().item() for outcome in own] == [3.0, 3.0, 9.0]
    assert _limit_networks(own[2:], together[5:], 1.5) == 0, "there is no median"
    assert _limit_networks(own, together, 1.0) == 2


def test_gradients_are_scaled_to_length_1() -> None:
    none = torch.zeros(4)
    outcomes = [
        _Outcome(0.0, norm=0.5, gradients=[torch.full((4,), 0.25), None]),
        _Outcome(0.0, norm=0.0, gradients=[none]),
        _Outcome(0.0, norm=9.0, error="the loss is nan", gradients=[torch.ones(81)]),
    ]
    _normalise_networks(outcomes)
    assert [outcome.gradients[0].norm().item() for outcome in outcomes] == [1.0, 0.0, 9.0]


def test_a_parameter_that_is_zero_does_not_decay() -> None:
    leaves = [torch.zeros(3), torch.tensor([3.0, 4.0]), torch.ones(2)]
    leaves[0].grad, leaves[1].grad = torch.ones(3), torch.zeros(2)
    _add_decay(leaves, 0.5)
    assert torch.equal(leaves[0].grad, torch.ones(3))
    assert leaves[1].grad.tolist() == pytest.approx([0.3, 0.4])
    assert leaves[2].grad is None, "it took no part"


def test_normalised_networks_count_alike(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    """However large the gradient of a network is, its part of the GHN's gradient is the same."""

    def gradient(network: Drawn) -> Tensor:
        ghn = make_ghn()
        train_step(ghn, *parts([network]), *batch, sgd(ghn), grad_clip=0, normalise_networks=True)
        return torch.cat([part.flatten() for part in gradients(ghn)])

    whole = sum((gradient(network) for network in networks), torch.zeros(())) / len(networks)
    ghn = make_ghn()
    models, graphs = parts(networks)
    train_step(ghn, models, graphs, *batch, sgd(ghn), grad_clip=0, normalise_networks=True)
    together = torch.cat([part.flatten() for part in gradients(ghn)])
    torch.testing.assert_close(together, whole, rtol=1e-3, atol=1e-6)


def test_top1_is_the_share_of_right_answers(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = networks[0].model.forward
    models, graphs = parts(networks[:1])
    answer = 100 * F.one_hot(torch.tensor(3), 10)
    monkeypatch.setattr(models[0], "forward", lambda images: forward(images) * 0 + answer)
    labels = torch.tensor([3, 3, 3, 0, 1, 2, 4, 5])
    ghn = make_ghn()
    result = train_step(ghn, models, graphs, batch[0], labels, sgd(ghn))
    assert result.top1 == result.own_top1[0] == 3 / 8


def test_what_takes_no_part_in_a_step_stays(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    """Neither a gradient of before nor weight decay moves it; gradients are added up once."""

    class Summed(Second):
        sums = 0

        def sum_gradients(self, model: nn.Module) -> None:
            self.sums += 1

    ghn, processes = make_ghn(), Summed(0, 2)
    ghn.unused = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW(ghn.parameters(), lr=0.1, weight_decay=0.1)
    ghn.unused.sum().backward()
    train_step(ghn, *parts(networks[:1]), *batch, optimizer, processes=processes)
    assert ghn.unused.tolist() == [1.0, 1.0]
    assert processes.sums == 1


def test_networks_get_their_own_images(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    models, graphs = parts(networks)
    images, labels = batch
    ghn = make_ghn()
    chosen = [slice(0, 8), slice(3, 8), slice(1, 7)]
    x, y = [images[part] for part in chosen], [labels[part] for part in chosen]
    result = train_step(ghn, models, graphs, x, y, sgd(ghn))
    assert result.images == 8 + 5 + 6
    for position in range(3):
        ghn = make_ghn()
        alone = train_step(ghn, *parts([networks[position]]), x[position], y[position], sgd(ghn))
        assert result.losses[position] == pytest.approx(alone.losses[0], rel=1e-5)
    with pytest.raises(ValueError, match="2 batches of images or labels for 3 networks"):
        train_step(ghn, models, graphs, x[:2], y, sgd(ghn))


def test_it_learns(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    ghn = make_ghn()
    optimizer = torch.optim.AdamW(ghn.parameters(), lr=1e-2)
    models, graphs = parts(networks[:2])
    losses = [train_step(ghn, models, graphs, *batch, optimizer).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_lower_precision_gives_nearly_the_same_loss(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    models, graphs = parts(networks)
    results = []
    for precision in (None, torch.bfloat16):
        ghn = make_ghn()
        results.append(train_step(ghn, models, graphs, *batch, sgd(ghn), autocast=precision))
    assert results[0].loss != results[1].loss
    assert results[0].loss == pytest.approx(results[1].loss, rel=0.05)


def test_it_is_as_precise_inside_autocast(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    models, graphs = parts(networks)
    ghns, losses = [make_ghn(), make_ghn()], []
    for ghn, enabled in zip(ghns, (False, True), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(train_step(ghn, models, graphs, *batch, sgd(ghn)).loss)
    assert losses[0] == losses[1]
    for usual, inside in zip(*(ghn.parameters() for ghn in ghns), strict=True):
        torch.testing.assert_close(inside, usual)


def test_a_ghn_in_evaluation_mode_is_refused(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    ghn = make_ghn().eval()
    with pytest.raises(ValueError, match=r"ghn\.train\(\)"):
        train_step(ghn, *parts(networks), *batch, sgd(ghn))


def test_labels_beyond_the_classes(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    ghn, (images, labels) = make_ghn(), batch
    labels[0] = 20
    with pytest.raises(ValueError, match="to 20, and the network has 10 classes"):
        train_step(ghn, *parts(networks), images, labels, sgd(ghn))


def test_models_get_their_own_parameters_back(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    ghn = make_ghn()
    models, graphs = parts(networks)
    own = [dict(model.named_parameters()) for model in models]
    assert train_step(ghn, models, graphs, *batch, sgd(ghn)).updated
    for model, before in zip(models, own, strict=True):
        assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("workers", [None, 2])
def test_models_are_whole_after_an_error(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], workers: int | None
) -> None:
    """Also those that other threads were running when the first failed."""
    ghn = make_ghn()
    models, graphs = parts(networks)
    own = [dict(model.named_parameters()) for model in models]
    labels = [torch.full_like(batch[1], 10), batch[1], batch[1]]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers)) if workers else None
        with pytest.raises(ValueError, match="labels go from 10 to 10"):
            train_step(ghn, models, graphs, [batch[0]] * 3, labels, sgd(ghn), workers=pool)
        for model, before in zip(models, own, strict=True):
            assert all(parameter is before[name] for name, parameter in model.named_parameters())
    kept = (parameter for before in own for parameter in before.values() if parameter.is_leaf)
    assert all(parameter.grad is None for parameter in kept)


class Second(Processes):
    """The second of two processes, of which the first does the same but for the names."""

    def gather(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            return [value, value]
        return [[replace(summary, error=None) for summary in value], value]

    def sum_gradients(self, model: nn.Module) -> None:
        pass


def test_positions_are_those_of_losses(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    """Process by process, also where the networks of a process come in parts."""
    ghn = make_ghn()
    spoiled = [networks[0], networks[1], poison(networks[2])]
    options = {"accumulate": 3, "processes": Second(1, 2)}
    result = train_step(ghn, *parts(spoiled), *batch, sgd(ghn), **options)
    assert result.losses[:2] == result.losses[3:5]
    assert [loss != loss for loss in result.losses] == [False, False, True] * 2
    assert result.errors == {5: "the loss is nan"}


def test_an_error_waits_for_the_other_networks(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def slow(images: Tensor) -> Tensor:
        time.sleep(0.2)
        done.append(True)
        return images.new_zeros(len(images), 10)

    models, graphs = parts(networks[:2])
    monkeypatch.setattr(models[1], "forward", slow)
    labels = [torch.full_like(batch[1], 10), batch[1]]
    ghn = make_ghn()
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ValueError, match="labels go from 10 to 10"):
            train_step(ghn, models, graphs, [batch[0]] * 2, labels, sgd(ghn), workers=pool)
        assert done == [True]


def out_of_memory(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("tried to allocate 7 GiB")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 7 GiB"),
        MemoryError("7 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 GiB"),
    ],
)
def test_a_network_that_runs_out_of_memory_is_left_out(
    networks: list[Drawn],
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def forward(images: Tensor) -> Tensor:
        raise error

    ghn = make_ghn()
    models, graphs = parts(networks[:2])
    monkeypatch.setattr(models[1], "forward", forward)
    result = train_step(ghn, models, graphs, *batch, sgd(ghn))
    assert result.errors == {1: f"out of memory: {error}"}
    assert result.updated


def fail_the_second_time(ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets memory run out there; how many networks were to be predicted each time."""
    predict = ghn.attach_leaves
    calls: list[int] = []

    def attach(models: list[nn.Module], graphs: GraphBatch) -> object:
        calls.append(len(models))
        return out_of_memory() if len(calls) == 2 else predict(models, graphs)

    monkeypatch.setattr(ghn, "attach_leaves", attach)
    return calls


def test_a_ghn_that_runs_out_of_memory_leaves_its_part_out(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ghn = make_ghn()
    calls = fail_the_second_time(ghn, monkeypatch)
    result = train_step(ghn, *parts(networks), *batch, sgd(ghn), accumulate=3)
    assert calls == [1, 1, 1]
    assert result.errors == {1: "the GHN ran out of memory: tried to allocate 7 GiB"}
    assert result.images == 2 * len(batch[0])
    assert result.updated


def test_memory_that_runs_out_in_the_backward_pass_skips_the_step(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ghn = make_ghn()
    before = [parameter.clone() for parameter in ghn.parameters()]
    monkeypatch.setattr(torch.autograd, "backward", backward_of(ghn, torch.autograd.backward))
    sum(parameter.sum() for parameter in ghn.parameters()).backward()
    result = train_step(ghn, *parts(networks), *batch, sgd(ghn))
    assert result.skipped == "memory ran out in the GHN's backward pass"
    assert all(parameter.grad is None for parameter in ghn.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, ghn.parameters(), strict=True))


def backward_of(ghn: GHN, backward: Any) -> Any:
    """Fails at the end where it is given predicted tensors, not a loss."""

    def run(tensors: Any, *arguments: Any, **options: Any) -> None:
        backward(tensors, *arguments, **options)
        if isinstance(tensors, list):
            out_of_memory()

    return run


@pytest.mark.parametrize("part", ["network", "GHN", "backward pass"])
def test_errors_of_other_kinds_are_raised(
    networks: list[Drawn],
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes do not match")

    ghn = make_ghn()
    models, graphs = parts(networks[:1])
    if part == "network":
        monkeypatch.setattr(models[0], "forward", fail)
    elif part == "GHN":
        monkeypatch.setattr(ghn, "attach_leaves", fail)
    else:
        monkeypatch.setattr("ghn_fast.ghn.place.leaves.tile_backward", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_step(ghn, models, graphs, *batch, sgd(ghn))


# Networks that come one by one.


def one_by_one(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> Iterator[Arrival]:
    images, labels = batch
    for network in networks:
        yield Arrival(network.model, network.graph, images, labels, labels)


def test_one_by_one_is_a_step_of_normalised_networks(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    spoiled = [networks[0], poison(networks[1]), networks[2]]
    together, apart = make_ghn(), make_ghn()
    expected = train_step(together, *parts(spoiled), *batch, sgd(together), normalise_networks=True)
    sum(parameter.sum() for parameter in apart.parameters()).backward()  # of a step before
    found = train_step_as_they_come(apart, one_by_one(spoiled, batch), sgd(apart))
    assert found.errors == expected.errors == {1: "the loss is nan"}
    assert found.losses == pytest.approx(expected.losses, nan_ok=True)
    assert found.own_top1 == pytest.approx(expected.own_top1, nan_ok=True)
    assert found.images == expected.images
    assert found.updated
    for own, other in zip(gradients(apart), gradients(together), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_one_by_one_the_models_have_their_own_parameters_again(
    networks: list[Drawn], batch: tuple[Tensor, Tensor]
) -> None:
    models = [network.model for network in networks]
    own = [list(model.parameters()) for model in models]
    ghn = make_ghn()
    train_step_as_they_come(ghn, one_by_one(networks, batch), sgd(ghn))
    for model, expected in zip(models, own, strict=True):
        assert all(a is b for a, b in zip(model.parameters(), expected, strict=True))


def test_one_by_one_a_ghn_that_runs_out_of_memory_leaves_the_network_out(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ghn = make_ghn()
    calls = fail_the_second_time(ghn, monkeypatch)
    result = train_step_as_they_come(ghn, one_by_one(networks, batch), sgd(ghn))
    assert calls == [1, 1, 1]
    assert result.errors == {1: "the GHN ran out of memory: tried to allocate 7 GiB"}
    assert result.images == 2 * len(batch[0])
    assert result.updated


def test_one_by_one_memory_that_runs_out_in_the_backward_pass_skips_the_step(
    networks: list[Drawn], batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ghn = make_ghn()
    monkeypatch.setattr(torch.autograd, "backward", backward_of(ghn, torch.autograd.backward))
    result = train_step_as_they_come(ghn, one_by_one(networks, batch), sgd(ghn))
    assert result.skipped == "memory ran out in the GHN's backward pass"


def test_the_time_of_each_part_is_told(networks: list[Drawn], batch: tuple[Tensor, Tensor]) -> None:
    ghn, known = make_ghn(), networks[:1]
    always = {"predict", "networks", "backward", "others", "exchange", "update"}
    start = time.perf_counter()
    seconds = train_step(ghn, *parts(known), *batch, sgd(ghn)).seconds
    assert sum(seconds.values()) <= time.perf_counter() - start
    assert set(seconds) == always

    def late() -> Iterator[Arrival]:
        time.sleep(0.1)
        yield from one_by_one(known, batch)
        time.sleep(0.1)

    seconds = train_step_as_they_come(ghn, late(), sgd(ghn)).seconds
    assert set(seconds) == always | {"wait"}
    assert seconds["wait"] >= 0.2

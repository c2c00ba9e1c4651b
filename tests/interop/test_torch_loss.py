# SPDX-License-Identifier: Apache-2.0
"""mse_loss of tensors: NumPy's bits, autograd, torch.compile, and errors.

Seen to fail: the upstream gradient left out; times that are not saved with the graph; the loss of a bfloat16
prediction returned as bfloat16; a compiled graph without its guard on the schedule.
"""

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402

from noisefuse.interop.torch import internals as torch_internals  # noqa: E402
from private_names import private  # noqa: E402
from test_torch import FLOATS, FLOW, N, S, numpy, tensor  # noqa: E402

followed = pytest.mark.skipif(not torch_internals.FOLLOWED, reason="from torch 2.10 on")

ROW = np.linspace(0.5, 2.0, len(S))
T = torch.tensor([1, 19, 4])

CALLS = {
    "plain": (T, S, N, {"target": "v"}),
    "epsilon": (3, S, N, {"target": "epsilon"}),
    "weights": (T, S, N, {"target": "flow", "weight": ROW}),
    "samples": (T, S, N, {"target": "sample", "reduction": "none"}),
    "list": ([1, 2, 3], S, [N, N, N], {"target": "v", "weight": ROW}),
    "noise": (T, S, tensor(3, 5, 4, seed=2), {"target": "v", "reduction": "none", "weight": ROW}),
    "tokens": (torch.arange(15).view(3, 5), S, N, {"target": "v", "weight": ROW}),
    "window": (0.25, nf.Schedule.flow(20, shift=3.0), N.window((9, 8), (2, 3)), {"target": "velocity"}),
    "one": (5, S, N, {"target": "v", "batched": False, "scale": 1.5, "offset": 0.5}),
}


def arguments(name, dtype=torch.float32, grad=False):
    *given, options = CALLS[name]
    return [tensor(3, 5, 4, dtype=dtype, grad=grad), tensor(3, 5, 4, seed=1), *given], options


def of_numpy(given):
    return [numpy(x) if isinstance(x, torch.Tensor) else x for x in given]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_numpys_bits(name, dtype, backend):
    given, options = arguments(name, dtype)
    with nf.use_backend(backend):
        expected = np.asarray(nf.mse_loss(*of_numpy(given), **options))
        loss = nf.mse_loss(*given, **options)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert bits(loss.numpy()) == bits(expected.astype(numpy(loss).dtype))
        gradient = nf.mse_loss_grad(*of_numpy(given), **options, upstream=0.3)
        for found in (
            nf.mse_loss_grad(*given, **options, upstream=0.3),
            nf.mse_loss_grad(*given, **options, upstream=torch.tensor(0.3, dtype=torch.float64)),
            nf.mse_loss_grad(*given, **options, upstream=0.3, out=torch.empty(3, 5, 4, dtype=dtype)),
        ):
            assert found.dtype == dtype
            assert bits(numpy(found)) == bits(gradient)


def test_weights_of_a_tensor_are_float64():
    given, options = arguments("weights", torch.float64)
    found, expected = (nf.mse_loss(*given, **options | {"weight": row}) for row in (torch.from_numpy(ROW / 3), ROW / 3))
    assert bits(found.numpy()) == bits(expected.numpy())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_backward_is_the_gradient(name, dtype):
    given, options = arguments(name, dtype, grad=True)
    upstream = torch.tensor([0.5, -1.0, 2.0]) if options.get("reduction") == "none" else torch.tensor(0.5)
    loss = nf.mse_loss(*given, **options)
    loss.backward(upstream.to(loss.dtype))
    expected = nf.mse_loss_grad(*of_numpy(given), **options, upstream=numpy(upstream).astype(np.float64))
    assert bits(numpy(given[0].grad)) == bits(expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_made_with_the_loss_is_that_of_a_second_pass(dtype):
    given, options = arguments("weights", dtype, grad=True)
    pred, gradients = given[0], {}
    for upstream in (1, 4):
        found = nf.mse_loss_grad(pred.detach(), *given[1:], **options, upstream=upstream)
        gradients[upstream] = bits(numpy(found))

    def backward(loss, upstream):
        pred.grad = None
        (loss * upstream).backward(retain_graph=True)
        return bits(numpy(pred.grad))

    for upstream in (1, 1, 4, 4, 1, 1):  # computed with the loss, overwritten, or by a second pass alone
        loss = nf.mse_loss(*given, **options)
        assert backward(loss, upstream) == gradients[upstream]
        assert backward(loss, 1) == gradients[1]  # once more, because the graph was kept
        assert backward(loss, upstream) == gradients[upstream]


def test_the_backward_pass_takes_what_the_loss_was_given():
    pred, x0 = tensor(3, 4, grad=True), tensor(3, 4, seed=1)
    weight, times, noises = np.ones(len(S)), [3, 1, 7], [nf.Noise(n) for n in range(3)]
    given = pred, x0, times, S, noises
    loss = nf.mse_loss(*given, target="v", weight=weight) * 2
    expected = nf.mse_loss_grad(pred.detach(), *given[1:], target="v", weight=weight, upstream=2)
    weight[:], times[:], noises[:] = 100, [0, 0, 0], noises[::-1]
    loss.backward()
    assert bits(numpy(pred.grad)) == bits(numpy(expected))


def test_autograd_takes_the_gradient_without_a_copy():
    """A hook sees the tensor that backward returns; the leaf must then have the same tensor."""
    given, options = arguments("plain", grad=True)
    seen = []
    given[0].register_hook(lambda g: seen.append(g.data_ptr()))
    nf.mse_loss(*given, **options).backward()
    assert seen == [given[0].grad.data_ptr()]


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck(name):
    given, options = arguments(name, torch.float64, grad=True)
    assert gradcheck(lambda pred: nf.mse_loss(pred, *given[1:], **options), given[0])


def test_it_is_torchs_loss_without_its_target():
    pred, x0 = tensor(64, 50, grad=True), tensor(64, 50, seed=1)
    t = torch.arange(64) % len(S)
    v = nf.q_sample(x0, t, S, N, target="v")[1]
    other = pred.detach().clone().requires_grad_()
    expected = torch.nn.functional.mse_loss(other, v)
    expected.backward()
    loss = nf.mse_loss(pred, x0, t, S, N, target="v")
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(pred.grad, other.grad)


def test_a_graph_keeps_no_noise():
    kept = []
    pred, x0 = tensor(64, 50, grad=True), tensor(64, 50, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        nf.mse_loss(pred, x0, T.repeat(22)[:64], S, N, target="v").backward()
    assert [x.data_ptr() for x in kept if x.dtype == torch.float32] == [pred.data_ptr(), x0.data_ptr()]


def test_what_was_changed_before_the_backward_pass_is_noticed_or_does_not_matter():
    """The loss made its gradient with it; any other upstream gradient needs the values again. Seen to fail: a second
    pass that reads them without a check."""
    for changed in ("pred", "x0", "t"):
        leaf, x0, t = tensor(3, 4, grad=True), tensor(3, 4, seed=1), T.clone()
        expected = nf.mse_loss_grad(leaf.detach(), x0, t, S, N, target="v")
        pred = leaf * 1.0
        loss = nf.mse_loss(pred, x0, t, S, N, target="v")
        with torch.no_grad():
            {"pred": pred, "x0": x0, "t": t}[changed].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (2 * loss).backward()
        loss = nf.mse_loss(pred := leaf * 1.0, x0 := tensor(3, 4, seed=1), t := T.clone(), S, N, target="v")
        with torch.no_grad():
            {"pred": pred, "x0": x0, "t": t}[changed].zero_()
        loss.backward()
        assert torch.equal(leaf.grad, expected)
    for name, value in (("weight", np.linspace(0.5, 2, len(S))), ("scale", np.array(2.0)), ("offset", np.array(0.5))):
        leaf, given = tensor(3, 4, grad=True), value.copy()
        loss = nf.mse_loss(leaf, x0, T, S, N, target="v", **{name: given})
        given[...] = 7
        (2 * loss).backward()
        expected = nf.mse_loss_grad(leaf.detach(), x0, T, S, N, target="v", upstream=2.0, **{name: value})
        assert torch.equal(leaf.grad, expected)


def test_a_prediction_that_is_also_something_else_is_refused():
    """Seen to fail: x0 and x1, the prediction itself, whose gradient was lost without a word."""
    pred, x0, path = tensor(3, 4, grad=True), tensor(3, 4, seed=1), nf.paths.linear()
    for name, call in {
        "x0": lambda: nf.mse_loss(pred, pred, T, S, N, target="v"),
        "noise": lambda: nf.mse_loss(pred, x0, T, S, pred, target="v"),
        "t": lambda: nf.mse_loss(pred, x0, pred, nf.Schedule.flow(20), N, target="v"),
        "x1": lambda: nf.interpolate_loss(pred, x0, pred, 0.5, path, target="velocity"),
    }.items():
        with pytest.raises(NotImplementedError, match=f"^{name}: gradients with respect to it"):
            call()
    with pytest.raises(NotImplementedError, match=r"^x0: gradients"):
        nf.interpolate_loss(pred, pred, x0, 0.5, path, target="velocity")


def test_the_gradient_may_take_the_place_of_the_prediction():
    given, options = arguments("plain")
    expected = nf.mse_loss_grad(*given, **options)
    pred = given[0]
    loss, gradient = nf.mse_loss_and_grad(*given, **options, out=pred)
    assert gradient is pred
    assert pred._version == 1
    assert torch.equal(pred, expected)
    assert loss.shape == ()


def test_a_network_learns_from_a_gradient_in_place_of_its_prediction():
    """There is no array beside x_t and pred; autograd notices if a network still needs overwritten values."""
    x0, network = tensor(64, 50), torch.nn.Linear(50, 50)
    given, kept = (3, S, N), []
    for in_place in (False, True):
        network.zero_grad()
        pred = network(nf.q_sample(x0, *given))
        if in_place:
            plain = pred.detach()
            loss, gradient = nf.mse_loss_and_grad(plain, x0, *given, target="v", out=plain)
            pred.backward(gradient)
        else:
            loss = nf.mse_loss(pred, x0, *given, target="v")
            loss.backward()
        kept.append((loss.item(), bits(network.weight.grad.numpy())))
    assert kept[0] == kept[1]
    pred = torch.tanh(network(x0))  # its backward pass reads its output
    plain = pred.detach()
    _, gradient = nf.mse_loss_and_grad(plain, x0, *given, target="v", out=plain)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pred.backward(gradient)


def test_what_is_refused():
    given, options = arguments("plain", grad=True)
    pred, x0, t = given[:3]
    with pytest.raises(NotImplementedError, match=r"x0: gradients with .* not computed: pass x0.detach\(\)"):
        nf.mse_loss(pred, x0.clone().requires_grad_(), *given[2:], **options)
    with pytest.raises(NotImplementedError, match="noise: gradients with respect to it are not computed"):
        nf.mse_loss(pred, x0, t, S, tensor(3, 5, 4, grad=True), **options)
    with pytest.raises(NotImplementedError, match="weight: gradients with respect to it are not computed"):
        nf.mse_loss(*given, **options, weight=torch.ones(len(S), requires_grad=True))
    with pytest.raises(NotImplementedError, match="t: gradients with respect to it are not computed"):
        nf.mse_loss(pred, x0, torch.rand(3, requires_grad=True), nf.Schedule.cosine(), N, **options)
    compiled = torch.compile(lambda x0: nf.mse_loss(pred, x0, *given[2:], **options), backend="eager")
    with pytest.raises(
        (NotImplementedError, private("torch._dynamo.exc", "TorchDynamoException")), match="x0: gradients with respect"
    ):
        compiled(x0.clone().requires_grad_())
    with pytest.raises(ValueError, match="pred requires grad, so autograd makes its gradient"):
        nf.mse_loss_and_grad(*given, **options, out=torch.empty(3, 5, 4))
    with pytest.raises(NotImplementedError, match="pred: gradients with respect to it are not computed"):
        nf.mse_loss_grad(*given, **options)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(nf.mse_loss(*given, **options), pred, create_graph=True)
    with pytest.raises(TypeError, match=r"pred: expected a tensor with memory of its own, not one of torch\.func"):
        torch.func.grad(lambda pred: nf.mse_loss(pred, *given[1:], **options))(pred.detach())
    with pytest.raises(TypeError, match=r"x0: expected a torch.Tensor"):
        nf.mse_loss(pred, x0.numpy(), *given[2:], **options)
    with pytest.raises(TypeError, match=r"noise: expected a Noise, a list of them or a torch.Tensor"):
        nf.mse_loss(pred, x0, t, S, x0.numpy(), **options)
    with pytest.raises(ValueError, match="reduction = 'sum'"):
        nf.mse_loss(*given, **options, reduction="sum")


# ---- torch.compile -----------------------------------------------------------------------------------------


@followed
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("list", "window")])
def test_compiled_equals_eager(name):
    given, options = arguments(name, grad=True)

    def step(pred, *others):
        return nf.mse_loss(2 * pred, *others, **options).sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = []
    for run in (step, compiled):
        given[0].grad = None
        loss = run(*given)
        loss.backward()
        found.append((bits(numpy(loss)), bits(numpy(given[0].grad))))
    assert found[0] == found[1]


@followed
def test_one_graph_for_all_times_and_seeds():
    graphs = 0

    def count(module, _):
        nonlocal graphs
        graphs += 1
        return module.forward

    torch.compiler.reset()
    step = torch.compile(
        lambda pred, x0, t, noise: nf.mse_loss(pred, x0, t, S, noise, target="v"), fullgraph=True, backend=count
    )
    pred, x0 = tensor(3, 5, 4), tensor(3, 5, 4, seed=1)
    for n in range(6):
        t, noise = (T + n) % len(S), nf.Noise(n, step=100 + n)
        assert torch.equal(step(pred, x0, t, noise), nf.mse_loss(pred, x0, t, S, noise, target="v"))
    assert graphs <= 3  # numbers become symbols when they first change


@followed
def test_another_schedule_is_seen():
    torch.compiler.reset()
    step = torch.compile(
        lambda pred, x0, schedule: nf.mse_loss(pred, x0, 3, schedule, N, target="v"), fullgraph=True, backend="eager"
    )
    pred, x0 = tensor(3, 5, 4), tensor(3, 5, 4, seed=1)
    for schedule in (S, nf.Schedule.linear(20, beta_end=0.5), FLOW, S):
        assert torch.equal(step(pred, x0, schedule), nf.mse_loss(pred, x0, 3, schedule, N, target="v"))


@pytest.mark.parametrize("name", ["plain", "epsilon", "noise", "weights"])
def test_opcheck(name):
    (pred, x0, t, schedule, noise), options = arguments(name, grad=True)
    from noisefuse.interop.torch import graph as torch_graph
    from noisefuse.interop.torch import loss as torch_loss

    weight = torch.from_numpy(ROW) if options.pop("weight", None) is not None else None
    options = {"reduction": "mean", "scale": None, "offset": None, "batched": True} | options
    fields, tensors, noise = torch_loss._parts(pred, x0, schedule, noise, weight, options)
    number, row, times = (
        torch_graph.number_of(fields[0], torch_loss.Loss, *fields[1:]),
        *((t, None) if name == "epsilon" else (None, t)),
    )
    words = torch_graph.words_of(noise)
    torch.library.opcheck(torch.ops.noisefuse.apply.default, (number, row, times, tensors, words))
    kept = [pred.detach(), *tensors[1:]]
    upstream = [torch.ones(3 if options["reduction"] == "none" else ())]
    given = (number, "pred", [3, 5, 4], torch.float32, row, times, kept, words, upstream)
    torch.library.opcheck(torch.ops.noisefuse.gradient.default, given)

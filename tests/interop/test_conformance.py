# SPDX-License-Identifier: Apache-2.0
"""Every library of arrays gives NumPy's bits in its own arrays, and so does a user's array type with an adapter."""

import re

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conformance import (
    CALLS,
    FIELDS,
    SUMS,
    Boxed,
    Boxes,
    N,
    S,
    T,
    arrays,
    data,
    images,
    operation,
    public_operations,
)
from conftest import bits
from noisefuse import backends


class Memory(Boxed):
    """A type whose arrays are written to."""


class Memories(Boxes):
    is_written = True

    def from_numpy(self, array, like):
        return Memory(array)


nf.interop.register(Memory, Memories("Memory"))


def boxed(make):
    return make, make, lambda x: x.inside


def torch():
    library = pytest.importorskip("torch")

    def tensor(a):
        bits_of = a.view(np.int16) if a.dtype == ml_dtypes.bfloat16 else a
        return library.from_numpy(bits_of).view(library.bfloat16) if bits_of is not a else library.from_numpy(a)

    def array(x):
        is_half = x.dtype == library.bfloat16
        return x.view(library.int16).numpy().view(ml_dtypes.bfloat16) if is_half else x.numpy()

    return tensor, library.Tensor, array


def jax():
    library = pytest.importorskip("jax")
    return library.numpy.asarray, library.Array, np.asarray


def dask():
    library = pytest.importorskip("dask.array")

    def in_blocks(a):
        return library.from_array(a, (2, *a.shape[1:]))

    return in_blocks, library.Array, lambda x: x.compute()


LIBRARIES = {
    "torch": torch,
    "torch, not fast": torch,
    "JAX": jax,
    "dask": dask,
    "Boxed": lambda: boxed(Boxed),
    "Memory": lambda: boxed(Memory),
}


def narrow(a):
    """Returns numbers of 64 bits in 32."""
    array = np.asarray(a)
    return array.astype({"float64": np.float32, "int64": np.int32}.get(array.dtype.name, array.dtype))


OF_NUMPY = {  # they take no other library's arrays
    "x: expected a NumPy array, as the other arguments are": {"DiscreteSampler.log_prob_grad"},
    r"x: expected an array of NumPy or CuPy, got \w*; np.asarray": {"augment.rms"},
}
OF_SUMS = {operation(call) for call in SUMS} - {"Sampler.step"}
# What a library does not offer, operations or calls, by what it says.
NOT_OFFERED = r": noisefuse does not offer .*for arrays of "
REFUSED = {
    "JAX": {NOT_OFFERED + "JAX": {
        *("q_uniform", "q_transition"),
        *("DiscreteSampler.step", "DiscreteSampler.sample", "DiscreteSampler.log_prob"),
    }},
    "dask": {
        NOT_OFFERED + "dask": {
            *OF_SUMS, "Sampler.step, log_prob", "masked_cross_entropy_and_grad", "DiscreteSampler.step, log_prob",
            "DiscreteSampler.log_prob", "rate_loss", "rate_loss_and_grad",
        },
        "x: expected an array in memory, got dask's": {operation(call) for call in FIELDS} - {"fields.perturbed"},
    },
}  # fmt: skip


def refusal(call, library):
    """Returns what the library says to a call that it does not offer, or None."""
    of_library = OF_NUMPY | REFUSED.get(library, {})
    return next((says for says, calls in of_library.items() if {call, operation(call)} & calls), None)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("call", CALLS)
def test_numpys_bits(call, library, monkeypatch):
    """Seen to fail: an adapter without `times`, one that returned NumPy's arrays, one whose array was the t of
    `fields.perturbed`, one for which `DiscreteSampler.log_prob` was refused, and tensors, for which its sum had another
    order."""
    make, kind, back = LIBRARIES[library]()
    if says := refusal(call, library):
        with pytest.raises((NotImplementedError, TypeError), match=says):
            CALLS[call](make)
        return
    expected = arrays(CALLS[call](narrow if library == "JAX" else np.asarray))
    for name in backends.FAST_PATH if library == "torch, not fast" else ():  # as for what the fast path does not take
        monkeypatch.setattr(backends, name, backends.declined)
    found = arrays(CALLS[call](make))
    is_loss = re.search("loss|cross_entropy", call) is not None
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, int) or (isinstance(a, float) and kind in (Boxed, Memory)):
            assert a == b
            assert type(a) is type(b)
            continue
        assert isinstance(b, kind)
        # JAX has float32 if 64 bits are off, and torch has losses in x's dtype.
        a = narrow(a) if library == "JAX" or (library[:5] == "torch" and is_loss) else np.asarray(a)
        b = np.asarray(back(b))
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if library == "JAX" and call == "density.log_prob_grad":  # its own gradient
            np.testing.assert_array_max_ulp(a, b, 2)
        else:
            assert bits(a) == bits(b)


# What Triton's kernels lack for tensors of a device, operations or calls, by what it says. They have all others.
LACKING = {
    "this needs CuPy on a CUDA device: pip install": {
        *("augment.by_level", "augment.transition", "augment.poisson", "fields.pyramid_like", "fields.assigned"),
    },
    "x: expected an image in host memory": {
        *("augment.coloured", "augment.impulse", "augment.corrupt", "augment.rician", "augment.poisson of floats"),
    },
    **OF_NUMPY,
    "top_p, partial: neither has a kernel for CUDA devices": {"categorical, where"},
    "rate_loss has no kernel for cuda:1": {"rate_loss", "rate_loss_and_grad"},
    "expected tensors on the CPU, got one on cuda:1": {
        *("q_transition", "DiscreteSampler.step", "DiscreteSampler.sample", "DiscreteSampler.log_prob"),
    },
}
# A memory is empty, an x that needs no scale is itself, and randn_like asks the tensor where it really lies.
AT_REST = {"Sampler.state", "Sampler.model_input", "randn_like"}


@pytest.mark.parametrize("call", CALLS)
def test_numpys_bits_by_triton_on_a_device(call):
    """Seen to fail: an operation that became another library's, wrong steps of a list of Noises; walks, losses and
    draws that were left out, which a refusal or NumPy's result would have passed."""
    make, _, back = torch()
    pytest.importorskip("triton")
    from cuda_kernels.triton_door import interpreted, opened

    if not interpreted:
        pytest.skip("needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)")
    lacking = [says for says, calls in LACKING.items() if {call, operation(call)} & calls]
    if lacking:
        with opened(), pytest.raises((NotImplementedError, TypeError), match="|".join(lacking)):
            CALLS[call](make)
        return
    expected = arrays(CALLS[call](np.asarray))
    with opened() as launches:
        found = arrays(CALLS[call](make))
    assert bool(launches) == (operation(call) not in AT_REST)
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, int | float):
            assert a == b
            continue
        b = np.asarray(back(b))
        assert bits(np.asarray(a).astype(b.dtype)) == bits(b)  # torch has losses in x's dtype


def test_every_public_operation_has_a_row():
    """Those that are given an array. Seen to fail: a function of tokens without a row."""
    assert {operation(call) for call in CALLS} == public_operations()


def test_what_an_adapter_gives_is_written_to():
    out, x = Memory(np.zeros((4, 3, 5), np.float32)), Memory(data())
    assert nf.q_sample(x, 3, S, N, out=out) is out
    assert nf.q_sample(x, 3, S, N, out=x) is x
    assert bits(x.inside) == bits(out.inside) == bits(nf.q_sample(data(), 3, S, N))


def test_an_adapter_without_memory_refuses_outputs():
    with pytest.raises(TypeError, match="out: expected None, as arrays of Boxed are not written to"):
        nf.q_sample(Boxed(data()), 3, S, N, out=Boxed(data()))


def test_what_is_wrong_is_said_as_of_numpys():
    with pytest.raises(IndexError, match="t = 1000 is out of range"):
        nf.q_sample(Boxed(data()), Boxed(T + 1), S, N)
    with pytest.raises(ValueError, match="batched="):
        nf.q_sample(Boxed(images()[0]), 3, S, N)


def test_a_library_offers_what_it_is_asked_for():
    with pytest.raises(TypeError, match=r"q_smaple: noisefuse\.interop\.Library has no such attribute"):
        nf.interop.Library("mine", q_smaple=None)
    with pytest.raises(NotImplementedError, match="q_sample: noisefuse does not offer that for arrays of mine"):
        nf.interop.Library("mine").q_sample(None)


@pytest.mark.parametrize(
    ("of", "library", "message"),
    [
        (Boxed, Boxes, r"library: expected a Library.*, got the class Boxes: pass Boxes\(name\)"),
        (Boxed, "boxes", "library: expected a Library, or a function that returns one, got boxes"),
        (Boxes("Boxed"), Boxed, "of: expected a type of arrays, or the name of a module, got Boxes"),
    ],
)
def test_what_is_no_library_is_not_registered(of, library, message):
    """Seen to fail: it was taken, and the first array raised an error of something else."""
    with pytest.raises(TypeError, match=message):
        nf.interop.register(of, library)


def test_the_last_registration_holds():
    """Seen to fail: a type that was seen kept its first library."""

    class Twice(Boxed):
        pass

    for name in ("first", "second"):
        nf.interop.register(Twice, Boxes(name))
        with pytest.raises(TypeError, match=f"arrays of {name} are not written to"):
            nf.q_sample(Twice(data()), 3, S, N, out=Twice(data()))


def test_half_an_adapter_cannot_be_made():
    """Seen to fail: results were None."""

    class Half(nf.interop.ThroughNumPy):
        def to_numpy(self, x):
            return x.inside

    with pytest.raises(TypeError, match=r"abstract method .*from_numpy"):
        Half("half")

# SPDX-License-Identifier: Apache-2.0
"""Random calls with other libraries' arrays, other backends, changing inputs and small stacks: a few of each."""

import subprocess
import sys
import time
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest

import calls
import differential
import noisefuse as nf
import random_calls
from arguments import operation
from conftest import NATIVE
from noisefuse import _native
from noisefuse.backends import native
from noisefuse.call.description import Race
from noisefuse.tokens import samplers as token_samplers


@pytest.mark.parametrize(("library", "cases"), [("torch", 300), ("jax", 40), ("dask", 100)])
def test_other_libraries_give_numpys_bits(library, cases, capsys):
    """Seen to fail: JAX took sample 0 if one of a list of noises had a list of one id; `prepare` took uint16 of the
    other byte order for bytes."""
    pytest.importorskip(library)
    assert random_calls.compare_libraries([library], cases, 5, 10), capsys.readouterr().out
    assert "compared" in capsys.readouterr().out


def test_tensors_of_a_device_have_numpys_bits(capsys):
    """By Triton's kernels, in its interpreter, which runs a program for each sample that has an id of its own: the 35th
    call would take a minute, for 236 of them. Seen to fail: a row of the table taken for its neighbour."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from cuda_kernels.triton_door import interpreted

    if not interpreted:
        pytest.skip("needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)")
    assert random_calls.compare_libraries(["triton"], 34, 5, 1), capsys.readouterr().out
    assert "compared" in capsys.readouterr().out


def test_jaxs_products_with_upstream_gradients_come_near(monkeypatch):
    """docs/jax.md promises no more: they are XLA's. Seen to fail: the campaign reported their last bits."""
    pytest.importorskip("jax")
    lines = [
        "nf.mse_loss_grad(array((256, 3), 'float16', 885), None, times((256, 3), 50, 22, 'int16'), KARRAS, "
        "nf.Noise(1), target='epsilon', upstream=2.0)",
        "nf.density.log_prob_grad(sampler('ddpm').tableau, 1, array((152, 5), 'float64', 146), "
        "array((152, 5), 'float64', 421), array((152, 5), 'float64', 429), upstream=2.0)",
    ]
    assert [random_calls.problem("jax", line) for line in lines] == [("", False)] * 2
    spoilt = {"jax": lambda x: random_calls.jax_array(x) * (1 + 2**-7)}
    monkeypatch.setattr(random_calls, "LIBRARIES", spoilt)
    assert [random_calls.problem("jax", line) for line in lines] == [("other numbers", False)] * 2


def test_another_librarys_other_bit_is_found(monkeypatch, capsys):
    pytest.importorskip("torch")
    spoilt = {"torch": lambda x: random_calls.torch_array(x) * (1 + 2**-7) if x.size else random_calls.torch_array(x)}
    monkeypatch.setattr(random_calls, "LIBRARIES", spoilt)
    assert not random_calls.compare_libraries(["torch"], 100, 5, 10)
    assert "# other bits" in capsys.readouterr().out


def test_another_backend_than_the_reference_is_compared_with():
    results = differential.run(200, 3, numba=False, against="native-portable", makers=calls.OPERATIONS)
    assert [line for result in results for line in result.lines] == []
    assert all(result.passed for result in results)
    assert sum(result.cases for result in results) == 200


def test_a_campaign_ends_when_its_time_is_over():
    assert differential.run(1000, 3, numba=False, minutes=0) == []


def test_every_operation_is_called():
    """The million draws each public function; a new one has to be added to `calls.py`."""
    found = {operation(line) for line in calls.of_each(40)}
    left_out = {"audit", "get_include", "info", "set_num_threads", "use_backend"}  # they compute nothing
    assert {name for name in nf.__all__ if isfunction(getattr(nf, name))} - left_out <= found
    for module in (nf.augment, nf.fields, nf.density):
        public = {*module.__all__} - {"sample_id", "Part", "combine"}  # of Python alone, and of parts
        assert {f"{module.__name__.removeprefix('noisefuse.')}.{name}" for name in public} <= found
    assert {"legacy.WebUI", "legacy.TorchCUDA", "philox4x32"} <= found
    assert set(token_samplers.__all__) == set(calls.SAMPLERS)
    assert {"combined", "token_step", "token_run", "step", "sampled"} <= found


def test_each_new_operation_succeeds_and_fails():
    """A generator that only makes wrong calls, or only right ones, tests little."""
    own = [make for make in calls.OPERATIONS if make.__module__ == "calls"]
    raised = {}
    for line in calls.of_each(60, own):
        raised.setdefault(operation(line), []).append(not differential.outcome(line).results)
    assert all(0.05 < np.mean(each) < 0.7 for each in raised.values()), raised


def test_another_token_is_found_and_shown(monkeypatch):
    """One instruction set draws another token; the line reports it when pasted in this folder."""

    def run(call):
        found = right(call)
        if type(call) is Race and f"native-{_native.isa()}" == NATIVE[0]:
            call.token[...] ^= 1
        return found

    right = native.run
    monkeypatch.setattr(native, "run", run)
    monkeypatch.setattr(differential, "SHOWN", 1)
    results = differential.run(20, 4, numba=False, makers=[calls._categorical])
    line = next(line for result in results for line in result.lines)
    code, _, problem = line.partition("  # ")
    assert code.startswith("from differential import differ; differ(")
    scope = {}
    exec(code.replace("; differ(", "; found = differ("), scope)
    assert scope["found"] == problem == "other bits"


# ---- inputs that change ------------------------------------------------------------------------------------


def test_an_input_changes_during_a_race_and_is_itself_afterwards():
    seen = []

    def call(x):
        time.sleep(0.002)
        seen.append(x.sum())
        return x.copy()

    x = np.arange(1000.0)
    assert np.array_equal(calls.raced(call, x), np.arange(1000.0))
    assert len({*seen}) > 1
    assert np.array_equal(x, np.arange(1000.0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its memory protection")
def test_what_reads_past_the_end_of_a_fenced_array_ends_the_process():
    code = "import calls, numpy as np; print(calls.fenced(np.ones((5, 7), 'f4')).sum(), flush=True)"
    past = code.replace(").sum()", "), np.lib.stride_tricks.as_strided(calls.fenced(np.ones(8)), (9,)).sum()")
    right, wrong = (
        subprocess.run([sys.executable, "-c", each], cwd=HERE, capture_output=True) for each in (code, past)
    )
    assert (right.returncode, right.stdout.split()) == (0, [b"35.0"])
    assert wrong.returncode


def test_races_garble_nothing_else():
    """Each array of a call in turn. Seen to end the process within seconds: categorical with temperature 0, top_k or
    top_p, and masked_cross_entropy, which searched a row again for what they had found there."""
    code = """
import calls, differential
calls.SECONDS = 0.05
fastest = differential.contenders(numba=False)[:1]
for line in calls.of_each(20, [calls._with_rows_raced, calls._with_any_raced]):
    problems, _ = differential.compared(fastest, 2, line, "native-portable")
    assert not problems, (line, problems)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_call_that_ends_the_process_is_named(tmp_path, monkeypatch, capfd):
    script = tmp_path / "ends.py"
    script.write_text("import os, sys\nopen(sys.argv[-1], 'w').write('nf.randn(1)')\nos.abort()\n")
    monkeypatch.setattr(random_calls, "__file__", str(script))
    assert random_calls.in_a_child() == 1
    assert "in nf.randn(1)" in capfd.readouterr().out


# ---- small stacks ------------------------------------------------------------------------------------------

HERE = Path(__file__).parent


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its stacks")
@pytest.mark.parametrize("name", NATIVE)
def test_every_operation_fits_a_thread_of_128_kib(name):
    """docs/backends.md asks for it. Seen to end the process: on 96 KiB the log-density of unaligned float64, on 88 the
    losses of float64."""
    code = f"""
import os, threading
import calls, differential, noisefuse as nf
lines = [compile(line, "<case>", "eval") for line in calls.of_each(6)]
nf.set_num_threads(1)

def all_calls():
    return [differential.outcome(line) for line in lines]

with differential.using({name!r}):
    expected = all_calls()
    threading.stack_size(128 << 10)
    found = []
    thread = threading.Thread(target=lambda: found.append(all_calls() == expected))
    thread.start()
    thread.join()
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[True]\n"), done.stderr

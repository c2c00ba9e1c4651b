# SPDX-License-Identifier: Apache-2.0
"""`audit` finds noise that other projects repeated by mistake, and is silent about programs that are right.

The mistakes are replayed by hand, after their threads.

Seen to fail, each by a planted error: no chances of nearly certain draws, weights of torch.nn.init taken down, what
checkpoint draws again not marked, keys without steps, places or windows, draws of increments taken down, wrappers left
in place, few numbers taken for many, other ranks left out.
"""

import os
import subprocess
import sys
from contextlib import nullcontext, suppress

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

S, X = nf.Schedule.cosine(1000), np.zeros((4, 8, 8), np.float32)
WATCH = ["operators", "python"]


def repeats(draws):
    """How many draws repeat another one."""
    return len({id(draw) for same in draws.repeated for draw in same[1:]})


def network():
    sizes = ((32, 32), (32, 32), (32, 64))
    return torch.nn.Sequential(*(torch.nn.Linear(*size) for size in sizes), torch.nn.Dropout(0.2))


# ---- mistakes of others ------------------------------------------------------------------------------------


def es_at_scale_46(right):
    """Evolution strategies: one seed for each parameter."""
    generator = torch.Generator().manual_seed(7)
    for p in network().parameters():
        generator = generator if right else torch.Generator().manual_seed(7)
        p.data.add_(1e-3 * torch.randn(p.shape, generator=generator))


def lingbot_vla_v2_41(right):
    """`set_seed` with one seed on each rank, then noise and times of flow matching."""
    for rank in range(4):
        torch.manual_seed(10 + rank * right)
        for _ in range(2):
            noise, t = torch.randn(8, 50, 32), torch.rand(8)
            (1 - t[:, None, None]) * noise


def verl_omni_561(right):
    """48 prompts in chunks of 12 for four workers, and seeds of the index in the chunk."""
    for worker in range(4):
        for i in range(12):
            index = 12 * worker + i if right else i
            torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(42 + index))


def verl_omni_60(right):
    """The members of a group: one seed for all rollouts of a prompt."""
    for prompt in range(3):
        for member in range(4):
            generator = torch.Generator().manual_seed(4 * prompt + member * right)
            for _ in range(2):  # the noise of steps
                torch.empty(1, 64).normal_(generator=generator)


def mlcommons_844(right):
    """Seeds that differ between data-parallel replicas, but not between the shards of FSDP."""
    for rank in range(8):
        torch.manual_seed(rank if right else rank // 4)
        torch.randn(4, 16, 8)


MISTAKES = {es_at_scale_46: 5, lingbot_vla_v2_41: 12, verl_omni_561: 36, verl_omni_60: 18, mlcommons_844: 6}


@pytest.mark.parametrize("watch", WATCH)
@pytest.mark.parametrize("program", MISTAKES, ids=lambda program: program.__name__)
def test_mistakes_of_others_are_found(program, watch):
    with nf.audit(watch=watch) as draws:
        program(right=False)
    assert repeats(draws) == MISTAKES[program]
    assert {draw.where.rpartition(":")[0] for same in draws.repeated for draw in same} == {__file__}
    assert f"{MISTAKES[program]} repeat others" in str(draws)
    with nf.audit(watch=watch) as draws:
        program(right=True)
    assert draws.repeated == []
    assert len(draws.made) > MISTAKES[program]


RANK = """
import sys, torch, noisefuse as nf
import torch.distributed as dist
rank, right = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
with nf.audit() as draws:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)  # alike on all ranks
    torch.manual_seed(rank * right)  # torchtitan 1946: the axis of replicas was left out
    torch.randn(4, 16)
print(len(draws.made), [sorted(draw.rank for draw in same) for same in draws.repeated])
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without ranks")
@pytest.mark.parametrize("right", [0, 1])
def test_ranks_gather_what_they_saw(right, tmp_path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(right), str(tmp_path / "m")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [rank.communicate()[0].strip() for rank in ranks] == ["2 []" if right else "2 [[0, 1]]"] * 2


class Items:
    """A data set with a generator of its own, which each worker has a copy of, or with NumPy's, which torch seeds."""

    def __init__(self, own):
        self.random = np.random.default_rng(0) if own else None

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return (self.random or np.random).normal(size=20), torch.randn(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_workers_with_copies_of_a_generator():
    for own in (True, False):
        with nf.audit() as draws:
            [*DataLoader(Items(own), 2, num_workers=2, multiprocessing_context="fork")]
        assert {tuple(draw.worker for draw in same) for same in draws.repeated} == ({(0, 1)} if own else set())
        assert len(draws.made) == 16


@pytest.mark.slow
def test_spawned_workers():
    with nf.audit() as draws:
        [*DataLoader(Items(False), 2, num_workers=2, multiprocessing_context="spawn", worker_init_fn=draws.worker)]
    assert (len(draws.made), draws.repeated) == (16, [])
    assert {draw.worker for draw in draws.made} == {0, 1}


# ---- keys --------------------------------------------------------------------------------------------------

NOISE = nf.Noise(7)
KEYS = {
    "no step": (3, lambda: [nf.q_sample(X, 500, S, NOISE) for _ in range(3)]),
    "rows of a matrix": (1, lambda: [nf.randn((32, 16), NOISE.at(sample=layer)) for layer in range(2)]),
    "ids of a rank": (1, lambda: [nf.uniform(8, NOISE.at(sample=range(k, k + 8))) for k in (0, 7)]),
    "a list of keys": (1, lambda: nf.randn((2, 8), [NOISE, NOISE])),
    "tokens": (1, lambda: [nf.q_mask(np.zeros((2, 16), int), 0.5, NOISE, 9) for _ in range(2)]),
    "categories": (1, lambda: [nf.categorical(np.zeros((2, 50), np.float32), NOISE) for _ in range(2)]),
    "steps of a walk": (1, lambda: [nf.q_step(X, t, S, NOISE.at(step=step)) for t, step in ((3, 4), (4, 3))]),
    "tensors": (1, lambda: [nf.noised(torch.zeros(2, 8), 1.0, 0.1, NOISE) for _ in range(2)]),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_repeat(name):
    expected, program = KEYS[name]
    with nf.audit() as draws:
        program()
    assert len(draws.repeated) == 1
    assert len(draws.repeated[0]) == max(expected, 2)


# ---- right programs ----------------------------------------------------------------------------------------


def digits():
    pytest.importorskip("train_digits").train(3)


def ranks_of_ddp():
    """Weights and orders are alike on all ranks, and the noise is not."""
    for rank in range(2):
        torch.manual_seed(0)
        network()
        [*DistributedSampler(range(64), 2, rank)]
        torch.manual_seed(1 + rank)
        torch.randn(4, 16)


def dropout():
    model = network()
    [model(torch.ones(8, 32)) for _ in range(3)]
    [model.eval()(torch.ones(8, 32)) for _ in range(3)]


def nearly_certain():
    for _ in range(3):
        torch.multinomial(torch.eye(64), 1)
        torch.bernoulli(torch.arange(64.0) % 2)
        torch.empty(64).bernoulli_(torch.arange(64.0) % 2)
        torch.nn.functional.dropout(torch.ones(64), 1e-9)
        torch.poisson(torch.zeros(64))
        torch.randn(0), torch.randint(0, 2, (16,)), torch.normal(torch.ones(64), torch.zeros(64)).round()


def losses():
    """They draw again what `q_sample` drew."""
    for step in range(3):
        x_t = nf.q_sample(X, 500, S, NOISE.at(step=step))
        nf.mse_loss(x_t, X, 500, S, NOISE.at(step=step), target="v")


def brownian():
    [nf.randn((2, 8), NOISE.interval(a, b)) for a, b in ((0, 0.3), (0.3, 0.7), (0, 1))]


def sampling():
    nf.samplers.ddpm(S, 5).sample(lambda x, t: x, (2, 8), NOISE)
    nf.samplers.mdlm(steps=4, mask_id=50).sample(lambda x, t: np.zeros((2, 16, 50), np.float32), (2, 16), NOISE)
    [nf.randn((2, 4), NOISE.at(stream=64).window((8,), (k,))) for k in (0, 4)]
    nf.q_walk(X, S, NOISE, keep=[4])


def distributions():
    for _ in range(3):
        torch.distributions.Normal(torch.zeros(16), 1.0).sample()
        torch.distributions.Categorical(logits=torch.zeros(64, 8)).sample()
        torch.randn(16, dtype=torch.bfloat16), torch.randn(2, 8, 32, 32).to(memory_format=torch.channels_last)


def numpys():
    random = np.random.default_rng(0)
    for one in (random, *random.spawn(2), np.random.default_rng(random)):
        one.normal(size=16), one.integers(0, 2, 64), np.random.rand(16), one.permutation(16)  # noqa: NPY002


def epochs():
    """The shuffles of two loaders with one seed."""
    for _ in range(2):
        [*DataLoader(range(64), 8, shuffle=True, generator=torch.Generator().manual_seed(0))]


RIGHT = [digits, ranks_of_ddp, dropout, nearly_certain, losses, brownian, sampling, distributions, numpys, epochs]


@pytest.mark.parametrize("watch", WATCH)
@pytest.mark.parametrize("program", RIGHT, ids=lambda program: program.__name__)
def test_right_programs_are_not_reported(program, watch):
    with nf.audit(watch=watch) as draws:
        program()
    assert draws.repeated == [], str(draws)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpoint_draws_again_is_marked(reentrant):
    with nf.audit() as draws:
        x = torch.randn(64, 32, requires_grad=True)
        checkpoint(network(), x, use_reentrant=reentrant).sum().backward()
    assert [draw.on_purpose for draw in draws.made] == [False, False, True]
    assert draws.repeated == []


def test_repeats_on_purpose():
    """A validation that has the same noise in each epoch, and a perturbation that is taken back."""
    for marked in (True, False):
        with nf.audit() as draws:
            for _ in range(2):
                torch.randn(16)
                with draws.on_purpose() if marked else nullcontext():
                    nf.q_sample(X, 500, S, NOISE.at(step=2**32 - 1))
                    torch.randn(16, generator=torch.Generator().manual_seed(1))
        assert len(draws.repeated) == (0 if marked else 2)


# ---- around it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watch", WATCH)
def test_everything_is_as_before(watch):
    before = torch.randn, torch.Tensor.normal_, np.random.default_rng, np.random.randn, nf.info()["backend"]
    with suppress(KeyError), nf.audit(watch=watch) as draws:
        kept = np.random.default_rng(0)
        kept.normal(size=16)
        raise KeyError
    assert before == (torch.randn, torch.Tensor.normal_, np.random.default_rng, np.random.randn, nf.info()["backend"])
    assert "normal_" not in vars(torch.Tensor)
    kept.normal(size=16), torch.randn(16), nf.randn((2, 8), NOISE)
    assert len(draws.made) == 1


def test_numbers_are_those_of_a_program_that_is_not_watched():
    def program():
        torch.manual_seed(0)
        return torch.randn(20), np.random.default_rng(0).normal(size=20), nf.randn((2, 8), NOISE)

    with nf.audit():
        watched = program()
    assert all(np.array_equal(a, b) for a, b in zip(program(), watched, strict=True))


def test_what_cannot_be_watched():
    with pytest.raises(ValueError, match="watch: expected 'operators' or 'python', got 'all'"):
        nf.audit(watch="all")


def test_it_is_loaded_when_it_is_asked_for():
    """Seen to fail: imported at the top of the package."""
    code = """
import sys, noisefuse as nf
assert "audit" in dir(nf) and "noisefuse.interop.audits" not in sys.modules
with nf.audit() as draws:
    [nf.randn((2, 8), nf.Noise(7)) for _ in range(2)]
assert len(draws.repeated) == 1 and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fixture(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["noisefuse.interop.pytest"]\n')
    test = (
        "import noisefuse as nf\ndef test_{0}(noise_audit): [nf.randn((2, 8), nf.Noise(7, step={1})) for k in (1, 2)]\n"
    )
    (tmp_path / "test_noise.py").write_text(test.format("right", "k") + test.format("wrong", 1))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "2 draws of noise: 1 repeat others" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""k-diffusion's functions: against loops, with the same noise.

The loops (host_loops.py) of ddpm, lcm, ipndm and gradient_estimation are ComfyUI's. The others of ComfyUI's, and flows,
are in test_menu.py.

Seen to fail: noise that s_noise does not scale; `lower_order_final` as in `samplers.dpmpp_2m`; churn one step late; a
Brownian motion's second piece taken from the step's beginning.
"""

import doctest
import inspect
import itertools
import math
import pickle

import numpy as np
import pytest

import host_loops as loops
import noisefuse as nf
from host_loops import Host, ancestral, churned, multistep, multistep_sde

torch = pytest.importorskip("torch")
kd = pytest.importorskip("noisefuse.interop.k_diffusion")

SHAPE = (3, 2, 5)
inf = math.inf


def karras(n, least=0.03, most=14.6):
    roots = torch.linspace(most ** (1 / 7), least ** (1 / 7), n, dtype=torch.float64)
    return torch.cat([roots**7, torch.zeros(1, dtype=torch.float64)])


LEVELS = {"to clean data": karras(9), "a part": karras(20)[:7], "one step": karras(3)[-2:]}


def model(x, sigma, **extra):  # not linear, and another one for each sample's level
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return 0.25 / (0.25 + s**2) * x + 0.1 * torch.tanh(x / (1 + s))


class Motion:
    """A Brownian motion on given noise levels: k-diffusion's functions get it from a tree."""

    def __init__(self, like, levels, seed=5):
        rng, self.levels = np.random.default_rng(seed), np.sort([*levels])
        pieces = np.sqrt(np.diff(self.levels, prepend=0))[:, None] * rng.standard_normal((len(levels), like.numel()))
        self.at = torch.tensor(np.cumsum(pieces, axis=0)).reshape(-1, *like.shape).to(like.dtype)

    def find(self, level):
        k = int(np.argmin(np.abs(self.levels - float(level))))
        assert abs(self.levels[k] - float(level)) < 1e-5 * (1 + float(level))
        return k

    def __call__(self, sigma, sigma_next):
        a, b = self.find(sigma), self.find(sigma_next)
        return (self.at[b] - self.at[a]) / math.sqrt(abs(self.levels[b] - self.levels[a])) * (1 if b > a else -1)


# ---- the functions and the loops ---------------------------------------------------------------------------


def host(draw):
    return Host(lambda x, sigma: (model(x, torch.full(x.shape[:1], sigma, dtype=x.dtype)), None), draw)


SOME, CHURN = {"eta": 0.5, "s_noise": 0.9}, {"s_churn": 3.0, "s_noise": 1.003}
CASES = {
    "euler": (churned(loops.euler), [{}, CHURN, {"s_churn": 60.0, "s_tmin": 0.1, "s_tmax": 5.0}]),
    "heun": (churned(loops.heun), [{}, CHURN]),
    "dpm_2": (churned(loops.dpm_2), [{}, CHURN]),
    "lms": (multistep(loops.lms), [{}, {"order": 2}]),
    "ipndm": (multistep(loops.ipndm), [{}, {"max_order": 3}]),
    "gradient_estimation": (multistep(loops.gradient_estimation), [{}, {"ge_gamma": 1.5}]),
    "dpmpp_2m": (loops.dpmpp_2m, [{}]),
    "euler_ancestral": (ancestral(loops.euler), [{}, SOME, {"eta": 0.0}]),
    "dpm_2_ancestral": (ancestral(loops.dpm_2), [{}, SOME]),
    "dpmpp_2s_ancestral": (ancestral(loops.dpmpp_2s), [{}, SOME]),
    "dpmpp_sde": (loops.dpmpp_sde, [{}, SOME, {"r": 0.3}, {"eta": 0.0}]),
    "dpmpp_2m_sde": (multistep_sde(False, "midpoint"), [{}, {"solver_type": "heun"}, SOME, {"eta": 0.0}]),
    "dpmpp_3m_sde": (multistep_sde(True, "heun"), [{}, SOME, {"eta": 0.0}]),
    "ddpm": (loops.ddpm, [{}]),
    "lcm": (loops.lcm, [{}, {"s_noise": 0.9}]),
}
ALL = [(name, options) for name, (_, several) in CASES.items() for options in several]
SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
RANDOM = [name for name in CASES if name.endswith(("ancestral", "sde", "ddpm", "lcm"))]


def function(name):
    return getattr(kd, f"sample_{name}")


def start(dtype=torch.float64, level=14.6):
    return level * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def motion(name, x, sigmas, options):
    r = options.get("r", 0.5)
    pairs = [(float(a), float(b)) for a, b in itertools.pairwise(sigmas) if b > 0]
    middle = {a ** (1 - r) * b**r for a, b in pairs} if name == "dpmpp_sde" else set()
    return Motion(x, {float(sigma) for sigma in sigmas} | middle)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_a_function_is_the_loop(name, options, levels, dtype, close):
    sigmas, x = LEVELS[levels].to(dtype), start(dtype)
    before, given, draw = x.clone(), {}, None
    if name in RANDOM:
        draw = given["noise_sampler"] = motion(name, x, sigmas, options)
    elif "s_churn" in options:
        draw = lambda sigma, to: torch.randn_like(x)  # noqa: E731
    torch.manual_seed(3)
    expected = CASES[name][0](x, sigmas.tolist(), host(draw), **options)
    torch.manual_seed(3)
    found = function(name)(model, x, sigmas, disable=True, **given, **options)
    assert found.dtype == dtype
    assert torch.equal(x, before)
    assert (found - expected).abs().max() <= close * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in RANDOM if name not in SDE])
def test_a_seed_of_torchs_gives_the_picture_that_it_gave(name):
    x, sigmas = start(), LEVELS["to clean data"]
    torch.manual_seed(7)
    expected = CASES[name][0](x, sigmas.tolist(), host(lambda sigma, to: torch.randn_like(x)))
    torch.manual_seed(7)
    assert torch.allclose(function(name)(model, x, sigmas, disable=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SDE)
def test_the_noise_of_an_sde_is_repeated_by_torchs_seed(name):
    x, sigmas = start(), LEVELS["to clean data"]
    torch.manual_seed(7)
    first, second = (function(name)(model, x, sigmas, disable=True) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(function(name)(model, x, sigmas, disable=True), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", [*RANDOM, "euler", "heun", "dpm_2"])
def test_named_noise_is_a_samples_own(name):
    """A sample of a batch equals it alone; its noise has the row as step, on stream 3."""
    x, sigmas = start(), LEVELS["a part"]
    options = {} if name in RANDOM else CHURN
    run = lambda x, noise: function(name)(model, x, sigmas, disable=True, noise=noise, **options)  # noqa: E731
    whole = run(x, [nf.Noise(seed) for seed in (11, 12, 13)])
    assert torch.equal(run(x[1:2], nf.Noise(12)), whole[1:2])
    assert torch.equal(run(x, (nf.Noise(11), nf.Noise(12), nf.Noise(13))), whole)
    assert not torch.equal(run(x, nf.Noise(11))[1:2], whole[1:2])


@pytest.mark.parametrize(
    "name", [name for name in RANDOM if name not in ("dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")]
)
def test_our_noise_sampler_draws_what_rows_draw(name):
    x, sigmas, noise = start(), LEVELS["to clean data"], [nf.Noise(seed, step=5) for seed in (11, 12, 13)]
    loop = CASES[name][0](x, sigmas.tolist(), host(kd.noise_sampler(x, noise)))
    assert torch.allclose(function(name)(model, x, sigmas, disable=True, noise=noise), loop, rtol=1e-12, atol=1e-12)
    sampler = kd.noise_sampler(x, nf.Noise(11, step=5))
    sampler(1.0, 0.5)
    assert torch.equal(sampler(0.5, 0.1), nf.randn_like(x, nf.Noise(11, step=6, stream=3)))


@pytest.mark.parametrize("transform", [float, lambda sigma: -math.log(sigma)], ids=["sigma", "lambda"])
def test_our_brownian_sampler_draws_increments_of_one_motion(transform):
    """Seen to fail: the span left out; the noise of the first sample for all."""
    x, noise = start(), [nf.Noise(seed, step=5) for seed in (11, 12, 13)]
    draw = kd.brownian_noise_sampler(x, 0.03, 14.6, noise, transform=transform)
    levels = [14.6, 9.0, 2.5, 0.4, 0.03]
    times = [transform(level) for level in levels]
    parts = [draw(torch.tensor(a), torch.tensor(b)) for a, b in itertools.pairwise(levels)]
    roots = [abs(b - a) ** 0.5 for a, b in itertools.pairwise(times)]
    whole = draw(14.6, 0.03) * abs(times[0] - times[-1]) ** 0.5
    assert torch.allclose(sum(root * z for root, z in zip(roots, parts, strict=True)), whole, atol=1e-5)
    alone = kd.brownian_noise_sampler(x[1:2], 14.6, 0.03, noise[1], transform=transform)
    assert torch.equal(alone(9.0, 2.5), parts[1][1:2])
    with pytest.raises(ValueError, match="outside of the span"):
        draw(20.0, 1.0)


@pytest.mark.parametrize(
    ("name", "options"), [("heun", {}), ("euler", CHURN), ("dpmpp_2m", {}), ("dpmpp_sde", {})], ids=str
)
def test_callbacks_get_their_dictionaries(name, options):
    x, sigmas, calls, told = start(), LEVELS["to clean data"], [], []

    def watched(x, sigma, scale):
        told.append((x, sigma))
        return scale * model(x, sigma)

    function(name)(watched, x, sigmas, {"scale": 0.5}, calls.append, True, **options)
    assert [list(call) for call in calls] == [["x", "i", "sigma", "sigma_hat", "denoised"]] * (len(sigmas) - 1)
    assert [call["i"] for call in calls] == list(range(len(sigmas) - 1))
    for call in calls:
        shown, level = next((shown, level) for shown, level in told if shown is call["x"])
        assert level.shape == x.shape[:1]
        assert level.dtype == x.dtype
        assert call["sigma_hat"] == level[0]
        assert call["sigma"] == sigmas[call["i"]]
        assert torch.equal(call["denoised"], 0.5 * model(shown, level))
    assert (calls[0]["sigma_hat"] > calls[0]["sigma"]) == ("s_churn" in options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde"])
def test_half_precision(name, dtype):
    x, sigmas, told = start(dtype), LEVELS["to clean data"].float(), []

    def watched(x, sigma):
        told.append(sigma.dtype)
        return model(x, sigma)

    given = {"noise": nf.Noise(7)} if name in RANDOM else {}
    found = function(name)(watched, x, sigmas, disable=True, **given)
    exact = function(name)(model, x.double(), sigmas, disable=True, **given)
    assert found.dtype == dtype
    assert {*told} == {dtype}
    assert (found - exact).abs().max() < 20 * torch.finfo(dtype).eps * exact.abs().max()


def test_nothing_to_do():
    x = start()
    assert function("dpmpp_2m_sde")(model, x, torch.zeros(1)) is x
    assert function("lms")(model, x, torch.zeros(0)) is x


def test_no_graph_is_kept():
    x = start().requires_grad_()
    assert not function("heun")(model, x, LEVELS["a part"], disable=True).requires_grad


def test_rows_of_a_list_of_levels_are_kept():
    x, sigmas = start(), LEVELS["a part"]
    function("lms")(model, x, sigmas, disable=True)
    before = kd.loop._run.cache_info()
    function("lms")(model, x, sigmas.clone(), disable=True)
    assert kd.loop._run.cache_info().hits == before.hits + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp_2m_sde", {"solver_type": "rk"}, "solver_type must be midpoint or heun"),
        ("dpmpp_2m_sde", {"eta": -1.0}, "eta = -[0-9.]+: expected a finite number of at least 0"),
        ("dpmpp_2m_sde", {"eta": -0.5}, "eta = -[0-9.]+: expected a finite number of at least 0"),
        ("dpmpp_3m_sde", {"eta": -1.0}, "eta = -[0-9.]+: expected a finite number of at least 0"),
        ("dpmpp_2m_sde", {"sigmas": torch.tensor([1.0, 0.0, 0.0])}, "noise levels above 0"),
        ("dpmpp_2m_sde", {"sigmas": torch.tensor([1.0, 2.0])}, "goes to a lower level"),
        ("euler_ancestral", {"sigmas": torch.tensor([1.0, 2.0])}, "goes to a lower level"),
        ("euler", {"sigmas": torch.tensor([1.0, 0.0, 0.0])}, "noise levels above 0"),
        ("euler_ancestral", {"noise_sampler": lambda sigma, to: torch.zeros(2)}, "noise"),
        ("lms", {"order": 5}, "order = 5: expected an integer from 1 to 4"),
    ],
)
def test_what_is_wrong_is_said(name, options, message):
    given = {"sigmas": LEVELS["a part"], "disable": True, **options}
    with pytest.raises(ValueError, match=message):
        function(name)(model, start(), **given)


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_looked_at_first(name):
    """Seen to fail: noise levels as a column, or one alone, and an x without a batch gave Python's own errors."""
    levels = LEVELS["a part"]
    for x, sigmas, error in (
        (start(), levels[:, None], ValueError),
        (start(), levels[0], ValueError),
        (torch.tensor(1.0), levels, ValueError),
        (start().numpy(), levels, TypeError),
    ):
        with pytest.raises(error, match=r"^(x: expected a tensor, got ndarray|sigmas, x: expected levels along one)"):
            function(name)(model, x, sigmas, disable=True)


def test_two_sources_of_noise_are_refused():
    with pytest.raises(TypeError, match="noise, noise_sampler: give one of them"):
        function("lcm")(model, start(), LEVELS["a part"], noise=nf.Noise(1), noise_sampler=lambda sigma, to: None)


def test_noise_that_is_none_is_refused():
    for options in ({"noise": 3}, {"noise": [3]}):
        with pytest.raises(TypeError, match="expected a Noise"):
            function("euler_ancestral")(model, start(), LEVELS["a part"], disable=True, **options)
        with pytest.raises(TypeError, match=r"noise(\[0\])?: expected a Noise.*, got 3: a bare seed"):
            function("euler")(model, start(), LEVELS["a part"], disable=True, s_churn=3.0, **options)


@pytest.mark.parametrize("name", [*RANDOM, "euler"])
@pytest.mark.parametrize("made", [lambda x: x, list, lambda x: nf.Noise(1).interval(0, 1)])
def test_noise_for_one_row_alone_is_refused(name, made):
    """A row would take it, and the next row the same one."""
    x = start()
    with pytest.raises(TypeError, match=r"noise(\[0\])?: expected a Noise.*, got (Tensor|Increment)"):
        function(name)(model, x, LEVELS["a part"], disable=True, noise=made(x))
    with pytest.raises(TypeError, match=r"noise(\[0\])?: expected a Noise.*, got (Tensor|Increment)"):
        kd.brownian_noise_sampler(x, 0.03, 14.6, made(x))(9.0, 2.5)


@pytest.mark.parametrize("name", [name for name in RANDOM if name not in SDE])
def test_the_seed_that_comfyui_hands_on_draws(name):
    """It is a new generator, with seed + 1 on CPUs; torch's own stays unchanged."""
    x, sigmas, told = start(), LEVELS["to clean data"], []
    own = torch.Generator().manual_seed(8)
    draw = lambda sigma, to: torch.randn(x.shape, dtype=x.dtype, generator=own)  # noqa: E731
    seen = lambda x, sigma, seed: told.append(seed) or model(x, sigma)  # noqa: E731
    before = torch.get_rng_state()
    found = function(name)(seen, x, sigmas, {"seed": 7}, disable=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert {*told} == {7}
    assert torch.equal(found, function(name)(model, x, sigmas, disable=True, noise_sampler=draw))


@pytest.mark.parametrize("name", SDE)
def test_the_seed_that_comfyui_hands_on_names_the_noise_of_an_sde(name):
    x, sigmas, seen = start(), LEVELS["to clean data"], lambda x, sigma, seed: model(x, sigma)
    before = torch.get_rng_state()
    found = function(name)(seen, x, sigmas, {"seed": 7}, disable=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, function(name)(model, x, sigmas, disable=True, noise=nf.Noise(7)))


def test_churn_is_of_torchs_generator_whatever_the_seed():
    x, sigmas, seen = start(), LEVELS["a part"], lambda x, sigma, seed: model(x, sigma)
    torch.manual_seed(7)
    expected = function("euler")(model, x, sigmas, disable=True, **CHURN)
    torch.manual_seed(7)
    assert torch.equal(function("euler")(seen, x, sigmas, {"seed": 3}, disable=True, **CHURN), expected)


def test_churn_takes_in_both_ends_of_its_levels():
    x, levels = start(), torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)

    def run(**bounds):
        return function("euler")(model, x, levels, disable=True, noise=nf.Noise(3), s_churn=1.0, **bounds)

    assert torch.equal(run(s_tmin=4.0, s_tmax=9.0), run())
    assert not torch.equal(run(s_tmin=4.1), run())
    assert not torch.equal(run(s_tmax=8.9), run())


def test_churn_before_the_first_row_has_the_name_of_a_row_that_there_is_not():
    """The row before a call draws the call's noise; the first call's has the key of the row after the last."""
    x, levels, noise = start(), [9.0, 4.0, 1.0], nf.Noise(3, step=5)
    rows = iter([2, 0])
    draw = lambda sigma, to: nf.randn_like(x, noise.at(step=5 + next(rows), stream=3))  # noqa: E731
    expected = churned(loops.euler)(x, levels, host(draw), **CHURN)
    found = function("euler")(model, x, torch.tensor(levels, dtype=x.dtype), disable=True, noise=noise, **CHURN)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_seed_is_the_models_where_nothing_is_drawn():
    x, sigmas, seen = start(), LEVELS["a part"], lambda x, sigma, seed: model(x, sigma)
    for name, given in (("heun", {}), ("lcm", {"noise": nf.Noise(1)})):
        found = function(name)(seen, x, sigmas, {"seed": "a"}, disable=True, **given)
        assert torch.equal(found, function(name)(model, x, sigmas, disable=True, **given))


def test_a_level_twice_draws_nothing():
    """As in docs/k_diffusion.md, the step does nothing, and no noise sampler is called for it."""
    x, asked = start(), []
    draw = lambda sigma, to: asked.append((float(sigma), float(to))) or torch.zeros_like(x)  # noqa: E731
    twice, once = torch.tensor([9.0, 4.0, 4.0, 1.0]), torch.tensor([9.0, 4.0, 1.0])
    for name in ("euler_ancestral", "dpmpp_2m_sde"):
        found = function(name)(model, x, twice, disable=True, noise_sampler=draw)
        assert asked == [(9.0, 4.0), (4.0, 1.0)] * (1 + (name != "euler_ancestral"))
        assert found.isfinite().all()
    options = {"disable": True, "noise_sampler": lambda sigma, to: torch.zeros_like(x)}
    short, long = (function("euler_ancestral")(model, x, levels, **options) for levels in (once, twice))
    assert torch.allclose(short, long, rtol=1e-14, atol=1e-14)
    assert function("ipndm")(model, x, twice, disable=True).isfinite().all()


def test_arguments_of_another_kind():
    x, sigmas = start(), LEVELS["a part"]
    for levels in (sigmas.tolist(), sigmas.numpy()):
        with pytest.raises(TypeError, match=r"sigmas: expected a tensor, got (list|ndarray)"):
            function("euler")(model, x, levels)
    with pytest.raises(TypeError, match="model: expected the clean sample, a tensor, got tuple"):
        function("euler")(lambda x, sigma: (x, x), x, sigmas, disable=True)


def test_a_noise_sampler_of_another_dtype_is_rounded():
    x, sigmas, z = start(torch.float32), LEVELS["a part"].float(), start(level=1.0)
    run = lambda z: function("lcm")(model, x, sigmas, disable=True, noise_sampler=lambda sigma, to: z)  # noqa: E731
    assert torch.equal(run(z), run(z.float()))


@pytest.mark.parametrize(("name", "options"), [("dpmpp_sde", SOME), ("euler", CHURN), ("lms", {"order": 2})], ids=str)
def test_numbers_may_be_tensors(name, options):
    x, sigmas = start(), LEVELS["a part"]
    run = lambda **given: function(name)(model, x, sigmas, disable=True, **given)  # noqa: E731
    torch.manual_seed(7)
    expected = run(**options)
    before = kd.loop._run.cache_info()
    torch.manual_seed(7)
    tensors = {
        key: torch.tensor(value, dtype=torch.int64 if key == "order" else torch.float64)
        for key, value in options.items()
    }
    assert torch.equal(run(**tensors), expected)
    assert kd.loop._run.cache_info().misses == before.misses


@pytest.mark.parametrize("name", sorted({*kd.__all__} - {"MENU"}))
def test_examples_run(name):
    """Seen to fail: without the example that all functions share."""
    scope = {"nf": nf}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(getattr(kd, name)), scope, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


COMMON = {"model": inspect.Parameter.empty, "x": inspect.Parameter.empty, "sigmas": inspect.Parameter.empty}
COMMON |= {"extra_args": None, "callback": None, "disable": None}
CHURNING = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": inf, "s_noise": 1.0}
ANCESTRAL = {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}
SIGNATURES = {
    **dict.fromkeys(("euler", "heun", "dpm_2"), CHURNING),
    **dict.fromkeys(("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_3m_sde"), ANCESTRAL),
    "dpmpp_sde": {**ANCESTRAL, "r": 0.5},
    "dpmpp_2m_sde": {**ANCESTRAL, "solver_type": "midpoint"},
    "dpmpp_2m": {},
    "lms": {"order": 4},
    "ipndm": {"max_order": 4},
    "gradient_estimation": {"ge_gamma": 2.0},
    "ddpm": {"noise_sampler": None},
    "lcm": {"noise_sampler": None, "s_noise": 1.0, "s_noise_end": None, "noise_clip_std": 0.0},
}


@pytest.mark.parametrize("name", CASES)
def test_arguments_and_defaults_are_theirs(name):
    parameters = inspect.signature(function(name)).parameters.values()
    theirs = {p.name: p.default for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert list(theirs.items()) == list((COMMON | SIGNATURES[name]).items())
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} <= {"noise", "flow"}


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_pickled_by_its_name_and_errors_say_it(name):
    """Seen to fail: without a qualified name of its own."""
    assert pickle.loads(pickle.dumps(function(name))) is function(name)
    with pytest.raises(TypeError, match=rf"^sample_{name}\(\) .*'sigmas'"):
        function(name)(model, start())


def test_one_brownian_path_in_two_pieces_keeps_the_variance():
    """Data has deviation 0.5, with its ideal denoiser: 0.493 on 20 noise levels; two independent draws would give
    0.436."""
    sigmas, x = karras(20, 0.02, 10.0), 10 * nf.randn_like(torch.empty(1, 50000), nf.Noise(1))
    ideal = lambda x, sigma: 0.25 / (0.25 + sigma[0] ** 2) * x  # noqa: E731
    assert abs(kd.sample_dpmpp_sde(ideal, x, sigmas, disable=True, noise=nf.Noise(2)).std() - 0.493) < 0.006


def test_without_tqdm_there_is_no_bar(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    x, sigmas = start(), LEVELS["a part"]
    assert torch.equal(function("euler")(model, x, sigmas), function("euler")(model, x, sigmas, disable=True))

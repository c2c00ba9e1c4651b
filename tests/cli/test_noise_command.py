# SPDX-License-Identifier: Apache-2.0
"""`noisefuse noise` gives the bits of the call on the whole array, whatever stops it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import noisefuse as nf
from conftest import first_and_slow, one_in, until
from noisefuse.arguments import calls
from noisefuse.commands.cli import main
from noisefuse.commands.noise import _Progress
from noisefuse.commands.noise import files as _noise_files
from noisefuse.commands.noise.journal import Journal
from noisefuse.language.levels import LEVELS

AT_300 = ["--schedule", "cosine", "--t", "300", "--seed", "7"]
COMMAND = [sys.executable, "-m", "noisefuse", "noise"]


def save(path: Path, *shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    array = np.random.default_rng(0).uniform(0, 255, shape).astype(dtype)
    np.save(path, array)
    return array


def noised(x: np.ndarray[Any, Any], **options: Any) -> np.ndarray[Any, Any]:
    return nf.q_sample(x, 300, nf.Schedule.cosine(1000), nf.Noise(7), **options)


def run(*arguments: Any) -> int:
    return main(["noise", *map(str, arguments)])


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Returns the command's output, in one line."""
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("noisefuse noise: ")
    assert error.count("\n") == 1
    return error


# ---- bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 50), (2, 3, 7, 11), (5, 1), (0, 3), (4, 0)])
@pytest.mark.parametrize("block", [1, 37, 1 << 20])
def test_an_array_has_the_bits_of_one_call(
    shape: tuple[int, ...], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: a window that begins elsewhere, rows that are numbered from the block's first row."""
    monkeypatch.setattr(_noise_files, "PIECE", 16)
    x = save(tmp_path / "x.npy", *shape)
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", block) == 0
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == np.float32
    assert np.array_equal(y, noised(x))


@pytest.mark.parametrize("source", ["uint8", "uint16", "float16", "float32", "float64", ">u2", ">f4", "<f8"])
@pytest.mark.parametrize("dtype", [None, "uint8", "uint16", "float16", "float32", "float64"])
def test_dtypes_are_those_of_the_operations(source: str, dtype: str | None, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", 3, 40, dtype=source)
    options = [] if dtype is None else ["--dtype", dtype]
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, *options) == 0
    native = x.astype(x.dtype.newbyteorder("="))
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(native, dtype=dtype))
    if dtype in LEVELS and not np.can_cast(x.dtype, dtype):
        options += ["--range", 0, LEVELS[dtype]]
    assert run(tmp_path / "x.npy", tmp_path / "z.npy", "--std", 3, "--seed", 7, "--step", 2, *options) == 0
    expected = nf.augment.gaussian(native, 3.0, nf.Noise(7, step=2), dtype=dtype)
    z = np.load(tmp_path / "z.npy")
    assert z.dtype == expected.dtype
    assert np.array_equal(z, expected)


@pytest.mark.parametrize("source", ["float32", "float64", "uint16", "uint8"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_range_says_what_levels_stand_for(source: str, dtype: str, tmp_path: Path) -> None:
    """The result equals an independent formula, up to the rounding of halves. Seen to fail: a range of [-1, 1] for any
    arguments; integer x in [-1, 1], which --std takes in its own units."""
    x = save(tmp_path / "x.npy", 3, 400, dtype=source)
    ranged = ["--dtype", dtype, "--range", "-20.5", 300]
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", "--std", 30, "--seed", 7, *ranged) == 0
    found = np.load(tmp_path / "y.npy")
    wide = nf.augment.gaussian(x.astype(np.float64), 30.0, nf.Noise(7))
    top = LEVELS[dtype]
    expected = np.clip((wide + 20.5) / 320.5 * top, 0, top)
    assert found.dtype == dtype
    assert np.abs(found - expected).max() < 0.5 + 2e-6 * top
    assert (found == 0).any()
    assert run(tmp_path / "x.npy", tmp_path / "z.npy", *AT_300, "--dtype", dtype, "--range", -1, 1) == 0
    assert np.array_equal(np.load(tmp_path / "z.npy"), noised(x, dtype=dtype))


def test_floats_become_bytes_by_a_range_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused, and nothing is written. Seen to fail: 58 % zeros of N(0, 1)."""
    for dtype, other in (("float32", "uint8"), ("float16", "uint16"), ("uint16", "uint8")):
        save(tmp_path / "x.npy", 10, 10, dtype=dtype)
        error = fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", "--std", 1, "--seed", 7, "--dtype", other)
        assert f"--std with --dtype {other} of {dtype} data needs --range LOW HIGH" in error
    for levels, said in (([1, 1], "LOW below HIGH"), ([0, 1], "expected --dtype uint8 or uint16 with it")):
        dtype = "uint8" if levels == [1, 1] else "float32"
        arguments = [tmp_path / "x.npy", tmp_path / "y.npy", "--std", 1, "--seed", 7, "--dtype", dtype]
        assert said in fails(capsys, *arguments, "--range", *levels)
    assert [*tmp_path.iterdir()] == [tmp_path / "x.npy"]


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 100), st.integers(1, 60))
def test_pieces_are_all_elements_once(n: int, elements: int, block: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_noise_files, "PIECE", piece)
        found = []
        for first in range(0, elements, block):
            for sample, start, rows, length in _noise_files.pieces(first, min(first + block, elements), n):
                assert rows * length <= piece
                assert start + length <= n
                assert rows == 1 or (start == 0 and length == n)
                found += range(sample * n + start, sample * n + start + rows * length)
    assert found == list(range(elements))


def photographs(folder: Path) -> dict[str, Any]:
    """Makes sources of every kind, by the name of the target, with the expected target."""
    from PIL import Image

    random, made = np.random.default_rng(0), {}
    shapes = {"a.png": (9, 7, 3), "deep/er/b.PNG": (5, 6), "c.bmp": (4, 4, 3), "d.png": (6, 5, 4)}
    for name, shape in shapes.items():
        pixels = random.integers(0, 256, shape, np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        alpha = shape[2:] == (4,)
        colour = pixels[..., :3] if alpha else pixels
        noise = nf.Noise(7, sample=nf.augment.sample_id(name))
        expected = nf.augment.gaussian(colour[None], 20.0, noise)[0]
        made[str(Path(name).with_suffix(".png"))] = np.dstack([expected, pixels[..., 3]]) if alpha else expected
    (folder / "notes.txt").write_text("not an image")
    return made


@pytest.mark.filterwarnings("default:std = 0.1:UserWarning")
@pytest.mark.parametrize("kind", [".npy", ".zarr", ""])
def test_noise_that_is_rounded_away_is_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: "wrote 30 samples", a copy of the source."""
    monkeypatch.setattr(calls, "WARNED", set())
    assert run(few(tmp_path, kind, "x", 0), tmp_path / f"y{kind}", "--std", 0.1, "--seed", 7) == 0
    said = "std = 0.1 is in grey levels, which are whole numbers: it hardly changes any"
    meant = "if a fraction of the range 0 .. 255 was meant, pass std = 25.5"
    assert capsys.readouterr().err == f"noisefuse noise: {said}; {meant}\n"


def test_images_are_named_by_their_paths(tmp_path: Path) -> None:
    """Seen to fail: a sample id of the whole path, noise on transparency."""
    from PIL import Image

    expected = photographs(tmp_path / "x")
    assert run(tmp_path / "x", tmp_path / "y", "--std", 20, "--seed", 7) == 0
    found = {str(path.relative_to(tmp_path / "y")): path for path in (tmp_path / "y").rglob("*") if path.is_file()}
    assert found.keys() == expected.keys()
    for name, path in found.items():
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), expected[name]), name
    assert run(tmp_path / "x", tmp_path / "z", *AT_300) == 0
    with Image.open(tmp_path / "x" / "a.png") as image:
        pixels = np.asarray(image)[None]
    expected = nf.q_sample(
        pixels, 300, nf.Schedule.cosine(1000), nf.Noise(7, sample=nf.augment.sample_id("a.png")), dtype="uint8"
    )
    with Image.open(tmp_path / "z" / "a.png") as image:
        assert np.array_equal(np.asarray(image), expected[0])


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((11,), (4,), None),
        ((5, 7, 9), (2, 7, 4), None),
        ((5, 7, 9), (1, 3, 9), None),
        ((6, 8, 8), (1, 4, 4), (3, 8, 4)),
    ],
)
def test_a_zarr_store_has_the_bits_of_one_call(
    shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Seen to fail: chunks without their place in the sample."""
    zarr = pytest.importorskip("zarr")
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    store = zarr.create_array(
        tmp_path / "x.zarr", shape=shape, dtype="float32", chunks=chunks, shards=shards, attributes={"units": "K"}
    )
    store[...] = x
    assert run(tmp_path / "x.zarr", tmp_path / "y.zarr", *AT_300) == 0
    made = zarr.open_array(tmp_path / "y.zarr", mode="r")
    assert (made.chunks, made.shards, dict(made.attrs)) == (chunks, shards, {"units": "K"})
    assert np.array_equal(made[...], noised(x))
    assert not [*(tmp_path / "y.zarr").rglob(".noisefuse*")]


# ---- stopped, and run again --------------------------------------------------------------------------------


def hash_of(path: Path) -> str:
    """Returns the bytes of a file, or of all files in a folder by name."""
    digest, files = hashlib.sha256(), [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def kill_and_run_again(source: Path, target: Path, kills: int, *options: str) -> None:
    """Kills the command at random moments, this often before it ends; then leaves it alone."""
    moments, slowest, killed = random.Random(16), 1.0, 0
    while True:
        began = time.monotonic()
        process = subprocess.Popen([*COMMAND, source, target, *AT_300, *options], stdout=subprocess.DEVNULL)
        try:
            process.wait(None if killed == kills else moments.uniform(0.2, slowest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            assert target.exists()
            slowest = min(slowest, time.monotonic() - began)
            if killed == kills:
                return
            there = [*target.parent.glob(f"{target.name}*")]
            assert len(there) == 2  # and the journal
            for path in there:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            assert process.returncode == -signal.SIGKILL


def sources(folder: Path, kind: str) -> Path:
    """Makes a source of some hundred blocks."""
    source, x = folder / f"x{kind}", np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    if kind == ".npy":
        np.save(source, x)
    elif kind == ".zarr":
        zarr = pytest.importorskip("zarr")
        zarr.create_array(source, shape=x.shape, dtype=x.dtype, chunks=(1, 32, 32, 3))[...] = x
    else:
        from PIL import Image

        source.mkdir()
        for n, pixels in enumerate(np.concatenate([x] * 4)):
            Image.fromarray(pixels).save(source / f"{n}.png")
    return source


@pytest.mark.parametrize("kind", first_and_slow([".npy", ".zarr", ""]))
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.release)])
def test_killed_and_run_again_it_makes_the_same_bits(kills: int, kind: str, tmp_path: Path) -> None:
    """Seen to fail: a block that is in the journal before it is made, an image written under its own name."""
    source, options = sources(tmp_path, kind), ["--block", "2048"]
    subprocess.run([*COMMAND, source, tmp_path / f"whole{kind}", *AT_300, *options], check=True, capture_output=True)
    kill_and_run_again(source, tmp_path / f"y{kind}", kills, *options)
    assert hash_of(tmp_path / f"y{kind}") == hash_of(tmp_path / f"whole{kind}")


def test_a_finished_block_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", 10]
    made: list[int] = []
    make = _noise_files.Npy.make

    def interrupted(job: Any, block: int) -> Any:
        if block == 6:
            raise KeyboardInterrupt
        made.append(block)
        return make(job, block)

    monkeypatch.setattr(_noise_files.Npy, "make", interrupted)
    with nf.set_num_threads(1):
        assert run(*arguments) == 130
    assert not (tmp_path / "y.npy").exists()
    monkeypatch.setattr(_noise_files.Npy, "make", lambda job, block: made.append(block) or make(job, block))
    journal = (tmp_path / "y.npy.noisefuse").read_bytes()
    (tmp_path / "y.npy.noisefuse").write_bytes(journal[:-3])  # its last line is half-written
    before = [json.loads(line.partition(b" ")[2])[0] for line in journal.splitlines()[1:-1]]
    assert before
    made.clear()
    assert run(*arguments) == 0
    assert sorted(made + before) == list(range(10))
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


@pytest.mark.parametrize("cut", ["partial", "target"])
def test_what_somebody_took_away_is_made_again(cut: str, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", 10]
    assert run(*arguments) == 0
    if cut != "target":  # as if it had been stopped before the rename
        (tmp_path / "y.npy").rename(tmp_path / "y.npy.noisefuse-partial")
    (tmp_path / {"target": "y.npy", "partial": "y.npy.noisefuse-partial"}[cut]).unlink()
    assert run(*arguments) == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


@pytest.mark.parametrize("kind", ["", ".npy", ".zarr"])
@pytest.mark.parametrize("left", [0, 20])
def test_what_nobody_knows_the_origin_of_is_no_part_of_a_target(
    kind: str, left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal is gone or cut, and so is its use. Seen to fail: other bits among those of this command."""
    source, target = sources(tmp_path, kind), tmp_path / f"y{kind}"
    assert run(source, target, *AT_300) == 0
    target.rename(tmp_path / f"y{kind}.noisefuse-partial")
    journal = tmp_path / f"y{kind}.noisefuse"
    journal.write_bytes(journal.read_bytes()[:left]) if left else journal.unlink()
    assert f"y{kind}.noisefuse-partial exists already" in fails(capsys, source, target, *AT_300[:-1], "8")
    assert (tmp_path / f"y{kind}.noisefuse-partial").exists()


def test_an_image_that_was_mended_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that cannot be read costs the others nothing. Seen to fail: a repaired one refused, one kept
    unchanged."""
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "x").mkdir(exist_ok=True)
        save_grey(tmp_path / "x" / f"{name}.png", 100)
    arguments = [tmp_path / "x", tmp_path / "y", *AT_300]
    assert run(*arguments) == 0
    (tmp_path / "y").rename(tmp_path / "y.noisefuse-partial")  # as if it had been stopped before the rename
    kept, changed = ((tmp_path / "y.noisefuse-partial" / f"{name}.png").stat().st_ino for name in ("a", "b"))
    (tmp_path / "x" / "b.png").write_text("no image")
    assert "b.png: cannot identify" in fails(capsys, *arguments)
    save_grey(tmp_path / "x" / "b.png", 20)
    assert run(*arguments) == 0
    assert (tmp_path / "y" / "a.png").stat().st_ino == kept
    assert (tmp_path / "y" / "b.png").stat().st_ino != changed
    noise = nf.Noise(7, sample=nf.augment.sample_id("b.png"))
    expected = nf.q_sample(np.full((1, 8, 8), 20, np.uint8), 300, nf.Schedule.cosine(1000), noise, dtype="uint8")
    with Image.open(tmp_path / "y" / "b.png") as image:
        assert np.array_equal(np.asarray(image), expected[0])


@pytest.mark.parametrize("whole", [True, False])
def test_an_image_that_changed_after_its_target_was_made_is_made_again(
    whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: "is whole already" for a target that is another image's; another file of the same time and size."""
    arguments = three_made(tmp_path)
    kept = (tmp_path / "y" / "a.png").stat().st_ino
    save_grey(tmp_path / "x" / "b.bmp", 20)
    before = (tmp_path / "x" / "c.bmp").stat()
    save_grey(tmp_path / "x" / "c.bmp", 20)
    os.utime(tmp_path / "x" / "c.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    if not whole:
        (tmp_path / "y").rename(tmp_path / "y.noisefuse-partial")
    assert run(*arguments) == 0
    assert (tmp_path / "y" / "a.png").stat().st_ino == kept
    assert not (tmp_path / "y.noisefuse-partial").exists()
    assert_images(tmp_path / "y", {"a.bmp": 100, "b.bmp": 20, "c.bmp": 20})
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "is whole already" in capsys.readouterr().out


def test_an_image_that_is_lost_from_a_whole_target_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: "is whole already" for a target without its images."""
    arguments = three_made(tmp_path)
    (tmp_path / "y" / "b.png").unlink()
    (tmp_path / "y" / "c.png").write_bytes(b"cut")
    assert run(*arguments) == 0
    assert_images(tmp_path / "y", {"a.bmp": 100, "b.bmp": 100, "c.bmp": 100})
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "is whole already" in capsys.readouterr().out


def three_made(folder: Path) -> list[object]:
    """Returns the arguments of a command that made y from x, a folder of three images."""
    (folder / "x").mkdir()
    for name in ("a", "b", "c"):
        save_grey(folder / "x" / f"{name}.bmp", 100)
    arguments = [folder / "x", folder / "y", *AT_300]
    assert run(*arguments) == 0
    return arguments


def save_grey(path: Path, level: int) -> None:
    """Writes an image of 8 x 8 grey levels of this value."""
    from PIL import Image

    Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)


def assert_images(target: Path, levels: dict[str, int]) -> None:
    """Asserts images of 8 x 8 such grey levels, by the names of their sources."""
    from PIL import Image

    for name, level in levels.items():
        noise = nf.Noise(7, sample=nf.augment.sample_id(name))
        x = np.full((1, 8, 8), level, np.uint8)
        expected = nf.q_sample(x, 300, nf.Schedule.cosine(1000), noise, dtype="uint8")
        with Image.open(target / Path(name).with_suffix(".png")) as image:
            assert np.array_equal(np.asarray(image), expected[0]), name


@pytest.mark.parametrize("moment", ["read", "made"])
def test_an_image_that_changes_while_targets_are_made_is_made_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image changes between its reading and its writing, or after it is written and before others are. One that
    always changes is named. Seen to fail: targets of the images before."""
    (tmp_path / "x").mkdir()
    names = [f"{n}.png" for n in range(8)]
    for name in names:
        save_grey(tmp_path / "x" / name, 100)
    arguments = [tmp_path / "x", tmp_path / "y", *AT_300]
    noise, made = _noise_files.Work.__call__, []

    def changing(work: Any, x: Any, out: Any, name: Any, *others: Any) -> None:
        noise(work, x, out, name, *others)
        made.append(name)
        if name == "0.png" and moment == "read" and (len(made) <= 3 or always):
            save_grey(tmp_path / "x" / name, 20 + len(made))
        elif len(made) == 8 and moment == "made":
            save_grey(tmp_path / "x" / made[0], 21)

    monkeypatch.setattr(_noise_files.Work, "__call__", changing)
    always = False
    with nf.set_num_threads(1):
        assert run(*arguments) == 0
    assert sorted(made) == sorted([*names, "0.png"])
    assert_images(tmp_path / "y", {name: 21 if name == "0.png" else 100 for name in names})
    always, _ = True, (tmp_path / "x" / "0.png").touch()
    if moment == "read":
        error = fails(capsys, *arguments)
        assert re.search("images of .*x change while they are noised; what is made is kept", error)


@pytest.mark.parametrize("kind", [".npy", ".zarr", ""])
@pytest.mark.parametrize("blocks", [3, 30])
def test_a_source_that_is_replaced_meanwhile_is_refused(
    kind: str, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source changes in the middle, and when the last block is made. Nothing is removed, and nothing has the
    target's name. Seen to fail: "wrote" for some of the old one and some of the new one."""
    source, new = few(tmp_path, kind, "x", 0), few(tmp_path, kind, "new", 1)

    def replace() -> None:
        if kind:
            source.rename(tmp_path / "old")
            new.rename(source)
        else:
            (source / "0.png").rename(source / "00.png")

    once_there_are(blocks, replace, monkeypatch)
    arguments = [source, tmp_path / f"y{kind}", *AT_300, "--block", 100]
    error = fails(capsys, *arguments)
    # Between the two names of `replace` there is no source.
    assert re.search(r"changed while it was noised|No such file .*(0\.png|x\.npy|x\.zarr)|cannot read .*0\.png", error)
    left = [f"y{kind}.noisefuse", f"y{kind}.noisefuse-partial"]
    assert sorted(path.name for path in tmp_path.glob("y*")) == left
    monkeypatch.undo()
    assert "to start anew, remove" in fails(capsys, *arguments)


def test_a_source_that_is_replaced_for_a_while_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The target has its name again at the end. Seen to fail: "wrote" for blocks of another source."""
    source, new = few(tmp_path, ".npy", "x", 0), few(tmp_path, ".npy", "new", 1)
    noise, made = _noise_files.Work.__call__, []

    def changing(*arguments: Any) -> None:
        noise(*arguments)
        made.append(arguments)
        if len(made) in (3, 10):
            source.rename(tmp_path / "other.npy")
            new.rename(source)
            (tmp_path / "other.npy").rename(new)

    monkeypatch.setattr(_noise_files.Work, "__call__", changing)
    with nf.set_num_threads(1):
        error = fails(capsys, source, tmp_path / "y.npy", *AT_300, "--block", 100)
    assert "x.npy was changed while it was noised" in error
    assert not (tmp_path / "y.npy").exists()


def few(folder: Path, kind: str, name: str, seed: int) -> Path:
    """Makes a source of 30 blocks."""
    path, x = folder / f"{name}{kind}", np.random.default_rng(seed).integers(0, 256, (30, 10, 10), np.uint8)
    if kind == ".npy":
        np.save(path, x)
    elif kind == ".zarr":
        zarr = pytest.importorskip("zarr")
        zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=(1, 10, 10))[...] = x
    else:
        from PIL import Image

        path.mkdir()
        for n, pixels in enumerate(x):
            Image.fromarray(pixels).save(path / f"{n}.png")
    return path


@pytest.mark.parametrize("kind", [".npy", ".zarr", ""])
@pytest.mark.parametrize("how", ["emptied", "cut", "longer", "of another"])
def test_what_was_changed_in_the_partial_target_is_made_again(
    kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It recovers even if it is stopped once more when the file has its length again. Seen to fail: zeros in a whole
    target; blocks that a journal had when the file was empty."""
    source = few(tmp_path, kind, "x", 0)
    target, partial = tmp_path / f"y{kind}", tmp_path / f"y{kind}.noisefuse-partial"
    arguments = [*AT_300, "--block", 100]
    assert run(source, tmp_path / f"whole{kind}", *arguments) == 0
    assert run(source, target, *arguments) == 0
    target.rename(partial)
    chunks = (path for path in partial.rglob("*") if path.is_file() and path.name != "zarr.json")
    file = partial if kind == ".npy" else next(chunks)
    data = file.read_bytes()
    changed = {"emptied": b"", "cut": data[: len(data) // 2], "longer": data + b"0", "of another": data[::-1] + b"0"}
    file.write_bytes(changed[how])
    if kind == ".npy" and len(changed[how]) > len(data):  # data beyond the lost part is not overwritten
        assert run(source, target, *arguments) == 2
        partial.unlink()
    with monkeypatch.context() as patch:

        def stopped(job: Any, block: int) -> Any:
            raise KeyboardInterrupt

        patch.setattr(_noise_files.Npy, "make", stopped)
        patch.setattr(_noise_files.Images, "make", stopped)
        assert run(source, target, *arguments) == (0 if kind == ".zarr" else 130)
    assert run(source, target, *arguments) == 0
    assert hash_of(target) == hash_of(tmp_path / f"whole{kind}")


def test_a_target_of_another_length_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: "is whole already" for a file that was emptied."""
    save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300]
    assert run(*arguments) == 0
    (tmp_path / "y.npy").write_bytes(b"")
    assert re.search("y.npy has 0 bytes and not 528, so another program has changed it", fails(capsys, *arguments))


def test_a_store_whose_metadata_was_changed_is_made_again(tmp_path: Path) -> None:
    """Seen to fail: a store whose dtype differs from its chunks', an emptied zarr.json."""
    zarr = pytest.importorskip("zarr")
    source = few(tmp_path, ".zarr", "x", 0)
    assert run(source, tmp_path / "whole.zarr", *AT_300) == 0
    assert run(source, tmp_path / "y.zarr", *AT_300) == 0
    for text in ("", (source / "zarr.json").read_text().replace("uint8", "int8")):
        (tmp_path / "y.zarr").rename(tmp_path / "y.zarr.noisefuse-partial")
        (tmp_path / "y.zarr.noisefuse-partial" / "zarr.json").write_text(text)
        assert run(source, tmp_path / "y.zarr", *AT_300) == 0
        assert np.array_equal(
            zarr.open_array(tmp_path / "y.zarr", mode="r")[...], zarr.open_array(tmp_path / "whole.zarr", mode="r")[...]
        )


def test_a_store_of_any_number_of_chunks_takes_no_memory_for_each(tmp_path: Path) -> None:
    """The store has 2^39 chunks, none of them written, with 3 GiB of addresses. Seen to fail: a MemoryError, before the
    first one."""
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "x.zarr", shape=(1 << 40, 4), chunks=(2, 4), dtype="float32", fill_value=3)
    command = [*COMMAND, tmp_path / "x.zarr", tmp_path / "y.zarr", "--std", "1", "--seed", "7"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    chunk = tmp_path / "y.zarr.noisefuse-partial" / "c" / "40" / "0"
    for further in (40, 80):  # and when it goes on
        chunk = chunk.parents[1] / str(further) / "0"
        process = subprocess.Popen(command, preexec_fn=limited, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            until(lambda chunk=chunk, process=process: chunk.exists() or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    made = zarr.open_array(chunk.parents[2], mode="r")
    expected = nf.augment.gaussian(np.full((82, 4), 3, np.float32), 1.0, nf.Noise(7))
    assert np.array_equal(made[:60], expected[:60])


def test_a_journal_takes_no_memory_for_each_block(tmp_path: Path) -> None:
    """Seen to fail: a set of all blocks."""
    with Journal(tmp_path / "y.npy", {}) as journal:
        tracemalloc.start()
        try:
            for block in range(1000, 1400):
                journal.add(block, None)
            assert tracemalloc.get_traced_memory()[0] < 10_000
        finally:
            tracemalloc.stop()
        assert len(journal.made()) == 400


def test_stopped_at_the_rename_it_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300]
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "is whole already" in capsys.readouterr().out
    (tmp_path / "y.npy").rename(tmp_path / "y.npy.noisefuse-partial")
    assert run(*arguments) == 0
    assert capsys.readouterr().out.startswith("wrote ")


@pytest.mark.parametrize("limit", one_in(2, [300, 50, 4_000]))
def test_a_full_disk_is_said_and_loses_nothing(limit: int, tmp_path: Path) -> None:
    """The size of files is limited, as on a full disk: at the manifest, in the reserved space."""
    x = save(tmp_path / "x.npy", 10, 100)
    command = [*COMMAND, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", "10"]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    failed = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("noisefuse noise: ")
    assert "File too large" in failed.stderr
    assert not (tmp_path / "y.npy").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


def test_a_journal_that_meets_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The reserved space exists, but the journal's lines do not fit. Seen to fail: an error that does not say that
    results are kept."""
    x = save(tmp_path / "x.npy", 10, 10)
    command = [*COMMAND, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", "1"]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))

    failed = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "what is made is kept" in failed.stderr
    subprocess.run(command, check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".zarr", ""])
def test_a_disk_that_fills_up_keeps_what_is_whole(kind: str, tmp_path: Path) -> None:
    """Seen to fail: an unfinished file left behind, or written under its own name."""
    source, target = sources(tmp_path, kind), tmp_path / f"y{kind}"
    if not kind:
        from PIL import Image

        Image.fromarray(np.zeros((500, 500), np.uint8)).save(source / "zz.png")

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000 if kind else 20_000, resource.RLIM_INFINITY))

    failed = subprocess.run(
        [*COMMAND, source, target, *AT_300], preexec_fn=full, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert "File too large" in failed.stderr
    assert "what is made is kept" in failed.stderr
    partial = tmp_path / f"y{kind}.noisefuse-partial"
    assert not [*partial.rglob(".noisefuse-*")]
    made = {path: path.stat().st_mtime_ns for path in partial.rglob("*") if path.is_file()}
    assert kind or made
    subprocess.run([*COMMAND, source, target, *AT_300], check=True, capture_output=True)
    assert all((target / path.relative_to(partial)).stat().st_mtime_ns == then for path, then in made.items())
    subprocess.run([*COMMAND, source, tmp_path / f"whole{kind}", *AT_300], check=True, capture_output=True)
    assert hash_of(target) == hash_of(tmp_path / f"whole{kind}")


# ---- on a cluster ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def one_worker() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def once_there_are(blocks: int, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acts when so many blocks are made. The command waits for it, and makes only some others meanwhile."""
    add, added = Journal.add, []

    def acting(journal: Journal, block: int, mark: Any) -> None:
        add(journal, block, mark)
        added.append(block)
        if len(added) == blocks:
            act()

    monkeypatch.setattr(Journal, "add", acting)


@contextmanager
def another(cluster: Any, client: Any, preload: str = "import noisefuse") -> Iterator[None]:
    """Starts a worker that joins as users start them, by the name "late", and runs `preload` first."""
    command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--name", "late"]
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--preload", preload]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        until(lambda: "late" in addresses(client))
        yield
    finally:
        process.kill()
        process.wait()
        until(lambda: "late" not in addresses(client))


def addresses(client: Any) -> dict[Any, str]:
    """Returns the blocks of the workers, by name."""
    return dict(client.run_on_scheduler(lambda dask_scheduler: dict(dask_scheduler.aliases)))


@pytest.mark.filterwarnings("ignore")
def test_workers_that_differ_are_named(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "x.npy", 10, 10)
    monkeypatch.setattr(nf, "NOISE_VERSION", 99)
    error = fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--scheduler", cluster.scheduler_address)
    assert "3 of 3 workers differ; here is noisefuse" in error
    assert "NOISE_VERSION 1" in error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_differs_and_joins_late_is_named(
    one_worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other errors in a worker end the command, too. Seen to fail: a worker that joined late and was not checked, a
    traceback."""
    distributed = pytest.importorskip("distributed")
    x = save(tmp_path / "x.npy", 200, 3, 32, 32)
    local = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", 1024]
    arguments = [*local, "--scheduler", one_worker.scheduler_address]

    def broken() -> None:
        def make(job: Any, block: int) -> int:
            raise MemoryError("no 4 KiB left")

        _noise_files.Npy.make = make  # type: ignore[method-assign]

    with distributed.Client(one_worker, set_as_default=False) as client, ExitStack() as joined:
        preload = "import noisefuse; noisefuse.NOISE_VERSION = 99"
        once_there_are(20, lambda: joined.enter_context(another(one_worker, client, preload)), monkeypatch)
        error = fails(capsys, *arguments)
        assert re.search("tcp://.*, which joined late, has noisefuse .* 99; here is .* 1; what is made is kept", error)
        joined.close()
        with another(one_worker, client, "import sys; sys.modules['noisefuse'] = None"):
            error = fails(capsys, *arguments)
        assert re.search("1 of 2 workers differ; here is noisefuse .*; tcp://.*: cannot import noisefuse: ", error)
        client.run(broken)
        assert "a worker failed: MemoryError: no 4 KiB left; what is made is kept" in fails(capsys, *arguments)
    assert run(*local) == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("listens", first_and_slow([None, "silent", "worker"]))
def test_a_scheduler_that_cannot_be_reached_is_named(
    listens: str | None,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command ends, and has reserved nothing. Seen to fail: a Client that was refused, which never ended."""
    save(tmp_path / "x.npy", 10, 10)
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {
            None: "nowhere",
            "silent": f"tcp://127.0.0.1:{silent.getsockname()[1]}",
            "worker": next(iter(cluster.scheduler_info["workers"])),
        }[listens]
        command = [*COMMAND, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--scheduler", address]
        failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = {None: "missing port number", "silent": "no answer in 1 s", "worker": "a Worker is there"}[listens]
    assert failed.returncode == 2
    assert re.fullmatch(f"noisefuse noise: --scheduler {address}: .*{said}.*; expected the address .*\n", failed.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy.noisefuse"]


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_without_workers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distributed = pytest.importorskip("distributed")
    save(tmp_path / "x.npy", 10, 10)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.importorskip("dask").config.set({"distributed.comm.timeouts.connect": "2s"}),
    ):
        address = cluster.scheduler_address
        error = fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--scheduler", address)
    assert f"{address} has no workers" in error


@pytest.mark.release
@pytest.mark.filterwarnings("ignore")
def test_workers_die_and_join_and_the_bits_are_the_same(
    one_worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that knows the finished blocks is killed when some are made, and another joins. Seen to fail: a job
    that is scattered, and dies with its worker; blocks that begin at the first sample."""
    distributed = pytest.importorskip("distributed")
    x = save(tmp_path / "x.npy", 200, 3, 32, 32)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", 1024, "--scheduler"]
    with distributed.Client(one_worker, set_as_default=False) as client, ExitStack() as joined:
        first = addresses(client)[0]

        def kill_and_join() -> None:
            os.kill(client.run(os.getpid)[first], signal.SIGKILL)
            joined.enter_context(another(one_worker, client))

        once_there_are(20, kill_and_join, monkeypatch)
        assert run(*arguments, one_worker.scheduler_address) == 0
        made = client.run(lambda dask_worker: dask_worker.state.executed_count)
        assert first not in made
        assert made[addresses(client)["late"]]
    assert np.array_equal(np.load(tmp_path / "y.npy"), noised(x))


@pytest.mark.release
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [".npy", ".zarr", ""])
def test_processes_make_the_same_bits(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    source = sources(tmp_path, kind)
    for name, options in (("whole", []), ("y", ["--workers", "2"])):
        subprocess.run([*COMMAND, source, tmp_path / f"{name}{kind}", *AT_300, *options], check=True)
    assert hash_of(tmp_path / f"y{kind}") == hash_of(tmp_path / f"whole{kind}")


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"--seed": "8"}, "--seed 7 and not 8"),
        ({"--t": "301"}, "--t 300 and not 301"),
        ({"--dtype": "float16"}, "--dtype None and not float16"),
        ({"--step": "1", "--block": "3"}, "--step 0 and not 1, --block 10 and not 3"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_other_parameters_are_refused(
    others: dict[str, str], said: str, whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300, "--block", "10"]
    assert run(*arguments) == 0
    if not whole:
        (tmp_path / "y.npy").rename(tmp_path / "y.npy.noisefuse-partial")
    changed = [*arguments, *(word for pair in others.items() for word in pair)]
    assert said in fails(capsys, *changed)


def test_another_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.npy", 10, 10)
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", *AT_300) == 0
    save(tmp_path / "x.npy", 10, 11)
    assert "shape [10, 10] and not [10, 11]" in fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300)


@pytest.mark.parametrize("kind", [".npy", ".zarr"])
@pytest.mark.parametrize("whole", [True, False])
def test_another_source_of_the_same_sizes_and_times_is_refused(
    whole: bool, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: "is whole already" for a target that is another array's."""
    source, new = few(tmp_path, kind, "x", 0), few(tmp_path, kind, "new", 1)
    arguments, target = [source, tmp_path / f"y{kind}", *AT_300], tmp_path / f"y{kind}"
    assert run(*arguments) == 0
    if not whole:
        target.rename(tmp_path / f"{target.name}.noisefuse-partial")
    for file in [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]:
        before = file.stat()
        file.write_bytes((new if source.is_file() else new / file.relative_to(source)).read_bytes())
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "the source's" in fails(capsys, *arguments)


def test_a_target_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.npy", 10, 10)
    (tmp_path / "y.npy").write_text("mine")
    assert "exists already" in fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]
    for text in ("mine\n", "mine"):
        (tmp_path / "z.npy.noisefuse").write_text(text)
        assert "is no journal" in fails(capsys, tmp_path / "x.npy", tmp_path / "z.npy", *AT_300)
        assert (tmp_path / "z.npy.noisefuse").read_text() == text


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.npy", 10, 10)
    with Journal(tmp_path / "y.npy", {}):
        assert "another process" in fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.npy", "y.npy", *AT_300], "no such file"),
        (["x.npy", "x.npy", *AT_300], "x.npy is the source and the target, too"),
        (["twins/a.png", "y", *AT_300], "a.png is one image: pass the folder that it is in, "),
        (["z.npy.noisefuse-partial", "z.npy", *AT_300], "z.npy.noisefuse-partial contains the other"),
        (["new.npy", "y.npy", *AT_300], "of version (3, 0): expected 1.0 or 2.0"),
        (["header.npy", "y.npy", *AT_300], "no .npy file of numbers"),
        (["x.npy", "absent/y.npy", *AT_300], "no such directory"),
        (["text.npy", "y.npy", *AT_300], "no .npy file"),
        (["cut.npy", "y.npy", *AT_300], "its header speaks of"),
        (["fortran.npy", "y.npy", *AT_300], "Fortran order"),
        (["number.npy", "y.npy", *AT_300], "samples along axis 0"),
        (["int64.npy", "y.npy", *AT_300], "int64.npy has dtype int64: expected one of uint8, uint16, float32"),
        (["fifo.npy", "y.npy", *AT_300], "fifo.npy is no plain file: expected a .npy file, a zarr store or a folder"),
        (["folder", "folder/y", *AT_300], "contains the other"),
        (["folder", "y", *AT_300], "has neither images"),
        (["twins", "y", *AT_300], "would both become a.png"),
        (["x.npy", "y.npy", "--seed", 1], "expected --schedule with --t, or else --std; got none of them"),
        (["x.npy", "y.npy", "--seed", 1, "--t", 3, "--std", 0], "or else --std; got --t 3, --std 0.0\n"),
        (["x.npy", "y.npy", *AT_300, "--std", 1], "got --schedule cosine, --t 300, --std 1.0"),
        (["loop.npy", "y.npy", *AT_300], "loop.npy"),
        (["x.npy", "loop.npy", *AT_300], "loop.npy"),
        (["x.npy", "y.npy", *AT_300, "--t", 1000], "0 <= t < 1000"),
    ],
)
def test_bad_input_is_named(
    arguments: list[Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.npy", 3, 4)
    save(Path("z.npy"), 3, 4)
    Path("z.npy").rename("z.npy.noisefuse-partial")
    Path("text.npy").write_text("not an array")
    Path("new.npy").write_bytes(b"\x93NUMPY\x03\x00")
    Path("header.npy").write_bytes(b"\x93NUMPY\x01\x00\x01\x00{")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    np.save("fortran.npy", np.asfortranarray(np.zeros((3, 4), np.float32)))
    np.save("number.npy", np.float32(1))
    np.save("int64.npy", np.arange(3))
    Path("folder").mkdir()
    Path("twins").mkdir()
    Path("loop.npy").symlink_to("loop.npy")
    os.mkfifo("fifo.npy")
    for name in ("a.png", "a.jpg"):
        (Path("twins") / name).touch()
    before = sorted(Path().iterdir())
    assert said in fails(capsys, *arguments)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "header",
    [
        "{[]: 1}",
        "-" * 9000,
        "a" + ".b" * 4000,
        "a" + "()" * 4000,
        "(" * 9000,
        "{'descr': (), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -6)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-6, -1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3, -1)}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 5000},)}}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, -3)}",
        "{'descr': '<f4', 'fortran_order': 'x\n\ny', 'shape': (3,)}",
    ],
    ids=range(13),
)
def test_odd_headers_are_named(header: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is one line, and nothing is written. Seen to fail: tracebacks, and targets of negative lengths."""
    text = header.encode()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(24))
    error = fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300)
    assert f"{tmp_path}/x.npy" in error
    assert len(error) < 600
    assert [*tmp_path.iterdir()] == [tmp_path / "x.npy"]


DEEP = "[" * 100_000


@pytest.mark.parametrize("at", ["manifest", "block"])
@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        '"x"',
        "null",
        "{}",
        DEEP,
        "no JSON",
        "9" * 5000,
        "[true, 1]",
        "[[], 1]",
        "[1, 2, 3]",
        "[" * 900 + "]" * 900,
    ],
    ids=range(12),
)
def test_a_journal_of_something_else_is_named(
    at: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines' checksums are right. The file stays. Seen to fail: tracebacks."""
    save(tmp_path / "x.npy", 10, 10)
    arguments = [tmp_path / "x.npy", tmp_path / "y.npy", *AT_300]
    assert run(*arguments) == 0
    (tmp_path / "y.npy").rename(tmp_path / "y.npy.noisefuse-partial")
    journal = tmp_path / "y.npy.noisefuse"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[at == "block"] = b"%08x %s\n" % (zlib.crc32(line.encode()), line.encode())
    journal.write_bytes(b"".join(lines))
    error = fails(capsys, *arguments)
    assert f"{journal}" in error or ("was begun with" in error and (at, line) == ("manifest", "{}"))
    assert len(error) < 3000
    assert journal.read_bytes() == b"".join(lines)


def test_a_manifest_that_says_anything_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.npy", 10, 10)
    for value in (json.dumps("line\n" * 9000), "[" * 500 + "]" * 500):
        line = f'{{"--seed": {value}}}'.encode()
        (tmp_path / "y.npy.noisefuse").write_bytes(b"%08x %s\n" % (zlib.crc32(line), line))
        error = fails(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *AT_300)
        assert "y.npy was begun with --seed" in error
        assert len(error) < 3000


@pytest.mark.parametrize("kind", first_and_slow([".npy", ".zarr", ""]))
@pytest.mark.parametrize("suffix", [".noisefuse", ".noisefuse-partial"])
@pytest.mark.parametrize("what", ["dangling", "foreign", "empty", "FIFO"])
@pytest.mark.parametrize("begun", [True, False])
def test_links_and_fifos_are_refused(
    kind: str, suffix: str, what: str, begun: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The links' targets stay unchanged. Seen to fail: a dangling one followed, one to an empty file written through, a
    journal that hung."""
    source, target = few(tmp_path, kind, "x", 0), tmp_path / f"y{kind}"
    others, arguments = tmp_path / "others", [source, target, *AT_300]
    if begun:
        assert run(*arguments) == 0
        target.rename(tmp_path / f"y{kind}.noisefuse-partial")
    path = tmp_path / f"y{kind}{suffix}"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if what == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(others)
    if what == "foreign" and kind != ".npy":
        others.mkdir()
    elif what in ("foreign", "empty"):
        others.write_text("mine" if what == "foreign" else "")
    before = [others.exists(), others.is_file() and others.read_text(), path.lstat().st_mode]
    error = fails(capsys, *arguments)
    assert str(path) in error
    assert "move it away" in error
    assert [others.exists(), others.is_file() and others.read_text(), path.lstat().st_mode] == before
    assert not target.exists()


def test_a_link_in_the_folder_that_is_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: an image that was written into another folder."""
    photographs(tmp_path / "x")
    arguments = [tmp_path / "x", tmp_path / "y", *AT_300]
    assert run(*arguments) == 0
    shutil.rmtree(tmp_path / "y" / "deep")
    (tmp_path / "others" / "er").mkdir(parents=True)
    (tmp_path / "y" / "deep").symlink_to(tmp_path / "others")
    (tmp_path / "y").rename(tmp_path / "y.noisefuse-partial")
    assert re.search("noisefuse-partial/deep is no plain folder: .* move it away", fails(capsys, *arguments))
    assert not [*(tmp_path / "others" / "er").iterdir()]


def test_names_that_are_no_utf_8_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The errors come before anything is written; skipped files, and folders, are listed. Seen to fail: an error
    without a name, when journal and target were begun."""
    photographs(tmp_path / "x")
    odd = os.fsencode(tmp_path) + b"/odd\xff"
    try:
        (tmp_path / "x").rename(os.fsdecode(odd))
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    source = Path(os.fsdecode(odd))
    (source / "notes.txt").rename(source / os.fsdecode(b"notes\xfe\n.txt"))
    assert run(source, tmp_path / os.fsdecode(b"y\xfd"), *AT_300) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert r"y\udcfd; skipped notes\udcfe\n.txt" in said
    (source / "a.png").rename(source / os.fsdecode(b"a\xff.png"))
    command = [*COMMAND, source, tmp_path / "z", *AT_300]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert re.fullmatch(r"noisefuse noise: 'a\\udcff.png' in .*odd\\udcff: expected a name in UTF-8.*\n", failed.stderr)
    assert not [*tmp_path.glob("z*")]


def test_the_last_line_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: notes.txt skipped, and b.jpg renamed, without a word."""
    photographs(tmp_path / "x")
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "x" / "deep")
    assert run(tmp_path / "x", tmp_path / "y", *AT_300) == 0
    renamed = "c.bmp became c.png, deep/er/b.PNG became deep/er/b.png"
    assert capsys.readouterr().out == f"wrote 4 images to {tmp_path}/y; skipped linked, notes.txt; {renamed}\n"
    for n in range(9):
        (tmp_path / "x" / f"{n}.txt").touch()
    assert run(tmp_path / "x", tmp_path / "z", *AT_300) == 0
    assert "skipped 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 6 more; c.bmp" in capsys.readouterr().out
    save(tmp_path / "x.npy", 1, 10)
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", *AT_300) == 0
    assert capsys.readouterr().out == f"wrote 1 sample to {tmp_path}/y.npy\n"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    assert "noisefuse noise latents.npy noised.npy --schedule cosine --t 300 --seed 7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "wrong", "right", "said"),
    [
        (
            "x.npy",
            ["y.zarr", "y.png", "y"],
            ["y.NPY"],
            ".npy file, and so is the target: expected a name that ends in .npy",
        ),
        ("x.zarr", ["y.npy", "y.TIF"], ["y", "y.v2"], "expected a name that ends in .zarr or has no format's ending"),
        (
            "x",
            ["y.npy", "y.png", "y.zarr"],
            ["y.v2"],
            "a folder of images, .*: expected a name that has no format's ending",
        ),
    ],
)
def test_a_target_of_another_format_is_refused(
    source: str, wrong: list[str], right: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written. Seen to fail: without the check, which left a file or a folder of that name."""
    made = sources(tmp_path, Path(source).suffix)
    for name in wrong:
        before = sorted(tmp_path.iterdir())
        error = fails(capsys, made, tmp_path / name, *AT_300)
        assert str(tmp_path / name) in error
        assert re.search(said, error)
        assert sorted(tmp_path.iterdir()) == before
    for name in right:
        assert run(made, tmp_path / name, *AT_300) == 0


def test_images_that_cannot_be_noised_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "x").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "x" / "deep.png")
    assert "deep.png has 1 frames of mode I" in fails(capsys, tmp_path / "x", tmp_path / "y", *AT_300)
    for name, data in (("P6 2 2 65535\n", bytes(24)), ("P6 2 2 300\n", bytes(24))):
        (tmp_path / "x" / "deep.png").write_bytes(name.encode() + data)
        assert "deep.png has 16 bits a channel" in fails(capsys, tmp_path / "x", tmp_path / "y", *AT_300)
    (tmp_path / "x" / "folder.png").mkdir()  # it is no image
    (tmp_path / "x" / "deep.png").write_text("no image")
    assert "deep.png: cannot identify" in fails(capsys, tmp_path / "x", tmp_path / "z", *AT_300)
    assert "images are made of uint8" in fails(capsys, tmp_path / "x", tmp_path / "z", *AT_300, "--dtype", "float32")


def test_a_group_of_zarr_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_group(tmp_path / "group")
    assert "no array of zarr v3" in fails(capsys, tmp_path / "group", tmp_path / "y", *AT_300)
    zarr.create_array(tmp_path / "old", shape=(3,), dtype="float32", zarr_format=2)
    assert "no array of zarr v3" in fails(capsys, tmp_path / "old", tmp_path / "y", *AT_300)
    zarr.create_array(tmp_path / "whole", shape=(3,), dtype="int64")
    assert "dtype int64" in fails(capsys, tmp_path / "whole", tmp_path / "y", *AT_300)


def nested(levels: int) -> dict[str, Any]:
    return {} if not levels else {"a": nested(levels - 1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 4]}}}, "has chunks of shape (0, 4)"),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 1 << 20]}}},
            "has chunks of shape (1099511627776, 1048576): expected 1 to 2^34 elements",
        ),
        ({"shape": [-4, 4]}, "no array of zarr v3"),
        ({"shape": [1 << 100, 4]}, "expected samples along axis 0, 2^56 at most"),
        ({"codecs": DEEP}, "no array of zarr v3"),
        ({"attributes": [[1]]}, "no"),
        ({"attributes": "x"}, "no"),
    ],
)
def test_odd_stores_are_named(
    change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line, and nothing is written. Seen to fail: tracebacks, a command that did not end."""
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "x.zarr", shape=(4, 4), chunks=(2, 4), dtype="float32")[...] = 1
    text = json.dumps({**json.loads((tmp_path / "x.zarr" / "zarr.json").read_text()), **change})
    (tmp_path / "x.zarr" / "zarr.json").write_text(text.replace(json.dumps(DEEP), DEEP))
    error = fails(capsys, tmp_path / "x.zarr", tmp_path / "y.zarr", *AT_300)
    assert f"{tmp_path}/x.zarr" in error
    assert said in error
    assert [*tmp_path.iterdir()] == [tmp_path / "x.zarr"]


@pytest.mark.parametrize(
    "case",
    one_in(
        3,
        [
            ("--workers 0", "argument --workers: expected a number of processes from 1 to 1024, got '0'"),
            ("--seed -1", "expected an integer in"),
            ("--std nan", "expected a finite number"),
            (f"--workers {10**30}", "from 1 to 1024"),
            ("--std -1", "expected a finite number from 0"),
            ("--std x", "expected a finite number"),
            ("--range 0 inf", "argument --range: expected a finite number, got 'inf'"),
            ("--step 4294967296", "expected an integer in"),
            ("--block 0", "expected positive numbers"),
        ],
    ),
)
def test_numbers_out_of_range_are_refused(case: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: 10^30 workers, which dask began to start."""
    option, said = case
    with pytest.raises(SystemExit) as refused:
        run("x.npy", "y.npy", *AT_300, *option.split())
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_progress_says_rate_and_time_left() -> None:
    progress = _Progress(200, 100)
    progress.add(30_000_000)
    assert progress.line(0.5) == "[###############               ]  50%  60 MB/s  0:00:50 left"


@pytest.mark.slow
def test_the_journal_says_what_made_the_target(tmp_path: Path) -> None:
    save(tmp_path / "x.npy", 10, 10)
    assert run(tmp_path / "x.npy", tmp_path / "y.npy", *AT_300) == 0
    manifest = json.loads((tmp_path / "y.npy.noisefuse").read_text().splitlines()[0].partition(" ")[2])
    assert manifest["--schedule"] == "cosine"
    assert manifest["NOISE_VERSION"] == nf.NOISE_VERSION

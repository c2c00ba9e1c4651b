# SPDX-License-Identifier: Apache-2.0
"""An interpreter for the PTX of csrc/cuda from nvcc and NVRTC: it runs the compilers' output on NumPy.

All threads of a launch step together; if they diverge, those furthest behind go first. Every access is checked: it has
to lie within one allocation and to be aligned to its size, and for shared memory a barrier has to separate one thread's
store from another's access. Registers are 64 bits wide and hold raw bits; arithmetic is that of NumPy, and of the
reference backend for fma. An unknown opcode is an error. ptxas makes machine code of PTX: sass.py runs that.
"""

import ctypes
import re
from collections import Counter

import ml_dtypes
import numpy as np

from noisefuse.backends.reference import fma

TYPES = {
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "u8": np.uint8, "f16": np.float16, "f32": np.float32,
    "f64": np.float64,
}  # fmt: skip
COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Memory:
    """The host memory of some arrays, in place. No other memory may be touched."""

    def __init__(self, arrays=()):
        self.regions = []  # (first byte, beyond the last, its bytes), in order
        for array in arrays:
            self.place(array)

    def place(self, array):
        """Returns the address of a contiguous array, which may be accessed from now on. (Views of one array become one
        region.)"""
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        for other in [r for r in self.regions if r[0] < end and start < r[1]]:
            self.regions.remove(other)
            start, end = min(start, other[0]), max(end, other[1])
        self.regions.append((start, end, array))
        self.regions.sort(key=lambda region: region[0])
        return array.ctypes.data

    def _parts(self, address, size):
        """Yields for each touched region: the threads, and its bytes as they index them."""
        starts = np.array([start for start, *_ in self.regions], np.uint64)
        which = np.searchsorted(starts, address, "right") - 1
        for region in np.unique(which):
            threads = np.flatnonzero(which == region)
            start, end, _ = self.regions[region] if region >= 0 else (0, 0, None)
            outside = (address[threads] < start) | (address[threads] + np.uint64(size) > end)
            if outside.any():
                raise IndexError(f"access of {size} bytes outside of all arrays, at {address[threads][outside][0]:#x}")
            data = np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))
            yield threads, data, (address[threads] - np.uint64(start)).astype(np.int64)[:, None] + np.arange(size)
        if (address % np.uint64(size)).any():
            raise ValueError(f"access of {size} bytes misaligned, at {address[address % np.uint64(size) != 0][0]:#x}")

    def load(self, address, size, count):
        values = np.empty((len(address), count), RAW[size])
        for threads, data, index in self._parts(address, size * count):
            values[threads] = np.ascontiguousarray(data[index]).view(RAW[size])
        return values.T

    def store(self, address, size, values):
        raw = np.ascontiguousarray(np.stack([v.astype(RAW[size]) for v in values], axis=1)).view(np.uint8)
        for threads, data, index in self._parts(address, size * len(values)):
            data[index] = raw[threads]


class Kernel:
    """One entry of a PTX file."""

    def __init__(self, text, name):
        head, _, rest = text.partition(f".entry {name}(")
        assert rest, f"no entry {name}"
        parameters, _, rest = rest.partition("{")
        body = re.sub(r"//.*", "", rest[: rest.index("\n}")])
        self.name, self.parameter = name, re.search(r"(\w+)\[\d+\]", parameters)[1]
        self.code, self.labels, self.shared = [], {}, {}
        for line in re.split(r"[;\n]|(?<=:)\s", body):
            line = line.strip()
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif shared := re.match(r"\.shared .*?(\w+)\[(\d+)\]", line):
                self.shared[shared[1]] = int(shared[2])
            elif line and not line.startswith((".", "{", "}")):
                self.code.append(_instruction(line))
        for shared in re.finditer(r"^\.shared .*?(\w+)\[(\d+)\]", head, re.MULTILINE):
            self.shared[shared[1]] = int(shared[2])

    def run(self, grid, threads, argument, memory):
        """Runs all blocks. Returns how often each opcode was executed, summed over threads."""
        return _Run(self, grid, threads, argument, memory).run()


def _instruction(line):
    predicate, opcode, operands = re.match(r"(@!?%\w+)?\s*([\w.]+)\s*(.*)", line).groups()
    parts = [part.strip() for part in re.findall(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+)", operands)]
    parts = [re.findall(r"[^\s,{}]+", part) if part.startswith("{") else part for part in parts]
    return predicate, opcode.split("."), parts


class _Run:
    def __init__(self, kernel, grid, threads, argument, memory):
        count = grid[0] * grid[1] * grid[2]
        self.kernel, self.memory, self.n = kernel, memory, count * threads
        block, thread = np.divmod(np.arange(self.n), threads)
        self.special = {
            "%tid.x": thread,
            "%ctaid.x": block % grid[0],
            "%ctaid.y": block // grid[0] % grid[1],
            "%ctaid.z": block // grid[0] // grid[1],
            "%ntid.x": np.full(self.n, threads),
            **{f"%nctaid.{axis}": np.full(self.n, size) for axis, size in zip("xyz", grid, strict=True)},
        }
        assert len(kernel.shared) <= 1
        size = sum(kernel.shared.values())
        self.own = argument, np.zeros(size * count, np.uint8)  # each block has its own
        self.block, self.threads, self.barriers = block, threads, np.zeros(self.n, np.int64)  # barriers passed
        self.sharing = Sharing(size * count)
        self.symbols = {kernel.parameter: np.full(self.n, memory.place(argument))}
        self.symbols |= dict.fromkeys(kernel.shared, block * size)  # 32-bit addresses of their own
        self.shared = np.uint64(memory.place(self.own[1]))
        self.registers, self.counts = {}, Counter()

    def run(self):
        pc = np.zeros(self.n, np.int64)
        end = len(self.kernel.code)
        while (pc < end).any():
            here = int(pc[pc < end].min())
            self.at = np.flatnonzero(pc == here)
            later = pc[(pc > here) & (pc < end)]
            stop = int(later.min()) if later.size else end
            while here < stop:
                predicate, opcode, operands = self.kernel.code[here]
                self.counts[".".join(opcode)] += len(self.at)
                if opcode[0] in ("bra", "ret"):
                    taken = self._taken(predicate)
                    pc[self.at] = here + 1
                    pc[self.at[taken]] = end if opcode[0] == "ret" else self.kernel.labels[operands[0]]
                    break
                assert predicate is None, "only branches are predicated in PTX as compilers emit it"
                getattr(self, "op_" + opcode[0])(opcode[1:], *operands)
                here += 1
            else:
                pc[self.at] = here
        return self.counts

    def _taken(self, predicate):
        if predicate is None:
            return np.ones(len(self.at), bool)
        value = self.get(predicate.lstrip("@!"), "pred")
        return ~value if "!" in predicate else value

    # ---- operands

    def get(self, operand, kind):
        """Returns an operand for the present threads, as values of this type."""
        if operand in self.registers:
            raw = self.registers[operand][self.at]
        elif operand in self.special:
            raw = self.special[operand][self.at].astype(np.uint64)
        elif operand in self.symbols:
            raw = self.symbols[operand][self.at].astype(np.uint64)
        else:
            raw = np.full(len(self.at), _literal(operand), np.uint64)
        if kind == "pred":
            return raw != 0
        dtype = np.dtype(TYPES[kind])
        return raw.astype(RAW[dtype.itemsize]).view(dtype)

    def set(self, register, value):
        value = np.asarray(value)
        raw = value.astype(np.uint64) if value.dtype == bool else value.view(RAW[value.itemsize]).astype(np.uint64)
        if register not in self.registers:
            self.registers[register] = np.zeros(self.n, np.uint64)
        self.registers[register][self.at] = raw

    def address(self, space, operand):
        base, offset = re.match(r"\[([%$\w]+)\+?(.*)\]", operand).groups()
        address = self.get(base, "u64") + np.uint64(int(offset or "0") % 2**64)
        return (address & np.uint64(2**32 - 1)) + self.shared if space == "shared" else address

    # ---- memory

    def op_ld(self, parts, to, address):
        kind = parts[-1]
        to = to if isinstance(to, list) else [to]
        self._share(parts, address, len(to), self.sharing.load)
        values = self.memory.load(self.address(parts[0], address), np.dtype(TYPES[kind]).itemsize, len(to))
        for register, value in zip(to, values, strict=True):
            self.set(register, value)

    def op_st(self, parts, address, values):
        kind = parts[-1]
        values = values if isinstance(values, list) else [values]
        size = np.dtype(TYPES[kind]).itemsize
        self._share(parts, address, len(values), self.sharing.store)
        self.memory.store(self.address(parts[0], address), size, [self.get(v, f"b{8 * size}") for v in values])

    def _share(self, parts, address, count, access):
        if parts[0] == "shared":
            size = np.dtype(TYPES[parts[-1]]).itemsize * count
            begin = (self.address("shared", address) - self.shared).astype(np.int64)
            access(begin[:, None] + np.arange(size), self.at, self.barriers[self.at])

    def op_bar(self, parts, *operands):
        assert (parts, operands) == (["sync"], ("0",))
        present = np.bincount(self.block[self.at])
        assert {*present.tolist()} <= {0, self.threads}, "a barrier that not all threads of a block have come to"
        self.barriers[self.at] += 1

    def op_cvta(self, parts, to, value):
        self.set(to, self.get(value, "u64"))

    def op_mov(self, parts, to, value):
        if isinstance(value, list):  # packed, lowest first
            width = int(parts[-1][1:]) // len(value)
            words = [self.get(v, f"b{width}").astype(np.uint64) << np.uint64(width * i) for i, v in enumerate(value)]
            self.set(to, sum(words[1:], words[0]))
        elif isinstance(to, list):
            width = int(parts[-1][1:]) // len(to)
            raw = self.get(value, parts[-1]).astype(np.uint64)
            for i, register in enumerate(to):
                self.set(register, (raw >> np.uint64(width * i)).astype(TYPES[f"b{width}"]))
        else:
            self.set(to, self.get(value, parts[-1]))

    # ---- integers and floats

    def _binary(self, parts, to, a, b, function):
        with np.errstate(all="ignore"):
            self.set(to, function(self.get(a, parts[-1]), self.get(b, parts[-1])))

    def op_add(self, parts, to, a, b):
        self._exact(parts)
        self._binary(parts, to, a, b, np.add)

    def op_sub(self, parts, to, a, b):
        self._exact(parts)
        self._binary(parts, to, a, b, np.subtract)

    def op_mul(self, parts, to, a, b):
        if parts[0] == "wide":
            wide = {"u32": np.uint64, "s32": np.int64, "u16": np.uint32, "s16": np.int32}[parts[-1]]
            self.set(to, self.get(a, parts[-1]).astype(wide) * self.get(b, parts[-1]).astype(wide))
            return
        if parts[0] != "lo":
            self._exact(parts)
        self._binary(parts, to, a, b, np.multiply)

    def op_mad(self, parts, to, a, b, c):
        kind = parts[-1]
        if parts[0] == "wide":
            wide = {"u32": np.uint64, "s32": np.int64}[kind]
            product = self.get(a, kind).astype(wide) * self.get(b, kind).astype(wide)
            self.set(to, product + self.get(c, kind[0] + "64"))
            return
        assert parts[0] == "lo"
        with np.errstate(over="ignore"):
            self.set(to, self.get(a, kind) * self.get(b, kind) + self.get(c, kind))

    def op_fma(self, parts, to, a, b, c):
        self._exact(parts)
        self.set(to, fma(*(self.get(v, parts[-1]) for v in (a, b, c))))

    @staticmethod
    def _exact(parts):
        """Floats name their rounding, and subnormal numbers are kept."""
        assert parts[-1][0] != "f" or parts[:-1] == ["rn"], parts

    def op_sqrt(self, parts, to, a):
        self._exact(parts)
        self.set(to, np.sqrt(self.get(a, parts[-1])))

    def op_rsqrt(self, parts, to, a):
        """The instruction is approximate on a device. Here it is 4 units off, this way and that, which must not
        matter."""
        assert parts == ["approx", "ftz", "f32"]
        root = (1 / np.sqrt(self.get(a, "f32"))).astype(np.float32)
        self.set(to, (root.view(np.int32) + np.arange(len(root), dtype=np.int32) % 9 - 4).view(np.float32))

    def op_neg(self, parts, to, a):
        self.set(to, -self.get(a, parts[-1]))

    def op_div(self, parts, to, a, b):
        if parts[-1] == "f64":
            self._exact(parts)
            self._binary(parts, to, a, b, np.divide)
            return
        a, b = self.get(a, parts[-1]), self.get(b, parts[-1])
        assert (b > 0).all()
        assert (a >= 0).all()
        self.set(to, a // b)

    def op_rem(self, parts, to, a, b):
        a, b = self.get(a, parts[-1]), self.get(b, parts[-1])
        assert (b > 0).all()
        assert (a >= 0).all()
        self.set(to, a % b)

    def op_min(self, parts, to, a, b):
        self._binary(parts, to, a, b, np.minimum)

    def op_max(self, parts, to, a, b):
        self._binary(parts, to, a, b, np.maximum)

    # ---- bits

    def op_and(self, parts, to, a, b):
        self._binary(parts, to, a, b, np.bitwise_and)

    def op_or(self, parts, to, a, b):
        self._binary(parts, to, a, b, np.bitwise_or)

    def op_xor(self, parts, to, a, b):
        self._binary(parts, to, a, b, np.bitwise_xor)

    def op_not(self, parts, to, a):
        self.set(to, ~self.get(a, parts[-1]))

    def op_lop3(self, parts, to, a, b, c, table):
        a, b, c, table = (*(self.get(v, "b32") for v in (a, b, c)), int(table, 0))
        result = np.zeros_like(a)
        for case in range(8):
            if table >> case & 1:
                result |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
        self.set(to, result)

    def _shift(self, parts, to, a, b, function):
        a, b = self.get(a, parts[-1]), self.get(b, "u32")
        width = 8 * a.itemsize
        shifted = function(a, np.minimum(b, width - 1).astype(a.dtype))
        beyond = a >> a.dtype.type(width - 1) if a.dtype.kind == "i" and function is np.right_shift else 0 * a
        self.set(to, np.where(b < width, shifted, beyond).astype(a.dtype))

    def op_shl(self, parts, to, a, b):
        self._shift(parts, to, a, b, np.left_shift)

    def op_shr(self, parts, to, a, b):
        self._shift(parts, to, a, b, np.right_shift)

    def op_bfi(self, parts, to, a, b, start, length):
        a, b = self.get(a, parts[-1]), self.get(b, parts[-1])
        start, length = int(start), int(length)
        mask = a.dtype.type(((1 << length) - 1) << start)
        self.set(to, (b & ~mask) | (a << a.dtype.type(start)) & mask)

    def op_prmt(self, parts, to, a, b, selector):
        both = self.get(a, "b32").astype(np.uint64) | self.get(b, "b32").astype(np.uint64) << np.uint64(32)
        selector = self.get(selector, "b32")
        assert (selector & 0x8888 == 0).all(), "sign replication"
        result = np.zeros_like(both)
        for byte in range(4):
            which = (selector >> np.uint32(4 * byte) & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            result |= (both >> which & np.uint64(0xFF)) << np.uint64(8 * byte)
        self.set(to, result.astype(np.uint32))

    # ---- comparisons and conversions

    def op_setp(self, parts, to, a, b, also=None):
        compare, kind = parts[0], parts[-1]
        a, b = self.get(a, kind), self.get(b, kind)
        unordered = np.isnan(a) | np.isnan(b) if kind[0] == "f" else np.zeros(len(a), bool)
        with np.errstate(invalid="ignore"):
            if compare in ("nan", "num"):
                found = unordered == (compare == "nan")
            elif len(compare) == 3:  # ltu, ...: true where there is a NaN
                found = COMPARE[compare[:2]](a, b) | unordered
            else:
                found = COMPARE[compare](a, b) & ~unordered
        if also is not None:
            other = self.get(also.lstrip("!"), "pred") ^ also.startswith("!")
            found = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[parts[1]](found, other)
        self.set(to, found)

    def op_selp(self, parts, to, a, b, predicate):
        self.set(to, np.where(self.get(predicate, "pred"), self.get(a, parts[-1]), self.get(b, parts[-1])))

    def op_cvt(self, parts, to, *values):
        *rounding, kind, source = parts
        if kind == "bf16x2":
            assert rounding == ["rn"]
            high, low = (self.get(v, source).astype(ml_dtypes.bfloat16).view(np.uint16) for v in values)
            self.set(to, low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16))
            return
        assert rounding == ["rn"] or (rounding == [] and not (kind[0] == "f" and source[0] != "f")), parts
        with np.errstate(all="ignore"):
            self.set(to, self.get(values[0], source).astype(TYPES[kind]))


class Sharing:
    """The accesses to each byte of shared memory: threads, and the barriers that they had passed."""

    def __init__(self, size):
        self.writer, self.written = np.full(size, -1), np.full(size, -1)
        self.reader, self.read = np.full(size, -1), np.full(size, -1)  # the last reader, or any of several at once

    def load(self, index, threads, barriers):
        self._check(self.writer[index], self.written[index], threads, barriers)
        several = (self.read[index] == barriers[:, None]) & (self.reader[index] != threads[:, None])
        self.reader[index] = np.where(several, -2, threads[:, None])
        self.read[index] = barriers[:, None]

    def store(self, index, threads, barriers):
        self._check(self.writer[index], self.written[index], threads, barriers)
        self._check(self.reader[index], self.read[index], threads, barriers)
        self.writer[index], self.written[index] = threads[:, None], barriers[:, None]

    @staticmethod
    def _check(other, when, threads, barriers):
        race = (other != -1) & (other != threads[:, None]) & (when >= barriers[:, None])
        assert not race.any(), "a race: no barrier between one thread's store to shared memory and another's access"


def _literal(text):
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) % 2**64

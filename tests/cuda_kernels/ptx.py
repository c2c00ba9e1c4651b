# SPDX-License-Identifier: Apache-2.0
"""An interpreter for the PTX of csrc/cuda from nvcc and NVRTC: it runs the compilers' output on NumPy.

All threads of a launch step together; if they diverge, those furthest behind go first. Every access is checked: it has
to lie within one allocation and to be aligned to its size, and for shared memory a barrier has to separate one thread's
store from another's access. Registers are 64 bits wide and hold raw bits; arithmetic is that of NumPy, and of the
reference backend for fma. An instruction that OPCODES does not have, with all its modifiers, stops with its text when a
kernel is read, executed or not. ptxas makes machine code of PTX: sass.py runs that.
"""

import ctypes
import re
from collections import Counter

import ml_dtypes
import numpy as np

from noisefuse.backends.reference import fma

TYPES = {
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "u8": np.uint8, "b8": np.uint8, "s8": np.int8,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# All modifiers of each opcode, as regular expressions. (Floats name their rounding, and subnormal numbers are kept.)
_INT, _BITS, _FLOAT = r"[us](16|32|64)", r"b(16|32|64)", r"f(32|64)"
OPCODES = {
    "ld": r"((param|global|shared)\.)?(v[24]\.)?([bus](8|16|32|64)|f(32|64))",
    "st": r"(global|shared)\.(v[24]\.)?([bus](8|16|32|64)|f(32|64))",
    "cvta": r"(param|to\.global)\.u64",
    "mov": rf"pred|{_INT}|{_BITS}|{_FLOAT}",
    "add": rf"{_INT}|rn\.(f32|f64|f32x2)",
    "sub": rf"{_INT}|rn\.(f32|f64|f32x2)",
    "mul": rf"lo\.{_INT}|hi\.[us]32|wide\.[us](16|32)|rn\.(f32|f64|f32x2)",
    "mad": rf"lo\.{_INT}|wide\.[us]32",
    "fma": r"rn\.(f32|f64|f32x2)",
    "sqrt": r"rn\.f(32|64)",
    "rsqrt": r"approx\.ftz\.f32",
    "neg": rf"s(16|32|64)|{_FLOAT}",
    "div": r"[us](32|64)|rn\.f64",
    "rem": r"[us](32|64)",
    "min": rf"{_INT}|{_FLOAT}",
    "max": rf"{_INT}|{_FLOAT}",
    "and": rf"pred|{_BITS}",
    "or": rf"pred|{_BITS}",
    "xor": rf"pred|{_BITS}",
    "not": rf"pred|{_BITS}",
    "lop3": r"b32",
    "shl": _BITS,
    "shr": rf"{_INT}|{_BITS}",
    "shf": r"[lr]\.(wrap|clamp)\.b32",
    "bfe": r"u32",
    "bfi": r"b(32|64)",
    "prmt": r"b32",
    "setp": rf"(eq|ne|lt|le|gt|ge)(\.(and|or|xor))?\.({_INT}|{_BITS}|{_FLOAT})"
    rf"|((eq|ne|lt|le|gt|ge)u|num|nan)(\.(and|or|xor))?\.{_FLOAT}",
    "selp": rf"{_INT}|{_BITS}|{_FLOAT}",
    "cvt": r"[us](8|16|32|64)\.[us](8|16|32|64)|rn\.f(32|64)\.[us](8|16|32|64)"
    r"|f(32|64)\.f16|f64\.f32|rn\.f32\.f64|rn\.f16\.f32|rn\.bf16x2\.f32",
    "bar": r"sync",
    "bra": r"(uni)?",
    "ret": r"",
}
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Unknown(Exception):
    """An instruction that is not in the table, by its text."""


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
        self.name, self.parameters = name, _offsets(parameters[: parameters.index(")") + 1])
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


def _offsets(parameters):
    """Returns the place of each parameter among the bytes of all."""
    found, end = {}, 0
    for kind, name, count in re.findall(r"\.([bus]\d+|f\d+)\s(?:[^,]*\s)?(\w+)(?:\[(\d+)\])?\s*[,)]", parameters):
        size = int(kind[1:]) // 8
        align = 8 if count else size
        found[name] = -(-end // align) * align
        end = found[name] + size * int(count or 1)
    return found


def _instruction(line):
    predicate, opcode, operands = re.match(r"(@!?%\w+)?\s*([\w.]+)\s*(.*)", line).groups()
    name, _, modifiers = opcode.partition(".")
    if name not in OPCODES or not re.fullmatch(OPCODES[name], modifiers):
        raise Unknown(f"no instruction of the table: {line}")
    parts = [part.strip() for part in re.findall(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+)", operands)]
    parts = [re.findall(r"[^\s,{}]+", part) if part.startswith("{") else part.replace(" ", "") for part in parts]
    return predicate, opcode.split("."), parts


class _Run:
    def __init__(self, kernel, grid, threads, argument, memory):
        count = grid[0] * grid[1] * grid[2]
        self.kernel, self.memory, self.n = kernel, memory, count * threads
        block, thread = np.divmod(np.arange(self.n), threads)
        self.special = {
            "%tid.x": thread,
            "%tid.y": np.zeros(self.n, np.int64),
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
        self.waiting = np.zeros(self.n, bool)
        self.sharing = Sharing(size * count)
        place = memory.place(argument)
        self.symbols = {name: np.full(self.n, place + offset) for name, offset in kernel.parameters.items()}
        self.symbols |= dict.fromkeys(kernel.shared, block * size)  # 32-bit addresses of their own
        self.shared = np.uint64(memory.place(self.own[1]))
        self.registers, self.counts = {}, Counter()

    def run(self):
        pc = np.zeros(self.n, np.int64)
        end = len(self.kernel.code)
        while (pc < end).any():
            if not (ready := (pc < end) & ~self.waiting).any():
                self._pass_barriers()
                continue
            here = int(pc[ready].min())
            self.at = np.flatnonzero(ready & (pc == here))
            later = pc[ready & (pc > here)]
            stop = int(later.min()) if later.size else end
            while here < stop:
                predicate, opcode, operands = self.kernel.code[here]
                self.counts[".".join(opcode)] += len(self.at)
                if opcode[0] in ("bra", "ret"):
                    taken = self._taken(predicate)
                    pc[self.at] = here + 1
                    pc[self.at[taken]] = end if opcode[0] == "ret" else self.kernel.labels[operands[0]]
                    break
                if opcode[0] == "bar":
                    assert (predicate, operands) == (None, ["0"])
                    pc[self.at], self.waiting[self.at] = here + 1, True
                    break
                if predicate is None or (taken := self._taken(predicate)).all():
                    getattr(self, "op_" + opcode[0])(opcode[1:], *operands)
                elif taken.any():
                    at, self.at = self.at, self.at[taken]
                    getattr(self, "op_" + opcode[0])(opcode[1:], *operands)
                    self.at = at
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

    def _pass_barriers(self):
        """Blocks whose threads all wait go on."""
        complete = (np.bincount(self.block[self.waiting], minlength=self.block[-1] + 1) == self.threads)[self.block]
        assert complete.any(), "a barrier that not all threads of a block have come to"
        self.barriers[complete] += 1
        self.waiting &= ~complete

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

    def _compute(self, parts, to, function, *operands):
        kind, two = parts[-1], parts[-1] == "f32x2"
        values = [self.get(v, "u64").view(np.float32) if two else self.get(v, kind) for v in operands]
        with np.errstate(all="ignore"):
            found = function(*values)
        self.set(to, found.view(np.uint64) if two else found)

    def op_add(self, parts, to, a, b):
        self._compute(parts, to, np.add, a, b)

    def op_sub(self, parts, to, a, b):
        self._compute(parts, to, np.subtract, a, b)

    def op_mul(self, parts, to, a, b):
        if parts[0] == "wide":
            wide = {"u32": np.uint64, "s32": np.int64, "u16": np.uint32, "s16": np.int32}[parts[-1]]
            self.set(to, self.get(a, parts[-1]).astype(wide) * self.get(b, parts[-1]).astype(wide))
        elif parts[0] == "hi":
            wide = {"u32": np.uint64, "s32": np.int64}[parts[-1]]
            product = self.get(a, parts[-1]).astype(wide) * self.get(b, parts[-1]).astype(wide)
            self.set(to, (product >> wide(32)).astype(TYPES[parts[-1]]))
        else:
            self._compute(parts, to, np.multiply, a, b)

    def op_mad(self, parts, to, a, b, c):
        kind = parts[-1]
        if parts[0] == "wide":
            wide = {"u32": np.uint64, "s32": np.int64}[kind]
            product = self.get(a, kind).astype(wide) * self.get(b, kind).astype(wide)
            self.set(to, product + self.get(c, kind[0] + "64"))
            return
        with np.errstate(over="ignore"):
            self.set(to, self.get(a, kind) * self.get(b, kind) + self.get(c, kind))

    def op_fma(self, parts, to, a, b, c):
        self._compute(parts, to, fma, a, b, c)

    def op_sqrt(self, parts, to, a):
        self.set(to, np.sqrt(self.get(a, parts[-1])))

    def op_rsqrt(self, parts, to, a):
        """The instruction is approximate on a device. Here it is 4 units off, this way and that, which must not
        matter."""
        root = (1 / np.sqrt(self.get(a, "f32"))).astype(np.float32)
        self.set(to, (root.view(np.int32) + np.arange(len(root), dtype=np.int32) % 9 - 4).view(np.float32))

    def op_neg(self, parts, to, a):
        self.set(to, -self.get(a, parts[-1]))

    def op_div(self, parts, to, a, b):
        if parts[-1] == "f64":
            self._compute(parts, to, np.divide, a, b)
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
        self._compute(parts, to, np.fmin, a, b)  # a number rather than NaN

    def op_max(self, parts, to, a, b):
        self._compute(parts, to, np.fmax, a, b)

    # ---- bits

    def op_and(self, parts, to, a, b):
        self._compute(parts, to, np.bitwise_and, a, b)

    def op_or(self, parts, to, a, b):
        self._compute(parts, to, np.bitwise_or, a, b)

    def op_xor(self, parts, to, a, b):
        self._compute(parts, to, np.bitwise_xor, a, b)

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

    def op_shf(self, parts, to, a, b, by):
        both = self.get(a, "b32").astype(np.uint64) | self.get(b, "b32").astype(np.uint64) << np.uint64(32)
        by = self.get(by, "u32").astype(np.uint64)
        by = by & np.uint64(31) if parts[1] == "wrap" else np.minimum(by, np.uint64(32))
        self.set(to, (both << by >> np.uint64(32) if parts[0] == "l" else both >> by).astype(np.uint32))

    def op_bfi(self, parts, to, a, b, start, length):
        a, b = self.get(a, parts[-1]), self.get(b, parts[-1])
        start, length = int(start), int(length)
        mask = a.dtype.type(((1 << length) - 1) << start)
        self.set(to, (b & ~mask) | (a << a.dtype.type(start)) & mask)

    def op_bfe(self, parts, to, a, start, length):
        start, length = self.get(start, "u32"), self.get(length, "u32")
        assert (start < 32).all()
        assert (length < 32).all()
        self.set(to, self.get(a, "u32") >> start & (np.uint32(1) << length) - np.uint32(1))

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
        kind, source = parts[-2:]
        if kind == "bf16x2":
            high, low = (self.get(v, source).astype(ml_dtypes.bfloat16).view(np.uint16) for v in values)
            self.set(to, low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16))
            return
        with np.errstate(all="ignore"):
            self.set(to, self.get(values[0], source).astype(TYPES[kind]))


class Sharing:
    """The accesses to each byte of shared memory: threads, and the barriers that they had passed, of their block and of
    their warp. A warp's own barrier orders its threads alone."""

    def __init__(self, size):
        self.writer, self.written = np.full(size, -1), np.full(size, -1)
        # The last reader, any of several at once, or -2 - warp for several of a warp; that of no warp for others.
        self.reader, self.read = np.full(size, -1), np.full(size, -1)

    def load(self, index, threads, barriers, of_warp=0):
        when, threads = (barriers * BARRIER + of_warp)[:, None], threads[:, None]
        self._check(self.writer[index], self.written[index], threads, when)
        other, warp = self.reader[index], threads // 32
        several = np.where(self._warp(other) == warp, -2 - warp, -2 - BARRIER)
        self.reader[index] = np.where((self.read[index] == when) & (other != threads), several, threads)
        self.read[index] = when

    def store(self, index, threads, barriers, of_warp=0):
        when, threads = (barriers * BARRIER + of_warp)[:, None], threads[:, None]
        self._check(self.writer[index], self.written[index], threads, when)
        self._check(self.reader[index], self.read[index], threads, when)
        self.writer[index], self.written[index] = threads, when

    @staticmethod
    def _warp(who):
        return np.where(who < 0, -2 - who, who // 32)

    def _check(self, other, then, threads, when):
        unordered = np.where(self._warp(other) == threads // 32, then >= when, then // BARRIER >= when // BARRIER)
        race = (other != -1) & (other != threads) & unordered
        assert not race.any(), "a race: no barrier between one thread's store to shared memory and another's access"


BARRIER = 1 << 30  # a block's barrier, in which all those of a warp are counted


def _literal(text):
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) % 2**64

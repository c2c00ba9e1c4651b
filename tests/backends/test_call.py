# SPDX-License-Identifier: Apache-2.0
"""A call as bytes: Python packs (call/packed.py, cuda/launches.py) what C++ declares (core/call.h, launch.h).

Seen to fail: `row` and `total` of a Launch swapped in Python, `seed` and `sample` of a Field in C++, a double in place
of `n_losses`, one more enumerator or field in C++ or in Python, half types in another order, one more axis, `each` and
`type` of a Race swapped.
"""

import os
import subprocess
from pathlib import Path

from noisefuse.backends.cuda import launches
from noisefuse.call import description, packed
from noisefuse.language.rows import COLUMNS, Z

ROOT = Path(__file__).parents[2]
SHORT = launches.SHORT | {"uint8": "u8", "uint16": "u16"}
RECORDS = {"Field": packed.FIELD, "Call": packed.CALL, "RoundKeys": launches.KEYS, "Launch": launches.LAUNCH}
OWN = (
    "Masks", "Impulses", "Rician", "Poisson", "PoissonTables", "Race", "CrossEntropy", "Level",
    "Pyramid", "Philox", "TorchNormals",
)  # fmt: skip
RECORDS |= {name: packed.layout_of(getattr(description, name)) for name in OWN}
RECORDS = {name: layout.dtype for name, layout in RECORDS.items()}
ENUMS = {"DType": {SHORT[name]: code for name, code in packed.DTYPES.items()}, "Draw": packed.DRAWS}
CONSTANTS = {
    "kAxes": description.AXES,
    "kSlots": Z + 1,
    "kColumns": COLUMNS,
    "kLossChunk": description.LOSS_CHUNK,
    "kThreads": launches.THREADS,
    "kTokens": description.TOKENS,
    "kPositions": description.POSITIONS,
}

PROGRAM = """
#include <cstddef>
#include <iostream>
#include <type_traits>
#include "core/race.h"
#include "cuda/launch.h"
#include "core/pyramid.h"

template <class Array>
constexpr char kind() {
    using T = std::remove_all_extents_t<Array>;
    if (std::is_class_v<T>) return 'V';
    if (std::is_floating_point_v<T>) return 'f';
    return std::is_enum_v<T> || std::is_signed_v<T> ? 'i' : 'u';  // unsigned, or an address
}
#define SIZE(record) std::cout << #record << ' ' << sizeof(nf::record) << '\\n';
#define FIELD(record, name)                                                                               \\
    std::cout << #record "." #name << ' ' << offsetof(nf::record, name) << ' ' << sizeof(nf::record::name) \\
              << ' ' << kind<decltype(nf::record::name)>() << '\\n';
#define CONSTANT(name) std::cout << #name << ' ' << nf::name << '\\n';
#define CASE(type, name) \\
    case nf::type::name: \\
        std::cout << #type "." #name << ' ' << static_cast<int>(nf::type::name) << '\\n'; \\
        break;

// With -Werror=switch: there are no other enumerators.
"""


def program():
    """Returns a program that prints a line for each record, field, enumerator and constant that Python knows."""
    lines = [PROGRAM]
    for name, values in ENUMS.items():
        lines.append(f"void print(nf::{name} value) {{ switch (value) {{")
        lines += [f"CASE({name}, {value})" for value in values]
        lines.append("} }")
    lines.append("int main() {")
    for name, record in RECORDS.items():
        lines += [f"SIZE({name})", *(f"FIELD({name}, {field})" for field in record.names)]
    lines += [f"print(static_cast<nf::{name}>({value}));" for name in ENUMS for value in ENUMS[name].values()]
    lines += [f"CONSTANT({name})" for name in CONSTANTS]
    return "\n".join([*lines, "}"])


def expected():
    for name, record in RECORDS.items():
        yield f"{name} {record.itemsize}"
        for field in record.names:
            dtype, offset = record.fields[field][:2]
            yield f"{name}.{field} {offset} {dtype.itemsize} {dtype.base.kind}"
    for name, values in ENUMS.items():
        yield from (f"{name}.{value} {code}" for value, code in values.items())
    yield from (f"{name} {value}" for name, value in CONSTANTS.items())


def test_python_packs_what_cpp_declares(tmp_path):
    """Compares sizes, offsets and kinds of all fields. Python's fields leave no gaps, so C++ has no others."""
    (tmp_path / "layout.cpp").write_text(program())
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{ROOT / 'csrc'}", str(tmp_path / "layout.cpp"), "-o", str(tmp_path / "layout")]
    subprocess.run(command, check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == [*expected()]

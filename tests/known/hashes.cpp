// SPDX-License-Identifier: Apache-2.0
// Prints the lines of hashes.txt (README.md says what they are) from one instruction set's kernels, without Python: so
// that they can be checked where there is only a cross compiler and an emulator. Compiled together with kernels.cpp,
// both race.cpp and the same NF_LANE, NF_LANE_HEADER, NF_KERNELS, NF_RACE and NF_NAME; .ci/run does it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include NF_LANE_HEADER
#include "core/loss.h"
#include "core/philox.h"
#include "cpu/dispatch.h"
#include "cpu/lane_scalar.h"
#include "run/race.h"

namespace nf {
extern const Kernels NF_KERNELS;

// What a race takes of the library's dispatch.cpp and pool.cpp.
const Kernels& kernels() { return NF_KERNELS; }
int num_threads() { return 1; }
bool parallel_for(int64_t total, int64_t, const Body& body, const GoOn&) {
    body(0, total);
    return true;
}
}  // namespace nf

using namespace nf;

namespace {

using Lane = NF_LANE;
using Bytes = std::vector<unsigned char>;
constexpr int kTimes = 8;
constexpr int kOutK = kAffine[0], kOutX = kOutK + 1 + kX, kOutZ = kOutK + 1 + kZ;
constexpr int kAuxK = kAffine[1], kAuxX = kAuxK + 1 + kX, kAuxZ = kAuxK + 1 + kZ;
constexpr char kTargets[] = "xesvvx";

uint32_t word(int64_t i) { return static_cast<uint32_t>(2654435761 * static_cast<uint64_t>(i)); }
double alpha(int t) { return t < 0 ? 1 : (15 - t) / 16.0; }
double sigma(int t) { return t < 0 ? 0 : (t + 1) / 8.0; }
double walk_x(int t) { return alpha(t) / alpha(t - 1); }
double walk_z(int t) {
    const double carried = walk_x(t) * sigma(t - 1);
    return std::sqrt((sigma(t) - carried) * (sigma(t) + carried));
}

int64_t width(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : type == DType::u8 ? 1 : 2; }
DType result_of(DType type) { return is_level(type) ? DType::f32 : type; }
double half_of_top(DType level) { return level == DType::u8 ? 127.5 : 32767.5; }

template <class T>
void put(Bytes& to, int64_t i, T value) {
    std::memcpy(to.data() + i * int64_t{sizeof value}, &value, sizeof value);
}

Bytes data(DType type, int64_t n, int64_t first = 0) {
    Bytes x(static_cast<size_t>(n * width(type)));
    for (int64_t i = 0; i < n; ++i) {
        const float value = static_cast<float>((word(first + i) >> 8) / 0x1p23 - 1);
        if (type == DType::f32) put(x, i, value);
        if (type == DType::f64) put(x, i, double{value});
        if (type == DType::f16) put(x, i, float_to_half(value));
        if (type == DType::bf16) put(x, i, float_to_bfloat16(value));
        if (type == DType::u8) put(x, i, static_cast<uint8_t>(word(first + i) >> 24));
        if (type == DType::u16) put(x, i, static_cast<uint16_t>(word(first + i) >> 16));
    }
    return x;
}

struct Hash {
    uint64_t value = 0xcbf29ce484222325;

    void add(const void* data, size_t n) {
        for (const auto* p = static_cast<const unsigned char*>(data); n > 0; --n)
            value = (value ^ *p++) * 0x100000001b3;
    }
    void add(const Bytes& bytes) { add(bytes.data(), bytes.size()); }
};

// ------------------------------------------------------------------------------------------------ cases

struct Case {
    int64_t batch, size;
    std::vector<int64_t> t;  // for each sample or token, or one for all
    std::vector<Field> fields;
    std::vector<uint64_t> ids{};

    int64_t elements() const { return batch * size; }
};

std::vector<int64_t> times(int64_t n) {
    std::vector<int64_t> t;
    for (int64_t k = 0; k < n; ++k) t.push_back((5 * k + 2) % kTimes);
    return t;
}

Field field(int64_t size, uint64_t seed, uint64_t sample, uint32_t step = 0, uint32_t stream = 0) {
    Field f{};
    f.seed = seed, f.sample = sample, f.step = step, f.stream = stream, f.run = size;
    return f;
}

std::vector<Case> cases() {
    std::vector<Field> rows;
    for (uint32_t b = 0; b < 4; ++b) rows.push_back(field(50, uint64_t{b} << 32, 100 - b, b));
    return {
        {5, 1003, times(5), {field(1003, 0, 0)}},
        {37, 3, times(37), {field(3, 0x0123456789abcdef, 0xFFFFFFFD, 7, 64)}},
        {5, 63, times(35), {field(63, ~uint64_t{0}, (uint64_t{1} << 56) - 5, 0xFFFFFFF8, 127)}},
        {3, 43693, {3}, {field(43693, 3, 0, 1)}, {(uint64_t{1} << 40) + 3, 0, (uint64_t{1} << 56) - 1}},
        {1, 143, {5}, {field(143, 4, 9)}},
        {4, 50, times(4), rows},
    };
}

std::vector<Case> cases_of_walk() {
    auto all = cases();
    for (Case& c : all)
        for (Field& f : c.fields) f.stream = 1;
    return all;
}

// `update` has no batched=False: there case 4 is eleven samples.
std::vector<Case> cases_of_update() {
    auto all = cases();
    all[4] = {11, 13, {5}, {field(13, 4, 9)}};
    for (Case& c : all)
        for (Field& f : c.fields) f.stream = 3;
    return all;
}

std::vector<Case> cases_of_window() {
    const auto window = [](int64_t batch, int64_t size, int64_t start, int64_t run) {
        Case c{batch, size, times(batch), {field(size, 6, uint64_t{1} << 33, 8)}};
        c.fields[0].start = start, c.fields[0].run = run;
        return c;
    };
    auto tile = window(4, 11 * 7, 5 * 23 + 13, 7);  // eleven runs of seven, 23 apart
    tile.fields[0].axes = 1, tile.fields[0].shape[0] = 11, tile.fields[0].stride[0] = 23;
    return {tile, window(2, 5 * 4 * 6, 3 * 4 * 6, 5 * 4 * 6), window(3, 1001, (int64_t{1} << 34) - 1001, 1001)};
}

std::vector<Case> cases_of_ends() {
    std::vector<Case> all;
    for (int64_t n = 1; n < 640; n += 64) all.push_back({2, n, times(2), {field(n, 7, 0)}});
    return all;
}

// ------------------------------------------------------------------------------------------------ calls

// The rows of all times, as float or as double, and the active columns.
struct Rows {
    std::vector<double> doubles = std::vector<double>(kTimes * kColumns);
    std::vector<float> floats = std::vector<float>(kTimes * kColumns);
    uint64_t active = 0;

    void set(int column, const std::function<double(int)>& value) {
        active |= uint64_t{1} << column;
        for (int t = 0; t < kTimes; ++t) {
            doubles[t * kColumns + column] = value(t);
            floats[t * kColumns + column] = static_cast<float>(value(t));
        }
    }
    const void* of(DType type) const {
        return type == DType::f64 ? static_cast<const void*>(doubles.data()) : floats.data();
    }
};

Rows rows_of_walk() {
    Rows rows;
    rows.set(kOutX, walk_x);
    rows.set(kOutZ, walk_z);
    return rows;
}

// The target, times `sign`, in the form whose constant is column k: of the scaled x0 and of z. 'e'psilon, 's'ample,
// 'v', flow 'x'; none.
void set_target(Rows& rows, DType type, char target, int k, double sign) {
    const bool levels = is_level(type);
    const double scale = levels ? 1 / half_of_top(type) : 1, offset = levels ? -1 : 0;
    const auto of_x = [=](int t) { return sign * (target == 's' ? 1 : target == 'v' ? -sigma(t) : -1); };
    const auto of_z = [=](int t) { return sign * (target == 'v' ? alpha(t) : 1); };
    const bool has_x = target && target != 'e', has_z = target && target != 's';
    if (has_x) rows.set(k + 1 + kX, [=](int t) { return of_x(t) * scale; });
    if (has_x && levels) rows.set(k, [=](int t) { return of_x(t) * offset; });
    if (has_z) rows.set(k + 1 + kZ, of_z);
}

Rows rows_of_sample(DType type, char target) {
    const bool levels = is_level(type);
    const double scale = levels ? 1 / half_of_top(type) : 1, offset = levels ? -1 : 0;
    Rows rows;
    rows.set(kOutX, [=](int t) { return alpha(t) * scale; });
    rows.set(kOutZ, sigma);
    if (levels) rows.set(kOutK, [=](int t) { return alpha(t) * offset; });
    set_target(rows, type, target, kAuxK, 1);
    return rows;
}

Rows rows_of_loss(DType type, char target) {
    Rows rows;
    rows.set(kOutK + 1 + kM1, [](int) { return 1; });
    set_target(rows, type, target, kOutK, -1);
    return rows;
}

Rows rows_of_update() {
    Rows rows;
    for (int c = 0; c < kColumns; ++c)
        rows.set(c, [=](int t) { return c == kLow ? -0.75 : c == kHigh ? 0.5 : ((5 * t + 3 * c) % 16 - 8) / 8.0; });
    return rows;
}

struct Filled : Call {
    Bytes first, second, third;

    Filled(const Case& c, const Rows& rows, DType dtype, int64_t outputs_in_first = 1)
        : Filled(c, rows, dtype, dtype, outputs_in_first) {}
    Filled(const Case& c, const Rows& rows, DType dtype, DType of_first, int64_t outputs_in_first) : Call{} {
        batch = c.batch, size = c.size;
        index = c.t.data(), segment = c.elements() / static_cast<int64_t>(c.t.size());
        type = dtype, out_type = of_first, this->rows = rows.of(dtype), n_rows = kTimes, active = rows.active;
        draw = Draw::normal, fields = c.fields.data(), field_per_sample = c.fields.size() > 1;
        first.resize(static_cast<size_t>(outputs_in_first * c.elements() * width(of_first)));
        out[0] = first.data();
        if (active >> kAuxX & 1 || active >> kAuxZ & 1) {
            second.resize(static_cast<size_t>(c.elements() * width(dtype)));
            out[1] = second.data();
        }
    }
    void read(const Bytes& x, DType dtype, int slot = kX) { in[slot] = x.data(), in_type[slot] = dtype; }
};

// The cases with their ids in place: a Field points to them.
std::vector<Case> located(std::vector<Case> all) {
    for (Case& c : all)
        if (!c.ids.empty()) c.fields[0].samples = c.ids.data();
    return all;
}

uint64_t hash_philox(DType) {
    Hash hash;
    for (int64_t i = 0; i < 6000; i += 6) {
        Words<Lane::word> c;
        for (int w = 0; w < 4; ++w) c.w[w] = Lane::word_splat(word(i + w));
        const auto out = philox_rounds<Lane>(c, RoundKeys(uint64_t{word(i + 5)} << 32 | word(i + 4)), 0);
        for (const auto& w : out.w) {
            uint32_t lanes[Lane::width];
            Lane::store(lanes, w);
            hash.add(&lanes[i % Lane::width], 4);
        }
    }
    return hash.value;
}

uint64_t hash_random(DType type, Draw draw) {
    Rows one;
    one.set(kOutZ, [](int) { return 1; });
    auto all = located(cases());
    for (uint32_t n = 0; n < 128; ++n) all.push_back({2, 6, {0}, {field(6, 5, uint64_t{n} << 32, n, n)}});
    Hash hash;
    for (Case& c : all) {
        c.t.assign(1, 0);
        for (Field& f : c.fields)
            if (draw == Draw::uniform && f.stream == 0) f.stream = 7;
        Filled call(c, one, type);
        call.draw = draw;
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
    }
    return hash.value;
}
uint64_t hash_randn(DType type) { return hash_random(type, Draw::normal); }
uint64_t hash_uniform(DType type) { return hash_random(type, Draw::uniform); }

// The places of `many` cells among those of `few`: the one before, and the fraction of the way to the next.
struct Among {
    std::vector<int32_t> before;
    std::vector<double> part, squares;

    Among(int64_t few, int64_t many) {
        for (int64_t i = 0; i < many; ++i) {
            const double place = (static_cast<double>(i) + 0.5) * static_cast<double>(few) / static_cast<double>(many);
            const double within = std::fmin(std::fmax(place - 0.5, 0.0), static_cast<double>(few - 1));
            const auto cell = static_cast<int32_t>(std::fmin(within, static_cast<double>(few > 1 ? few - 2 : 0)));
            const double p = within - cell;
            before.push_back(cell), part.push_back(p), squares.push_back(p * p + (1 - p) * (1 - p));
        }
    }
};

Bytes numbers(DType type, const std::vector<double>& from) {
    Bytes to(from.size() * static_cast<size_t>(width(type)));
    for (size_t i = 0; i < from.size(); ++i) {
        if (type == DType::f64) put(to, static_cast<int64_t>(i), from[i]);
        if (type == DType::f32) put(to, static_cast<int64_t>(i), static_cast<float>(from[i]));
    }
    return to;
}

uint64_t hash_pyramid(DType type) {
    constexpr int64_t kHeight = 5, kWidth = 700, kLevels = 4;
    Rows one;
    one.set(kOutZ, [](int) { return 1; });
    const auto drawn = [&](int64_t height, int64_t width, uint32_t step, uint32_t stream) {
        const int64_t size = 2 * height * width;  // two planes of a sample
        const Case c{3, size, {0}, {field(size, 5, 9, step, stream)}};
        Filled call(c, one, type);
        NF_KERNELS.step(call, 0, c.elements(), false);
        return call.first;
    };
    Bytes whole = drawn(kHeight, kWidth, 2, 0), memory[kLevels][3];
    std::vector<Among> places;
    std::vector<double> scale(kHeight * kWidth, 1.0);
    Level levels[kLevels]{};
    for (int64_t i = 1; i < kLevels; ++i) {
        const int64_t height = std::max<int64_t>(1, kHeight >> i), width = std::max<int64_t>(1, kWidth >> i);
        places.emplace_back(height, kHeight), places.emplace_back(width, kWidth);
        const double weight = 1.0 / static_cast<double>(1 << i);
        const Among &down = places[places.size() - 2], &right = places.back();
        for (size_t at = 0; at < scale.size(); ++at)
            scale[at] = scale[at] + weight * weight * (down.squares[at / kWidth] * right.squares[at % kWidth]);
        Bytes(&of)[3] = memory[i];
        of[0] = drawn(height, width, static_cast<uint32_t>(2 * kLevels + i), 10);
        of[1] = numbers(type, down.part), of[2] = numbers(type, right.part);
        Level& level = levels[i - 1];
        level.planes = of[0].data(), level.down = of[1].data(), level.right = of[2].data();
        level.height = height, level.width = width, level.weight = weight;
    }
    for (size_t i = 0; i < kLevels - 1; ++i)
        levels[i].above = places[2 * i].before.data(), levels[i].left = places[2 * i + 1].before.data();
    for (double& variance : scale) variance = 1 / std::sqrt(variance);
    const Bytes scales = numbers(type, scale);
    const Pyramid call{whole.data(), scales.data(), levels, kLevels - 1, 6, kHeight, kWidth, type, 0};
    NF_KERNELS.enlarged(call, 0, 6 * kHeight);
    Hash hash;
    hash.add(whole);
    return hash.value;
}

uint64_t hash_samples(DType type, const std::vector<Case>& all, const char* targets, bool of_walk = false) {
    Hash hash;
    for (const Case& c : all) {
        const char target = *targets ? *targets++ : '\0';
        const Rows rows = of_walk ? rows_of_walk() : rows_of_sample(type, target);
        Filled call(c, rows, result_of(type));
        const Bytes x0 = data(type, c.elements());
        call.read(x0, type);
        call.step_by_index = of_walk;
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
        hash.add(call.second);
    }
    return hash.value;
}
uint64_t hash_sample(DType type) { return hash_samples(type, located(cases()), ""); }
uint64_t hash_target(DType type) { return hash_samples(type, located(cases()), kTargets); }
uint64_t hash_window(DType type) { return hash_samples(type, cases_of_window(), ""); }
uint64_t hash_ends(DType type) { return hash_samples(type, cases_of_ends(), ""); }
uint64_t hash_step(DType type) { return hash_samples(type, located(cases_of_walk()), "", true); }

// With x_t in bytes, or uint16.
template <DType Level>
uint64_t hash_sample_levels(DType type) {
    const double half = half_of_top(Level);
    Hash hash;
    const char* target = kTargets;
    for (const Case& c : located(cases())) {
        const Rows floats = rows_of_sample(type, *target++);
        Rows rows = floats;
        for (const int column : {kOutX, kOutZ})
            rows.set(column, [&](int t) { return floats.doubles[t * kColumns + column] * half; });
        rows.set(kOutK, [&](int t) { return floats.doubles[t * kColumns + kOutK] * half + half; });
        Filled call(c, rows, result_of(type), Level, 1);
        const Bytes x0 = data(type, c.elements());
        call.read(x0, type);
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
        hash.add(call.second);
    }
    return hash.value;
}

// x (1 + z / 8), and x + sqrt(max(x / 2 + 1/4, 0)) z; of levels in levels.
uint64_t hash_augment(DType type) {
    const auto always = [](double value) { return [=](int) { return value; }; };
    Rows multiplicative, sensor;
    multiplicative.set(kClean + 1 + kX, always(1));
    multiplicative.set(kOutX, always(1));
    multiplicative.set(kOutZ, always(0.125));
    multiplicative.active |= kTimesClean;
    sensor.set(kClean + 1 + kX, always(0.5));
    sensor.set(kClean, always(0.25));
    sensor.set(kLow, always(0));
    sensor.set(kHigh, always(INFINITY));
    sensor.set(kOutX, always(1));
    sensor.set(kOutZ, always(1));
    sensor.active |= kTimesRoot;
    Hash hash;
    for (Case& c : located(cases()))
        for (const Rows& rows : {multiplicative, sensor}) {
            c.t.assign(1, 0);
            Filled call(c, rows, result_of(type), type, 1);
            const Bytes x = data(type, c.elements());
            call.read(x, type);
            NF_KERNELS.step(call, 0, c.elements(), false);
            hash.add(call.first);
        }
    return hash.value;
}

// 255 - x + x z / 16 of bytes, by a table of levels.
uint64_t hash_levels(DType type) {
    Rows rows;
    rows.doubles.assign(256 * kColumns, 0), rows.floats.assign(256 * kColumns, 0);
    for (int level = 0; level < 256; ++level) {
        rows.doubles[level * kColumns + kOutK] = 255 - level;
        rows.doubles[level * kColumns + kOutZ] = level / 16.0;
    }
    for (size_t i = 0; i < rows.doubles.size(); ++i) rows.floats[i] = static_cast<float>(rows.doubles[i]);
    rows.active = uint64_t{1} << kOutK | uint64_t{1} << kOutZ;
    Hash hash;
    for (Case& c : located(cases())) {
        c.t.assign(1, 0);
        Filled call(c, rows, result_of(type), type, 1);
        const Bytes x = data(DType::u8, c.elements());
        call.read(x, DType::u8);
        call.n_rows = 256, call.by_level = 1;
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
    }
    return hash.value;
}

// A level becomes one of those that differ from it in its lowest (level mod 8) bits alone, each as likely.
std::vector<Transition> low_bits_at_random() {
    std::vector<Transition> tables(kLevels);
    for (int level = 0; level < kLevels; ++level) {
        const int bits = level % 8, first = level >> bits << bits;
        const auto reached = [&](int byte) {
            const int64_t given = byte < first ? 0 : byte - first + 1;
            return (given < 1 << bits ? given : 1 << bits) << (32 - bits);
        };
        for (int byte = 0; byte < kLevels; ++byte) {
            tables[level].last[byte] = static_cast<uint32_t>(reached(byte) ? reached(byte) - 1 : 0);
            int begin = 0;
            while (reached(begin) <= int64_t{byte} << 24) ++begin;
            tables[level].first[byte] = static_cast<uint8_t>(begin);
        }
    }
    return tables;
}

uint64_t hash_transition(DType type) {
    const std::vector<Transition> tables = low_bits_at_random();
    Rows rows;
    rows.set(kOutX, [](int) { return 1.0; });
    Hash hash;
    for (Case& c : located(cases())) {
        c.t.assign(1, 0);
        Filled call(c, rows, DType::f32, type, 1);
        const Bytes x = data(type, c.elements());
        call.read(x, type);
        call.draw = Draw::words, call.transitions = tables.data();
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
    }
    return hash.value;
}

// x' = 3/4 x - m / 2 + z / 4, and of each sample the sum of (x' - mean)^2.
uint64_t hash_density(DType type) {
    const auto always = [](double value) { return [=](int) { return value; }; };
    Rows rows, deviation;
    rows.set(kOutX, always(0.75)), rows.set(kOutK + 1 + kM1, always(-0.5)), rows.set(kOutZ, always(0.25));
    deviation.set(kOutX, always(-0.75)), deviation.set(kOutK + 1 + kM1, always(0.5)), deviation.set(kOutZ, always(1));
    Hash hash;
    for (Case& c : located(cases_of_update())) {
        c.t.assign(1, 0);
        Filled step(c, rows, type), loss(c, deviation, type);
        const Bytes x = data(type, c.elements()), m = data(type, c.elements(), 1000003);
        for (Filled* call : {&step, &loss}) call->read(x, type), call->read(m, type, kM1);
        loss.read(step.first, type, kZ);
        const int64_t chunks = chunks_of(c.size);
        std::vector<double> chunk_sums(static_cast<size_t>(c.batch * chunks));
        loss.draw = Draw::none, loss.out[0] = nullptr, loss.piece = c.size, loss.chunk_sums = chunk_sums.data();
        NF_KERNELS.step_and_loss(step, loss, 0, c.batch * chunks);
        hash.add(step.first);
        for (int64_t b = 0; b < c.batch; ++b) {
            SampleSum<Scalar> sample{};
            sample.add(chunk_sums.data() + b * chunks, chunks, chunks, [](int64_t) { return 1.0; });
            hash.add(&sample.total, sizeof sample.total);
        }
    }
    return hash.value;
}

uint64_t hash_walk(DType type) {
    const Rows rows = rows_of_walk();
    const int64_t keep[kTimes] = {0, -1, -1, 1, -1, -1, -1, 2};
    Hash hash;
    for (const Case& c : located(cases_of_walk())) {
        Filled call(c, rows, type, 3);
        const Bytes x0 = data(type, c.elements());
        call.read(x0, type);
        call.keep = keep, call.times = kTimes;
        NF_KERNELS.walk(call, 0, c.elements());
        hash.add(call.first);
    }
    return hash.value;
}

uint64_t hash_update(DType type) {
    const Rows rows = rows_of_update();
    Hash hash;
    for (const Case& c : located(cases_of_update())) {
        Filled call(c, rows, type);
        call.third.resize(call.first.size());
        call.out[2] = call.third.data();
        std::vector<Bytes> inputs;
        for (int64_t n = 0; n < 7; ++n) inputs.push_back(data(type, c.elements(), 1000003 * n));
        for (int slot = kX, n = 0; slot <= kPast4; ++slot)
            if (slot != kD) call.read(inputs[static_cast<size_t>(n++)], type, slot);
        call.step_by_index = true;
        NF_KERNELS.step(call, 0, c.elements(), false);
        hash.add(call.first);
        hash.add(call.second);
        hash.add(call.third);
    }
    return hash.value;
}

uint64_t hash_loss(DType type) {
    Hash hash;
    const char* target = kTargets;
    for (const Case& c : located(cases())) {
        const Rows rows = rows_of_loss(type, *target++);
        Filled call(c, rows, result_of(type));
        const Bytes x0 = data(type, c.elements()), pred = data(result_of(type), c.elements(), 1000003);
        if (rows.active >> kOutX & 1) call.read(x0, type);
        call.read(pred, result_of(type), kM1);
        if (!(rows.active >> kOutZ & 1)) call.draw = Draw::none;

        const int64_t piece = call.segment < c.size ? call.segment : c.size, pieces = c.elements() / piece;
        const int64_t chunks = chunks_of(piece);
        std::vector<double> weights, chunk_sums(static_cast<size_t>(pieces * chunks)), losses;
        for (int64_t t = 0; t < kTimes; ++t) weights.push_back(static_cast<double>(1 + t) / 8.0);
        call.piece = piece, call.weights = weights.data(), call.chunk_sums = chunk_sums.data();
        call.g = 1, call.n = static_cast<double>(c.elements());
        NF_KERNELS.loss(call, 0, pieces * chunks, false);
        double total = 0;
        for (int64_t b = 0, in_sample = pieces / c.batch; b < c.batch; ++b) {
            SampleSum<Scalar> sample{};
            sample.add(chunk_sums.data() + b * in_sample * chunks, in_sample * chunks, chunks,
                       [&](int64_t p) { return weight_of(call, b * in_sample + p); });
            losses.push_back(sample.total / static_cast<double>(c.size));
            total += sample.total;
        }
        losses.push_back(total / static_cast<double>(c.elements()));
        hash.add(losses.data(), sizeof(double) * losses.size());
        hash.add(call.first);
    }
    return hash.value;
}

// A draw of a Brownian motion's increment: docs/noise.md.
struct Term {
    uint32_t word;
    double coefficient;
};

std::vector<Term> tree(int64_t u0, int64_t u1) {
    const int64_t cells = 1 << 24, sign = u0 < u1 ? 1 : -1, low = u0 < u1 ? u0 : u1, high = u0 < u1 ? u1 : u0;
    std::vector<Term> terms;
    for (int level = 24; level > 0; --level) {
        const int64_t width = cells >> (level - 1), first = int64_t{1} << (level - 1);
        const auto height = [=](int64_t u) { return u % width < width - u % width ? u % width : width - u % width; };
        const auto add = [&](int64_t u, int64_t h) {
            const double root = std::sqrt(static_cast<double>((high - low) * width));
            if (h) terms.push_back({static_cast<uint32_t>(first + u / width), static_cast<double>(sign * h) / root});
        };
        if (low / width == high / width) add(low, height(high) - height(low));
        if (low / width != high / width) add(low, -height(low)), add(high, height(high));
    }
    const double root = std::sqrt(static_cast<double>((high - low) * cells));
    terms.push_back({0, static_cast<double>(sign * (high - low)) / root});
    return terms;
}

// From 15/16 back to 1/16 on the grid (0, 1, 3, 6, 10, 15) / 16.
std::vector<Term> on_a_grid() {
    std::vector<Term> terms;
    for (uint32_t j = 1; j < 5; ++j) terms.push_back({uint32_t{1} << 31 | j, -std::sqrt((j + 1) / 14.0)});
    return terms;
}

uint64_t hash_interval(DType type) {
    Hash hash;
    int64_t k = 0;
    for (Case& c : located(cases())) {
        c.t.assign(1, 0);
        for (const auto& terms : {tree(word(2 * k + 1) >> 8, word(2 * k + 2) >> 8), on_a_grid()}) {
            const DType wide = type == DType::f64 ? type : DType::f32;
            Bytes total(static_cast<size_t>(c.elements() * width(wide))), made;
            for (const Term& term : terms) {
                Case drawn = c;
                for (Field& f : drawn.fields) f.stream = 4, f.step = term.word + (f.step % 128 << 24);
                Rows rows;
                rows.set(kOutZ, [&](int) { return term.coefficient; });
                if (&term != terms.data()) rows.set(kOutX, [](int) { return 1; });
                Filled call(drawn, rows, &term == &terms.back() ? type : wide);
                call.read(total, wide);
                NF_KERNELS.step(call, 0, c.elements(), false);
                (&term == &terms.back() ? made : total) = call.first;
            }
            hash.add(made);
        }
        ++k;
    }
    return hash.value;
}

// The cases of tokens: as for `update`, from other streams.
std::vector<Case> cases_of_tokens(uint32_t stream) {
    auto all = cases_of_update();
    for (Case& c : all)
        for (Field& f : c.fields) f.stream = stream;
    return all;
}

std::vector<double> probabilities(const Case& c) {
    std::vector<double> p;
    for (const int64_t t : c.t) p.push_back(static_cast<double>(t + 1) / 8);
    return p;
}

// With a vocabulary, the tokens alone.
template <class Token>
uint64_t hash_mask(uint64_t vocabulary = 0) {
    Hash hash;
    for (Case& c : located(cases_of_tokens(14))) {
        Filled call(c, {}, DType::f32);
        const auto n = static_cast<size_t>(c.elements());
        std::vector<Token> ids(n), out(n);
        std::vector<uint8_t> masked(n);
        const std::vector<double> p = probabilities(c);
        for (size_t i = 0; i < n; ++i) ids[i] = static_cast<Token>(word(static_cast<int64_t>(i)) >> 24);
        const Masks masks{ids.data(), out.data(), masked.data(),          nullptr, p.data(), call.segment,
                          127,        vocabulary, int32_t{sizeof(Token)}, 0};
        NF_KERNELS.mask(call, masks, 0, c.elements());
        hash.add(out.data(), n * sizeof(Token));
        if (!vocabulary) hash.add(masked.data(), n);
    }
    return hash.value;
}

// Salt and pepper, and random values.
uint64_t hash_impulse(DType type) {
    const bool levels = is_level(type);
    const double amount = 0.375;
    Hash hash;
    for (Case& c : located(cases()))
        for (const int32_t random : {0, 1}) {
            c.t.assign(1, 0);
            Filled call(c, {}, DType::f32);
            call.draw = Draw::words;
            const Bytes x = data(type, c.elements());
            Bytes out(x.size());
            const Impulses impulses{
                x.data(), out.data(), &amount, c.elements(), 1, 0.25, levels ? 3.0 : -0.25, levels ? 250.0 : 1.75, type,
                random,   0,          0};
            NF_KERNELS.impulse(call, impulses, 0, c.elements());
            hash.add(out);
        }
    return hash.value;
}

// sqrt((x + z / 2)^2 + ..) of two coils.
uint64_t hash_rician(DType type) {
    const double std = 0.5;
    Hash hash;
    for (Case& c : located(cases())) {
        c.t.assign(1, 0);
        Filled call(c, {}, result_of(type));
        const Bytes x = data(type, c.elements());
        Bytes out(x.size());
        const Rician rician{x.data(), out.data(), &std, c.elements(), 4, c.elements() / c.batch, type, 0};
        NF_KERNELS.rician(call, rician, 0, c.elements());
        hash.add(out);
    }
    return hash.value;
}

// Photons, with peaks whose numbers are counted, and expanded.
uint64_t hash_poisson(DType type) {
    const double top = type == DType::u16 ? 65535.0 : 1.0;
    Hash hash;
    for (Case& c : located(cases()))
        for (const double peak : {3.0, 300.0}) {
            c.t.assign(1, 0);
            Filled call(c, {}, DType::f32);
            call.draw = Draw::words;
            const Bytes x = data(type, c.elements());
            Bytes out(x.size());
            const Poisson poisson{x.data(), out.data(), &peak, c.elements(), peak == 3 ? 2.25 : 1.0, top,
                                  nullptr,  type,       0};
            NF_KERNELS.poisson(call, poisson, 0, c.elements());
            hash.add(out);
        }
    return hash.value;
}

// Logits 8 x0[i + 7 k] of 12 rows; case 5 of `cases` has a sample more, with the logits of the first.
Bytes logits(DType type, int64_t rows, int64_t k, int64_t n) {
    Bytes x(static_cast<size_t>(rows * n * width(type)));
    for (int64_t i = 0; i < rows * n; ++i) {
        const auto value = static_cast<float>(8 * ((word(7 * k + i % (12 * n)) >> 8) / 0x1p23 - 1));
        if (type == DType::f32) put(x, i, value);
        if (type == DType::f16) put(x, i, float_to_half(value));
        if (type == DType::bf16) put(x, i, float_to_bfloat16(value));
    }
    return x;
}

template <class T>
void add(Hash& hash, const std::vector<T>& values) {
    Bytes bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    hash.add(bytes);
}

uint64_t hash_race(DType type, bool far) {
    Hash hash;
    int64_t k = 0;
    for (Case& c : located(cases())) {
        const int64_t n = (const int64_t[]){61, 4099, 13}[k % 3], samples = c.fields.size() > 1 ? 4 : 3;
        const auto rows = static_cast<size_t>(4 * samples);
        const double temperature = (const double[]){1, 0.75, 0}[k / 2], top_p = k < 3 ? 1 : 0.875;
        const int64_t top_k = k % 2 ? 9 : 0;
        const Bytes x = logits(type, 4 * samples, k, n);
        for (Field& f : c.fields) f.stream = 13;
        std::vector<int64_t> position(rows), token(rows);
        for (size_t i = 0; i < rows; ++i) position[i] = far ? word(12 * k + static_cast<int64_t>(i)) >> 1 : i % 4;
        std::vector<float> log_prob(rows), log_prob_raw(rows), entropy(rows), margin(rows);
        std::vector<int32_t> rank(rows);
        std::vector<uint8_t> bad(rows);
        Race race{};
        race.rows = 4 * samples, race.of_sample = 4, race.n = n, race.x = x.data(), race.position = position.data();
        race.temperature = &temperature, race.top_p = &top_p, race.top_k = &top_k, race.fields = c.fields.data();
        race.field_per_sample = c.fields.size() > 1, race.token = token.data(), race.log_prob = log_prob.data();
        race.log_prob_raw = log_prob_raw.data(), race.entropy = entropy.data(), race.margin = margin.data();
        race.rank = rank.data(), race.bad = bad.data(), race.chunks = chunks_of(n), race.type = type;
        run_race(race, nullptr);
        add(hash, token);
        for (const auto& values : {log_prob, log_prob_raw, entropy, margin}) add(hash, values);
        add(hash, rank);
        ++k;
    }
    return hash.value;
}

uint64_t hash_categorical(DType type) { return hash_race(type, false); }
uint64_t hash_positions(DType type) { return hash_race(type, true); }

uint64_t hash_cross_entropy(DType type) {
    Hash hash;
    for (int64_t k = 0; k < 3; ++k) {
        const int64_t n = (const int64_t[]){61, 4099, 13}[k];
        const Bytes x = logits(type, 12, k, n);
        Bytes gradient(x.size());
        std::vector<int64_t> id(12);
        std::vector<uint8_t> masked(12);
        std::vector<double> weight(12), upstream(12), loss(12);
        for (size_t i = 0; i < 12; ++i) {
            id[i] = word(static_cast<int64_t>(i)) % n, masked[i] = static_cast<int64_t>(i % 3) != k;
            weight[i] = (1 + i / 4) / 4.0, upstream[i] = static_cast<double>(i) / 8;
        }
        CrossEntropy call{};
        const double one = 0.75;
        call.rows = 12, call.n = n, call.x = x.data(), call.id = id.data(), call.masked = masked.data();
        call.weight = weight.data(), call.weight_step = 1, call.upstream = &one, call.loss = loss.data();
        call.gradient = gradient.data(), call.mean_of = 12, call.type = type;
        run_cross_entropy(call, nullptr);
        double total = 0;
        for (size_t i = 0; i < 12; ++i) total += masked[i] ? weight[i] * loss[i] : 0;
        add(hash, std::vector<double>{total / 12});
        hash.add(gradient);
        call.upstream = upstream.data(), call.upstream_step = 1, call.mean_of = 1;
        run_cross_entropy(call, nullptr);
        for (size_t i = 0; i < 12; ++i) loss[i] = masked[i] ? weight[i] * loss[i] : 0;
        add(hash, loss);
        hash.add(gradient);
    }
    return hash.value;
}

}  // namespace

int main() {
    const auto print = [](const char* operation, uint64_t (*hash)(DType), const std::vector<DType>& types) {
        const char* const names[] = {"float32", "float64", "float16", "bfloat16", "uint8", "uint16"};
        for (const DType type : types)
            std::printf("%s %s %016llx\n", operation, names[int(type)], static_cast<unsigned long long>(hash(type)));
    };
    const std::vector<DType> full{DType::f32, DType::f64}, floats{DType::f32, DType::f64, DType::f16, DType::bf16};
    const std::vector<DType> bytes{DType::f32, DType::f64, DType::f16, DType::bf16, DType::u8};
    const std::vector<DType> all{DType::f32, DType::f64, DType::f16, DType::bf16, DType::u8, DType::u16};
    std::printf("philox uint32 %016llx\n", static_cast<unsigned long long>(hash_philox({})));
    print("randn", hash_randn, floats);
    print("uniform", hash_uniform, full);
    print("q_sample", hash_sample, all);
    print("q_sample_target", hash_target, all);
    print("q_sample_bytes", hash_sample_levels<DType::u8>, all);
    print("q_sample_uint16", hash_sample_levels<DType::u16>, all);
    print("q_step", hash_step, floats);
    print("q_walk", hash_walk, floats);
    print("window", hash_window, floats);
    print("update", hash_update, floats);
    print("mse_loss", hash_loss, all);
    print("ends", hash_ends, floats);
    print("augment", hash_augment, all);
    print("levels", hash_levels, bytes);
    print("transition", hash_transition, {DType::u8});
    print("density", hash_density, floats);
    print("interval", hash_interval, floats);
    print("impulse", hash_impulse, all);
    print("rician", hash_rician, all);
    print("poisson", hash_poisson, {DType::f32, DType::f64, DType::f16, DType::bf16, DType::u16});
    const auto print_tokens = [](const char* line, uint64_t value) {
        std::printf("%s %016llx\n", line, static_cast<unsigned long long>(value));
    };
    print_tokens("q_mask int64", hash_mask<int64_t>());
    print_tokens("q_mask int32", hash_mask<int32_t>());
    print_tokens("q_mask uint8", hash_mask<uint8_t>());
    print_tokens("q_mask uint16", hash_mask<uint16_t>());
    print_tokens("q_uniform int64", hash_mask<int64_t>(50257));
    print("categorical", hash_categorical, {DType::f32, DType::f16, DType::bf16});
    print("positions", hash_positions, {DType::f32, DType::f16, DType::bf16});
    print("masked_cross_entropy", hash_cross_entropy, {DType::f32, DType::f16, DType::bf16});
    print("pyramid_like", hash_pyramid, full);
}

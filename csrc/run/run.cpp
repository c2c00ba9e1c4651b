// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#include "../core/loss.h"
#include "../core/philox.h"
#include "../cpu/dispatch.h"
#include "../cpu/float_mode.h"
#include "../cpu/lane_scalar.h"
#include "memory.h"
#include "race.h"

namespace nf {
namespace {

// Elements for one thread: about 20 microseconds of noise; without noise two chunks take as long. Walks multiply them
// by their times.
constexpr int64_t kChunk = 1 << 15;

// Adds numbers in their order. (Inlined, the sum would lie in memory between two additions.)
[[gnu::noinline]] double add_in_order(double sum, const double* numbers, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum = sum + numbers[i];
    return sum;
}

// The sums of samples take the places of those of chunks, from the first on.
bool add_up(const Call& call, const GoOn& go_on) {
    constexpr int64_t kSamples = 1024;  // between two looks at the clock, which take as long as a sample's sum
    const FloatMode mode;
    const int64_t pieces = call.size / call.piece, chunks = chunks_of(call.piece), in_sample = pieces * chunks;
    double all = 0;
    for (int64_t begin = 0, end; begin < call.batch; begin = end) {
        end = std::min(begin + kSamples, call.batch);
        for (int64_t b = begin; b < end && (call.weights || in_sample > 1); ++b) {
            SampleSum<Scalar> sum{};
            sum.add(call.chunk_sums + b * in_sample, in_sample, chunks,
                    [&](int64_t p) { return weight_of(call, b * pieces + p); });
            call.chunk_sums[b] = sum.total;
        }
        all = add_in_order(all, call.chunk_sums + begin, end - begin);
        for (int64_t b = begin; b < end && call.n_losses > 1; ++b) call.losses[b] = call.chunk_sums[b] / call.n;
        if (go_on && !go_on()) return false;
    }
    if (call.n_losses == 1) *call.losses = all / call.n;
    return true;
}

// The columns of arrays that all lie turned, if their chunks can be added up as they lie: none has elements of two
// rows, and there are enough for all threads. 0: they cannot.
int64_t columns_at_once(const Call& call, const Call& first, const Turned& turned) {
    const int64_t most_rows =
        first.draw == Draw::none ? 1 << 10 : 1 << 7;  // their arrays lie in the second-level cache
    const int64_t plane = turned.rows * turned.columns,
                  count = call.batch * call.size / plane * chunks_of(turned.columns);
    const bool own_row = call.piece == turned.columns && !call.out[0];
    const bool one_row = turned.columns % kLossChunk ? own_row : own_row || call.piece % plane == 0;
    return turned.alike && one_row && turned.rows <= most_rows && count >= num_threads() ? count : 0;
}

// Runs the chunks of a loss on all threads, by body(first, call, begin, end), or the columns by `band`, with the
// accumulators; then adds their sums. first: the call, or one before it, whose arrays may be turned on the way.
template <class Body, class OfBand>
bool run_chunks(Call call, const Call* before, const Turned& turned, const GoOn& go_on, const Body& body,
                const OfBand& of_band) {
    const int64_t chunks = call.batch * call.size / call.piece * chunks_of(call.piece);
    std::vector<double> chunk_sums(call.losses ? static_cast<size_t>(chunks) : 0);
    call.chunk_sums = call.losses ? chunk_sums.data() : nullptr;
    const int64_t in_chunk = call.piece < kLossChunk ? call.piece : kLossChunk;
    const Call& first = before ? *before : call;
    const auto of_thread = [&](int64_t begin, int64_t end) { body(first, call, begin, end); };
    const auto of_block = [&](const Call& part, int64_t begin, int64_t end) {
        body(part, call, chunk_at(call.piece, begin), chunk_at(call.piece, end));
    };
    bool finished;
    if (!turned.any())
        finished = parallel_for(chunks, (kChunk + in_chunk - 1) / in_chunk, std::ref(of_thread), go_on);
    else if (const int64_t count = columns_at_once(call, first, turned); count && call.losses)
        finished = run_bands(
            first, turned, count,
            [&](const Call& part, int64_t begin, int64_t end, void* sums) { of_band(part, call, begin, end, sums); },
            go_on);
    else
        finished = run_turned(first, turned, call.piece, of_block, go_on);
    return finished && (!call.losses || add_up(call, go_on));
}

}  // namespace

bool run_step(const Call& call, const GoOn& go_on, const Turned& turned) {
    const Kernels& k = kernels();
    const auto range = [&](const Call& part, int64_t begin, int64_t end) {
        k.step(part, begin, end, turned.outputs != 0);
    };
    if (turned.any()) return run_turned(call, turned, 0, range, go_on);
    // Without noise an element is less work, but waking a thread costs the same.
    const int64_t total = call.batch * call.size, chunk = call.draw == Draw::none ? 2 * kChunk : kChunk;
    if (total <= chunk) {
        range(call, 0, total);
        return true;
    }
    return parallel_for(total, chunk, [&](int64_t begin, int64_t end) { range(call, begin, end); }, go_on);
}

bool run_clipped_step(const Call& call, double low, double high, const GoOn& go_on, const Turned& turned) {
    const Kernels& k = kernels();
    const auto range = [&](const Call& part, int64_t begin, int64_t end) {
        constexpr int64_t kNear = 16384;  // elements that lie in the nearest cache
        for (int64_t at = begin; at < end; at += kNear) {
            const int64_t stop = std::min(at + kNear, end);
            k.step(part, at, stop, true);
            k.clip(part, at, stop, low, high);
        }
    };
    if (turned.any()) return run_turned(call, turned, 0, range, go_on);
    return parallel_for(
        call.batch * call.size, kChunk, [&](int64_t begin, int64_t end) { range(call, begin, end); }, go_on);
}

bool run_walk(const Call& call, const GoOn& go_on) {
    const Kernels& k = kernels();
    const int64_t tiles = kChunk / 256 / call.times;
    const int64_t chunk = 256 * (tiles ? tiles : 1);
    return parallel_for(
        call.batch * call.size, chunk, [&](int64_t begin, int64_t end) { k.walk(call, begin, end); }, go_on);
}

bool run_masks(const Call& call, const Masks& masks, const GoOn& go_on, const Turned& turned) {
    const Kernels& k = kernels();
    const auto range = [&](const Call& part, int64_t begin, int64_t end) {
        Masks of_part = masks;
        of_part.tokens = part.in[kX];
        k.mask(part, of_part, begin, end);
    };
    if (turned.any()) return run_turned(call, turned, 0, range, go_on);
    return parallel_for(
        call.batch * call.size, kChunk, [&](int64_t begin, int64_t end) { k.mask(call, masks, begin, end); }, go_on);
}

bool run_impulses(const Call& call, const Impulses& impulses, const GoOn& go_on) {
    const Kernels& k = kernels();
    const auto body = [&](int64_t begin, int64_t end) { k.impulse(call, impulses, begin, end); };
    return parallel_for(call.batch * call.size, kChunk, body, go_on);
}

bool run_rician(const Call& call, const Rician& rician, const GoOn& go_on) {
    const Kernels& k = kernels();
    const auto body = [&](int64_t begin, int64_t end) { k.rician(call, rician, begin, end); };
    return parallel_for(call.batch * call.size, std::max<int64_t>(256, kChunk / rician.draws), body, go_on);
}

bool run_poisson(const Call& call, const Poisson& poisson, const GoOn& go_on) {
    const Kernels& k = kernels();
    const auto body = [&](int64_t begin, int64_t end) { k.poisson(call, poisson, begin, end); };
    const int64_t chunk = poisson.type == DType::u8 ? 4 * kChunk : kChunk / 8;  // of bytes each one counts all levels
    return parallel_for(call.batch * call.size, chunk, body, go_on);
}

bool run_factors(const Call& call, const Factors& factors, const GoOn& go_on) {
    const Kernels& k = kernels();
    const auto body = [&](int64_t begin, int64_t end) { k.factors(call, factors, begin, end); };
    return parallel_for(factors.places, kChunk / factors.channels, body, go_on);
}

bool run_iso(const Call& call, const Iso& iso, const GoOn& go_on) {
    const Kernels& k = kernels();
    const auto body = [&](int64_t begin, int64_t end) { k.iso(call, iso, begin, end); };
    return parallel_for(call.batch * call.size, kChunk / 8, body, go_on);
}

bool run_lightness(const Call& call, const Iso& iso, const GoOn& go_on) {
    const Kernels& k = kernels();
    return parallel_for(
        call.batch * call.size, kChunk, [&](int64_t begin, int64_t end) { k.lightness(iso, begin, end); }, go_on);
}

bool run_pyramid(const Pyramid& call, const GoOn& go_on) {
    const Kernels& k = kernels();
    const int64_t rows = std::max<int64_t>(1, kChunk / std::max<int64_t>(1, call.width));
    return parallel_for(
        call.planes * call.height, rows, [&](int64_t begin, int64_t end) { k.enlarged(call, begin, end); }, go_on);
}

bool run_loss(const Call& loss, const GoOn& go_on, const Turned& turned) {
    const Kernels& k = kernels();
    return run_chunks(
        loss, nullptr, turned, go_on,
        [&](const Call& part, const Call&, int64_t begin, int64_t end) {
            k.loss(part, begin, end, turned.outputs != 0);
        },
        [&](const Call& part, const Call&, int64_t begin, int64_t end, void* sums) {
            k.turned_loss(part, turned.rows, turned.columns, begin, end, sums);
        });
}

bool run_repeated_loss(Call loss, const GoOn& go_on) {
    std::vector<Field> fields(loss.fields, loss.fields + (loss.field_per_sample ? loss.batch : 1));
    const double* const end = loss.losses + loss.n_losses;
    loss.fields = fields.data();
    for (loss.n_losses = loss.batch; loss.losses < end; loss.losses += loss.batch) {
        if (!run_loss(loss, go_on)) return false;
        for (Field& field : fields) ++field.step;
    }
    return true;
}

bool run_step_and_loss(const Call& step, const Call& loss, const GoOn& go_on, const Turned& turned) {
    const Kernels& k = kernels();
    const auto of_part = [&](const Call& part, Call call) {
        for (int slot = 0; slot < kSlots && turned.any(); ++slot)
            if (call.in[slot]) call.in[slot] = slot == kZ ? part.out[0] : part.in[slot];
        return call;
    };
    return run_chunks(
        loss, &step, turned, go_on,
        [&](const Call& part, const Call& whole, int64_t begin, int64_t end) {
            k.step_and_loss(part, of_part(part, whole), begin, end);
        },
        [&](const Call& part, const Call& whole, int64_t begin, int64_t end, void* sums) {
            k.step(part, begin, end, true);
            k.turned_loss(of_part(part, whole), turned.rows, turned.columns, begin, end, sums);
        });
}

namespace {

constexpr int64_t kPhiloxChunk = 1 << 12;  // blocks: about 20 microseconds

// The float64 normals of legacy.TorchCPU, n of them, a multiple of 16, from twice as many words. The C library computes
// them, as torch's do.
void torch_normals64(const uint64_t* words, double* out, int64_t n) {
    const auto uniform = [words](int64_t i) {
        return static_cast<double>((words[2 * i] << 32 | words[2 * i + 1]) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
    };
    for (int64_t i = 0; i < n; i += i % 16 == 7 ? 9 : 1) {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(i))), theta = 6.283185307179586 * uniform(i + 8);
        out[i] = radius * std::cos(theta);
        out[i + 8] = radius * std::sin(theta);
    }
}

constexpr int64_t kWords = int64_t{1} << 32;

double spread(double mean) { return 12 * std::sqrt(mean) + 30; }

// Sets the table of one level, as operations/byte_tables.py does. ends: where runs of bytes with one `greatest` end,
// all but the last byte's; sums: room.
void tabulate(const PoissonTables& call, int64_t level, const std::vector<int>& ends, std::vector<double>& sums) {
    const double mean = call.mean[level], lowest = std::max(std::floor(mean - spread(mean)), 0.0);
    const double most = static_cast<double>(sums.size() - 1);
    double weight = 1, sum = 1, *last = sums.data();
    *last = sum;
    // Beyond the mean weights shrink, so the sum no longer grows after one below half of its last place.
    for (double k = 1; k <= most && (weight >= sum * 0x1p-54 || lowest + k <= mean); ++k) {
        weight *= mean / (lowest + k);
        *++last = sum += weight;
    }
    Transition& table = call.tables[level];
    int64_t byte = 0, top = 0;  // of the bytes and of the words' upper bits: how many are set
    // Sets bytes up to `to`: so many of the words give them or smaller ones.
    const auto set = [&](int64_t to, int64_t words) {
        std::fill(table.last + byte, table.last + to, static_cast<uint32_t>(std::max<int64_t>(words - 1, 0)));
        const int64_t beyond = words ? ((words - 1) >> 24) + 1 : 0;
        std::fill(table.first + top, table.first + beyond, static_cast<uint8_t>(byte));
        byte = to, top = beyond;
    };
    for (const int to : ends) {
        const double at = std::min(call.greatest[byte] - lowest, static_cast<double>(last - sums.data()));
        set(to, at < 0 ? 0 : static_cast<int64_t>(count_of(sums[static_cast<size_t>(at)] / sum)));
    }
    set(kLevels, kWords);
}

bool run_poisson_tables(const PoissonTables& call, const GoOn& go_on) {
    std::vector<int> ends;
    for (int byte = 1; byte < kLevels; ++byte)
        if (byte == kLevels - 1 || call.greatest[byte] > call.greatest[byte - 1]) ends.push_back(byte);
    const auto levels = [&](int64_t begin, int64_t end) {
        const FloatMode mode;
        std::vector<double> sums(static_cast<size_t>(std::ceil(2 * spread(call.mean[kLevels - 1]))) + 2);
        for (; begin < end; ++begin) tabulate(call, begin, ends, sums);
    };
    const double steps = 256 + 24 * std::sqrt(call.mean[kLevels - 1]);
    return parallel_for(kLevels, std::max<int64_t>(1, static_cast<int64_t>(kChunk / steps)), levels, go_on);
}

bool run_plain_step(const Call& call, const GoOn& go_on) { return run_step(call, go_on); }
bool run_plain_masks(const Call& call, const Masks& masks, const GoOn& go_on) { return run_masks(call, masks, go_on); }
bool run_plain_loss(const Call& call, const GoOn& go_on) { return run_loss(call, go_on); }
bool run_copied_loss(const Call& call, const GoOn& go_on) { return run_repeated_loss(call, go_on); }
bool run_plain_pair(const Call& step, const Call& loss, const GoOn& go_on) {
    return run_step_and_loss(step, loss, go_on);
}

// An operation on one record, or on two.
template <class Record, bool (*run)(const Record&, const GoOn&)>
constexpr Operation on(std::string_view name) {
    static_assert(sizeof(Record) <= kMostBytes);
    return {name, {sizeof(Record)}, [](const void* const* records, const GoOn& go_on) {
                return run(*static_cast<const Record*>(records[0]), go_on);
            }};
}
template <class First, class Second, bool (*run)(const First&, const Second&, const GoOn&)>
constexpr Operation on(std::string_view name) {
    return {name, {sizeof(First), sizeof(Second)}, [](const void* const* records, const GoOn& go_on) {
                return run(*static_cast<const First*>(records[0]), *static_cast<const Second*>(records[1]), go_on);
            }};
}

}  // namespace

bool run_philox(const Philox& call, const GoOn& go_on) {
    const auto blocks = [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const uint32_t *const c = call.counter + 4 * block, *const k = call.key + 2 * block;
            const RoundKeys keys(uint64_t{k[1]} << 32 | k[0]);
            const auto words = philox_rounds<Scalar>({{c[0], c[1], c[2], c[3]}}, keys, 0);
            std::memcpy(call.out + 4 * block, words.w, sizeof words);
        }
    };
    return parallel_for(call.blocks, kPhiloxChunk, blocks, go_on);
}

bool run_torch_normals(const TorchNormals& call, const GoOn&) {
    if (call.type == DType::f64)
        torch_normals64(call.words, static_cast<double*>(call.out), call.n);
    else
        kernels().torch_normals(call.words, static_cast<float*>(call.out), call.n);
    return true;
}

const Operation* find_operation(std::string_view name) {
    static constexpr Operation kOperations[] = {
        on<Call, run_plain_step>("Step"),
        on<Call, run_walk>("Walk"),
        on<Call, run_plain_loss>("Loss"),
        on<Call, run_copied_loss>("RepeatedLoss"),
        on<Call, Call, run_plain_pair>("StepAndLoss"),
        on<Call, Masks, run_plain_masks>("Masks"),
        on<Call, Impulses, run_impulses>("Impulses"),
        on<Call, Rician, run_rician>("Rician"),
        on<Call, Poisson, run_poisson>("Poisson"),
        on<PoissonTables, run_poisson_tables>("PoissonTables"),
        on<Race, run_race>("Race"),
        on<CrossEntropy, run_cross_entropy>("CrossEntropy"),
        on<Pyramid, run_pyramid>("Pyramid"),
        on<Philox, run_philox>("Philox"),
        on<TorchNormals, run_torch_normals>("TorchNormals"),
    };
    for (const Operation& operation : kOperations)
        if (operation.name == name) return &operation;
    return nullptr;
}

}  // namespace nf

// SPDX-License-Identifier: Apache-2.0
// Calls from programs that XLA has compiled. A Call comes as its bytes, without addresses. The program's operands, each
// with a role, give the addresses. interop/jax/calls.py is the other side.
//
// XLA's threads come here several at a time and without Python. The pool (cpu/pool.h) serves one of them and lets the
// others work alone, so that none waits for another.
#include "xla.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "../cpu/float_mode.h"
#include "../run/race.h"
#include "../run/run.h"

namespace nf::xla {
namespace {

// The roles of operands, beyond the slots of a Call's inputs; interop/jax/calls.py names them in this order.
enum Role : int64_t { kRows = kSlots, kFields, kIndex, kStep, kIds, kStart, kWeights, kShard, kLaw, kRoles };
enum Kind : int64_t { kStepCall, kWalkCall, kLossCall, kRaceCall };
// Those of a race, in place of the slots that follow the logits: a number for each sample, and for each row.
enum RaceRole : int64_t { kTemperature = kX + 1, kTopK, kTopP, kWhere, kPosition };

struct Numbers {
    const int64_t* values = nullptr;
    size_t size = 0;
};

Numbers attribute(const Frame& frame, const char* name) {
    const Attributes& all = frame.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
        if (all.names[i]->length != std::strlen(name) || std::memcmp(all.names[i]->text, name, all.names[i]->length))
            continue;
        const auto* array = static_cast<const Array*>(all.values[i]);
        if (all.kinds[i] != kArray || array->type != Type::s64) return {};
        return {static_cast<const int64_t*>(array->data), array->size};
    }
    return {};
}

int64_t size_of(Type type) {
    switch (type) {
        case Type::u8:
            return 1;
        case Type::u16:
        case Type::f16:
        case Type::bf16:
            return 2;
        case Type::s32:
        case Type::u32:
        case Type::f32:
            return 4;
        case Type::s64:
        case Type::u64:
        case Type::f64:
            return 8;
    }
    return 0;
}

// A buffer, or one element's part of a buffer to which vmap has added an axis 0.
struct Operand {
    const char* data = nullptr;
    Type type{};
    int64_t rank = 0, size = 0;

    Operand() = default;
    Operand(const Buffer& buffer, int64_t element, bool several)
        : data(static_cast<const char*>(buffer.data)), type(buffer.type), rank(buffer.rank - several), size(1) {
        for (int64_t axis = several; axis < buffer.rank; ++axis) size *= buffer.dims[axis];
        if (several) data += element * size * size_of(type);
    }

    template <class From, class To>
    const To* copy(std::vector<To>& to) const {
        const auto* from = reinterpret_cast<const From*>(data);
        to.resize(static_cast<size_t>(size));
        std::transform(from, from + size, to.begin(), [](From value) { return static_cast<To>(value); });
        return to.data();
    }

    // Returns numbers of this type: in place, or copied to `kept`. A pair of 32-bit words is eight bytes, because JAX
    // has no longer types by default.
    template <class To>
    const To* as(Type own, std::vector<To>& kept) {
        if (type == own) return reinterpret_cast<const To*>(data);
        switch (type) {
            case Type::s32:
                return copy<int32_t>(kept);
            case Type::s64:
                return copy<int64_t>(kept);
            case Type::u32:
                if (sizeof(To) == 8 && rank == 2) return size /= 2, reinterpret_cast<const To*>(data);
                return copy<uint32_t>(kept);
            case Type::u64:
                return copy<uint64_t>(kept);
            case Type::f32:
                return copy<float>(kept);
            case Type::f64:
                return copy<double>(kept);
            default:
                return nullptr;
        }
    }
};

// One call, for one element of vmap, and its own memory.
class Bound {
  public:
    Bound(const Frame& frame, const Call& call, const Numbers& roles, Numbers several, int64_t element) : call_(call) {
        for (int64_t i = 0; i < frame.arguments.size; ++i)
            of_[roles.values[i]] = Operand(*frame.arguments.buffers[i], element, several.values[i] != 0);
        for (int slot = 0; slot < kSlots; ++slot) call_.in[slot] = of_[slot].data;
        call_.rows = of_[kRows].data;
        if (of_[kShard].data) std::memcpy(&first_, of_[kShard].data, sizeof first_);
        index();
        fields(attribute(frame, "window"));
    }

    // False: see `problem`.
    bool run(const Frame& frame, int64_t kind, int64_t element) {
        if (!good_) return false;
        if (kind == kLossCall) return loss(frame, element);
        if (kind == kRaceCall) return race(frame, element);
        for (int64_t i = 0; i < frame.results.size; ++i)
            call_.out[i] = of_result(*frame.results.buffers[i], call_.type_of(static_cast<int>(i)), element);
        if (kind == kStepCall) return run_step(call_, nullptr);
        const Numbers keep = attribute(frame, "keep");
        call_.keep = keep.values, call_.times = static_cast<int64_t>(keep.size);
        call_.out[0] = static_cast<char*>(frame.results.buffers[0]->data) +
                       element * kept(keep) * call_.batch * call_.size * bytes_of(call_.out_type);
        return run_walk(call_, nullptr);
    }

    const char* problem() const { return problem_; }

  private:
    // Rows beyond the table are its first and its last, as for JAX's own indices. Without an index there is one row.
    void index() {
        index_.assign(1, 0);
        call_.index = index_.data();
        if (!of_[kIndex].data) return;
        index_.clear();
        const int64_t* given = of_[kIndex].as(Type::s64, index_);
        if (!given) return void(fail());
        if (index_.empty()) index_.assign(given, given + of_[kIndex].size);
        // A device with a part of the batch takes that part's rows.
        if (index_.size() > 1) index_.erase(index_.begin(), index_.begin() + first_ * (call_.size / call_.segment));
        for (int64_t& row : index_) row = std::clamp<int64_t>(row, 0, call_.n_rows - 1);
        call_.index = index_.data();
    }

    void fields(const Numbers& window) {
        if (!of_[kFields].data) return;
        fields_.resize(static_cast<size_t>(of_[kFields].size) / sizeof(Field));
        std::memcpy(fields_.data(), of_[kFields].data, fields_.size() * sizeof(Field));
        call_.fields = fields_.data();
        if (Operand& step = of_[kStep]; step.data) {
            const uint32_t* steps = step.as(Type::u32, steps_);
            if (!steps) return void(fail());
            for (size_t i = 0; i < fields_.size(); ++i) fields_[i].step += steps[step.size > 1 ? i : 0];
        }
        if (Operand& ids = of_[kIds]; ids.data) {
            const uint64_t* given = ids.as(Type::u64, ids_);
            if (!given) return void(fail());
            // Ids have 56 bits: the other bits of the word are the stream's.
            ids_.resize(static_cast<size_t>(ids.size));
            std::transform(given, given + ids.size, ids_.begin(), [](uint64_t id) { return id % (uint64_t{1} << 56); });
            const uint64_t* samples = ids_.data();
            const bool for_each_row = fields_.size() == 1 && ids.rank > 0;
            if (for_each_row) fields_[0].samples = samples;
            for (size_t i = 0; i < fields_.size() && !for_each_row; ++i) fields_[i].sample = samples[i];
        }
        if (Operand& start = of_[kStart]; start.data) {
            const int64_t* first = start.as(Type::s64, start_);
            if (!first) return void(fail());
            int64_t element = 0;
            for (size_t axis = 0; axis < window.size; ++axis) element = element * window.values[axis] + first[axis];
            for (Field& field : fields_) field.start = element;
        }
        if (fields_.size() > 1)
            fields_.erase(fields_.begin(), fields_.begin() + first_);
        else if (fields_[0].samples)
            fields_[0].samples += first_;
        else
            fields_[0].sample += static_cast<uint64_t>(first_);
        call_.fields = fields_.data();
    }

    void* of_result(const Buffer& buffer, DType type, int64_t element) const {
        return static_cast<char*>(buffer.data) + element * call_.batch * call_.size * bytes_of(type);
    }

    static int64_t kept(const Numbers& keep) {
        return std::count_if(keep.values, keep.values + keep.size, [](int64_t row) { return row >= 0; });
    }

    // Results are the losses and, if there is a second one, the gradient.
    bool loss(const Frame& frame, int64_t element) {
        if (of_[kWeights].data && !(call_.weights = of_[kWeights].as(Type::f64, weights_))) return fail();
        const Buffer& to = *frame.results.buffers[0];
        losses_.resize(static_cast<size_t>(call_.n_losses));
        call_.losses = losses_.data();
        if (frame.results.size > 1) call_.out[0] = of_result(*frame.results.buffers[1], call_.type, element);
        run_loss(call_, nullptr);
        if (of_[kLaw].data && !densities()) return false;
        const size_t first = static_cast<size_t>(element) * losses_.size();
        if (to.type == Type::f32) std::copy(losses_.begin(), losses_.end(), static_cast<float*>(to.data) + first);
        if (to.type == Type::f64) std::copy(losses_.begin(), losses_.end(), static_cast<double*>(to.data) + first);
        return true;
    }

    // Densities from sums of squares: each row has a factor and a constant.
    bool densities() {
        std::vector<double> kept;
        const double* law = of_[kLaw].as(Type::f64, kept);
        if (!law) return fail();
        const FloatMode mode;
        for (size_t b = 0; b < losses_.size(); ++b) {
            const double* row = law + 2 * index_[index_.size() > 1 ? b : 0];
            losses_[b] = losses_[b] * row[0] + row[1];
        }
        return true;
    }

    // Results are the tokens, and the info whose numbers are in "keep".
    bool race(const Frame& frame, int64_t element) {
        Operand &heat = of_[kTemperature], &k = of_[kTopK], &p = of_[kTopP], &position = of_[kPosition];
        std::vector<double> heats, parts;
        std::vector<int64_t> most, positions;
        Race race{};
        race.rows = position.size, race.of_sample = race.rows / call_.batch;
        race.n = call_.batch * call_.size / race.rows, race.chunks = chunks_of(race.n);
        race.x = call_.in[kX], race.type = call_.in_type[kX];
        race.temperature = heat.as(Type::f64, heats), race.top_k = k.as(Type::s64, most);
        race.top_p = p.as(Type::f64, parts), race.position = position.as(Type::s64, positions);
        race.where = reinterpret_cast<const uint8_t*>(of_[kWhere].data);
        race.fields = call_.fields, race.field_per_sample = call_.field_per_sample, race.each = 1;
        if (!race.temperature || !race.top_k || !race.top_p || !race.position) return fail();
        // A program's numbers are known only now.
        bool good = true;
        for (int64_t s = 0; s < call_.batch; ++s) {
            good &= is_temperature(race.temperature[s]) && race.top_k[s] >= 0;
            good &= race.top_p[s] > 0 && race.top_p[s] <= 1;
        }
        if (!good) return fail("temperature, top_k or top_p is out of range");
        for (int64_t row = 0; row < race.rows; ++row)
            good &= race.position[row] >= 0 && race.position[row] < kPositions;
        if (!good) return fail("positions: expected 0 <= position < 2^31");
        const auto result = [&](int64_t i, int64_t bytes, int fill) {
            char* to = static_cast<char*>(frame.results.buffers[i]->data) + element * race.rows * bytes;
            if (race.where) std::memset(to, fill, static_cast<size_t>(race.rows * bytes));
            return to;
        };
        race.token_is_32 = frame.results.buffers[0]->type == Type::s32;
        race.token = result(0, race.token_is_32 ? 4 : 8, -1);
        const Numbers info = attribute(frame, "keep");
        float** const told[] = {&race.log_prob, &race.log_prob_raw, &race.entropy, &race.margin};
        for (int64_t i = 1; i < frame.results.size; ++i) {
            char* to = result(i, 4, 0);
            if (info.values[i - 1] < 4)
                *told[info.values[i - 1]] = reinterpret_cast<float*>(to);
            else
                race.rank = reinterpret_cast<int32_t*>(to);
        }
        std::vector<uint8_t> bad(static_cast<size_t>(race.rows));
        race.bad = bad.data();
        run_race(race, nullptr);
        const auto found = std::find_if(bad.begin(), bad.end(), [](uint8_t one) { return one != 0; });
        if (found == bad.end()) return true;
        const char* what = *found == 1 ? "a NaN, expected numbers" : "no logit above -inf";
        std::snprintf(row_, sizeof row_, "logits: row %td has %s", found - bad.begin(), what);
        return fail(row_);
    }

    bool fail(const char* what = "an operand of another type") {
        problem_ = what;
        return good_ = false;
    }

    Call call_;
    Operand of_[kRoles];
    std::vector<int64_t> index_, start_;
    std::vector<Field> fields_;
    std::vector<uint32_t> steps_;
    std::vector<uint64_t> ids_;
    std::vector<double> weights_, losses_;
    int32_t first_ = 0;  // the first sample, if a device has a part of the batch
    bool good_ = true;
    const char* problem_ = "";
    char row_[64];
};

Error* error(const Frame& frame, Code code, const char* what) {
    char message[96];
    std::snprintf(message, sizeof message, "noisefuse: %s", what);
    ErrorArgs args{sizeof args, nullptr, message, code};
    return frame.api->create_error(&args);
}

// Returns the version of the XLA that asks: nothing here has changed from version 0.0 on.
Error* tell_version(const Frame& frame) {
    auto& metadata = *reinterpret_cast<MetadataExtension*>(frame.extensions)->metadata;
    const int minor = frame.api ? frame.api->version.minor : 0;
    metadata.version = {sizeof metadata.version, nullptr, 0, minor};
    metadata.traits = 0;
    return nullptr;
}

}  // namespace

Error* run(Frame* frame) {
    if (frame->extensions && frame->extensions->type == kMetadata) return tell_version(*frame);
    const Numbers bytes = attribute(*frame, "call"), roles = attribute(*frame, "roles");
    const Numbers several = attribute(*frame, "several"), repeat = attribute(*frame, "repeat");
    const auto arguments = static_cast<size_t>(frame->arguments.size);
    if (bytes.size * sizeof *bytes.values != sizeof(Call) || roles.size != arguments || several.size != arguments ||
        repeat.size != 2)
        return error(*frame, Code::invalid_argument, "not a call of this version");
    try {
        Call call;
        std::memcpy(&call, bytes.values, sizeof call);
        for (int64_t element = 0; element < repeat.values[0]; ++element)
            if (Bound bound(*frame, call, roles, several, element); !bound.run(*frame, repeat.values[1], element))
                return error(*frame, Code::invalid_argument, bound.problem());
    } catch (const std::bad_alloc&) {
        return error(*frame, Code::resource_exhausted, "no memory");
    }
    return nullptr;
}

}  // namespace nf::xla

// SPDX-License-Identifier: Apache-2.0
// A cursor knows where an element is: in its sample, in the noise field, and among the segments, each of one row.
#pragma once
#include "tile.h"

namespace nf {
namespace {

// A position in the batch: its sample, its place in the field and in the segments that have one row each.
struct Cursor {
    const Call& s;
    int64_t at, sample, in_sample;  // element, its sample, its place in the sample
    int64_t segment, segment_left;  // its segment, the elements left in it
    int64_t element = 0, run_left;  // its place in the field, elements left of the contiguous run
    int64_t runs_left = 0;          // runs that follow one another along the window's last axis, with this one

    Cursor(const Call& call, int64_t begin) : s(call) { move_to(begin); }

    void move_to(int64_t place) {
        at = place;
        sample = at / s.size;
        in_sample = at % s.size;
        segment = at / s.segment;
        segment_left = s.segment - at % s.segment;
        locate();
    }

    const Field& field() const { return s.fields[s.field_per_sample ? sample : 0]; }

    void locate() {
        const Field& f = field();
        if (f.axes == 0) {  // no division: samples may be tiny and many
            element = f.start + in_sample;
            run_left = f.run - in_sample;
            return;
        }
        element = f.start + in_sample % f.run;
        run_left = f.run - in_sample % f.run;
        int64_t rest = in_sample / f.run;
        runs_left = f.shape[f.axes - 1] - rest % f.shape[f.axes - 1];
        for (int64_t axis = f.axes - 1; axis >= 0; --axis) {
            element += rest % f.shape[axis] * f.stride[axis];
            rest /= f.shape[axis];
        }
    }

    // Moves on, by at most uniform_left() elements.
    void advance(int64_t n) {
        at += n;
        in_sample += n;
        element += n;
        run_left -= n;
        segment_left -= n;
        while (segment_left <= 0) {
            ++segment;
            segment_left += s.segment;
        }
        if (in_sample == s.size) {
            ++sample;
            in_sample = 0;
            if (sample < s.batch) locate();
        } else if (run_left == 0) {
            const Field& f = field();
            if (--runs_left <= 0) return locate();
            element += f.stride[f.axes - 1] - f.run;  // no division: runs may be short and many
            run_left = f.run;
        }
    }

    // Returns how many elements from here on share a sample, a run and, where it matters, a step.
    int64_t uniform_left() const { return s.step_by_index && segment_left < run_left ? segment_left : run_left; }
    bool one_step() const { return !s.step_by_index || s.segment >= s.batch * s.size; }
    uint32_t step() const { return field().step + (s.step_by_index ? static_cast<uint32_t>(s.index[segment]) : 0u); }
    uint64_t sample_id() const {
        const Field& f = field();
        const int64_t row = s.field_per_sample ? 0 : sample;
        return f.samples ? f.samples[row] : f.sample + static_cast<uint64_t>(row);
    }
};

}  // namespace
}  // namespace nf

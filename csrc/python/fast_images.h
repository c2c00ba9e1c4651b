// SPDX-License-Identifier: Apache-2.0
// The fast path of noise whose images, words or normals are no rows: impulses, magnitudes, factors and sensors.
#pragma once
#include <cmath>
#include <vector>

#include "fast_call.h"
#include "fast_rows.h"

namespace nf {
namespace {

// An image or a batch, a number for all of it or for each sample, its noise and its output.
class FastImage {
  public:
    Call call{};
    FastReals numbers;
    FastNoise noise;
    FastOutputs outputs;
    const View& x = image_.v;
    int64_t segment = 0;  // the places that have one number

    // The noise has a sample's axes but for `first` and `last` of them, and each place that many elements; or, with
    // `repeats`, it has the elements of a place. False: declined, perhaps with a Python error.
    bool parse(PyObject* image, PyObject* number, PyObject* names, PyObject* batched, PyObject* out, int first,
               int last, bool repeats = false) {
        const bool is_batch = batched != Py_False;
        const int cut = first + last, leads = is_batch + first;
        if (!(torch.is_tensor(image) ? image_.see(image) : image_.read(image)) ||
            (!is_float(x.kind) && !is_level(x.kind)) || x.count == 0 || x.ndim < leads + last + (cut ? 1 : !is_batch) ||
            (x.is_tensor && torch.dual()) || (batched == Py_None ? may_be_image(x) : !PyBool_Check(batched)) ||
            !numbers.parse(number) || numbers.is_tensor > x.is_tensor)
            return false;
        channels = first ? x.shape[is_batch] : last ? x.shape[x.ndim - 1] : 1;
        call.batch = is_batch ? x.shape[0] : 1;
        call.size = repeats ? channels : x.count / call.batch / channels;
        call.segment = call.batch * call.size, call.index = &first_row_, call.n_rows = 1;
        segment = numbers.ndim == 0 ? call.segment : call.size;
        outputs.first = {x.kind, x.is_tensor, x.ndim, x.shape, x.count, nullptr};
        if (!x.is_tensor) outputs.first.descriptor = PyArray_DESCR(array(x.object));
        return (numbers.ndim == 0 || (is_batch && numbers.ndim == 1 && numbers.count == call.batch)) &&
               noise.parse(names, -1, call, x.ndim - is_batch - cut, x.shape + leads) && outputs.take(0, out, call) &&
               !outputs.spoil(x, true);
    }

    int64_t channels = 1;  // of a place

  private:
    int64_t first_row_ = 0;
    FastArray image_;
};

// impulse(x, amount, noise, salt, random, planes, batched, out), or NotImplemented: `augment.impulse` with its own
// values. planes: whether the channels that share a place come first, True, or last, False; None: none do.
PyObject* fast_impulse(PyObject* const* args) {
    FastImage fast;
    Impulses impulses{};
    const bool planes = args[5] == Py_True;
    if (!PyFloat_CheckExact(args[3]) || !PyBool_Check(args[4]) ||
        !fast.parse(args[0], args[1], args[2], args[6], args[7], planes, args[5] == Py_False) ||
        !fast.numbers.within(0, 1))
        return declined();
    const View& x = fast.x;
    impulses.salt = PyFloat_AS_DOUBLE(args[3]);
    if (!(impulses.salt >= 0 && impulses.salt <= 1)) Py_RETURN_NOTIMPLEMENTED;
    if (!fast.outputs.make(fast.call)) return nullptr;
    fast.call.draw = Draw::words;
    impulses.x = x.data, impulses.out = fast.call.out[0];
    impulses.amount = fast.numbers.values.get(), impulses.segment = fast.segment, impulses.channels = fast.channels;
    impulses.high = x.kind == Kind::u8 ? 255 : x.kind == Kind::u16 ? 65535 : 1;
    impulses.type = dtype(x.kind), impulses.random = args[4] == Py_True, impulses.planes = planes;
    const auto run = [&](const Call& words, const GoOn& go_on) { return run_impulses(words, impulses, go_on); };
    return run_plain(fast.call, run) ? fast.outputs.give() : nullptr;
}

// rician(x, std, noise, coils, batched, out), or NotImplemented.
PyObject* fast_rician(PyObject* const* args) {
    FastImage fast;
    Rician rician{};
    int64_t coils;
    if (!take_integer(args[3], coils) || coils < 1 || coils > 32 ||
        !fast.parse(args[0], args[1], args[2], args[4], args[5], 0, 0) ||
        !fast.numbers.within(0, std::numeric_limits<double>::max()))
        return declined();
    const View& x = fast.x;
    rician.draws = 2 * coils;
    rician.apart = fast.noise.whole > 0 ? fast.noise.whole : fast.call.size;
    if (fast.noise.whole < 0 || rician.draws * rician.apart > int64_t{1} << 34) Py_RETURN_NOTIMPLEMENTED;
    if (!fast.outputs.make(fast.call)) return nullptr;
    fast.call.type = x.kind == Kind::f64 ? DType::f64 : DType::f32;
    rician.x = x.data, rician.out = fast.call.out[0];
    rician.std = fast.numbers.values.get(), rician.segment = fast.segment;
    rician.type = dtype(x.kind);
    const auto run = [&](const Call& normals, const GoOn& go_on) { return run_rician(normals, rician, go_on); };
    return run_plain(fast.call, run) ? fast.outputs.give() : nullptr;
}

// photons(x, peak, gamma, noise, light_of, batched, out), or NotImplemented: `augment.poisson`, of bytes with few
// photons. light_of(gamma): what Poisson.light has.
PyObject* fast_photons(PyObject* const* args) {
    FastImage fast;
    Poisson photons{};
    const View& x = fast.x;
    if (!PyFloat_CheckExact(args[2]) || !fast.parse(args[0], args[1], args[3], args[5], args[6], 0, 0))
        return declined();
    const bool bytes = x.kind == Kind::u8;
    photons.gamma = PyFloat_AS_DOUBLE(args[2]);
    if (!(photons.gamma >= 0.1 && photons.gamma <= 10) ||
        !fast.numbers.within(std::numeric_limits<double>::denorm_min(), bytes ? kPhotons : 1e6))
        Py_RETURN_NOTIMPLEMENTED;
    const Reference light(bytes && photons.gamma != 1 ? PyObject_CallOneArg(args[4], args[2]) : Py_NewRef(Py_None));
    if (!light.object) return nullptr;
    if (light.object != Py_None) photons.light = static_cast<const double*>(PyArray_DATA(array(light.object)));
    if (!fast.outputs.make(fast.call)) return nullptr;
    fast.call.draw = Draw::words;
    photons.x = x.data, photons.out = fast.call.out[0];
    photons.peak = fast.numbers.values.get(), photons.segment = fast.segment;
    photons.top = bytes ? 255 : x.kind == Kind::u16 ? 65535 : 1, photons.type = dtype(x.kind);
    const auto run = [&](const Call& words, const GoOn& go_on) { return run_poisson(words, photons, go_on); };
    return run_plain(fast.call, run) ? fast.outputs.give() : nullptr;
}

// factors(x, low, high, noise, each, last), or NotImplemented: an array times factors from low to high, one of its own
// for each place or, without `each`, for all; last: the places have the last axis, whose elements share a factor or,
// without `each`, have their own.
PyObject* fast_factors(PyObject* const* args) {
    FastImage fast;
    Factors factors{};
    factors.repeat = args[4] != Py_True;
    if (!PyFloat_CheckExact(args[1]) || !PyFloat_CheckExact(args[2]) ||
        !fast.parse(args[0], args[1], args[3], Py_False, Py_None, 0, args[5] == Py_True, factors.repeat))
        return declined();
    const View& x = fast.x;
    const double low = PyFloat_AS_DOUBLE(args[1]), range = PyFloat_AS_DOUBLE(args[2]) - low;
    constexpr double kMost = 1e30;  // with which no product is infinite, or NaN if x is not
    if ((x.kind != Kind::f32 && !is_level(x.kind)) || fast.channels > kLevels || fast.noise.whole > 0 ||
        !(std::fabs(low) < kMost && std::fabs(range) < kMost))
        Py_RETURN_NOTIMPLEMENTED;
    if (!fast.outputs.make(fast.call)) return nullptr;
    factors.x = x.data, factors.out = fast.call.out[0];
    factors.places = x.count / fast.channels, factors.channels = fast.channels;
    factors.low = static_cast<float>(low), factors.range = static_cast<float>(range);
    factors.type = dtype(x.kind);
    fast.noise.use_uniform(fast.call);
    const auto run = [&](const GoOn& go_on) { return run_factors(fast.call, factors, go_on); };
    return run_call(x.count > kAtOnce, run) ? fast.outputs.give() : nullptr;
}

// Sets the last words that give 0, 1, .. of a Poisson distribution, as augment/iso.py does, and returns their number.
int64_t set_last_words(double mean, uint32_t* last) {
    const FloatMode mode;
    double sums[kCounts] = {1}, total = 0, weight = mean;
    int n = 1;
    for (; n < kCounts && (n <= mean || weight > total * 0x1p-54); weight *= mean / n) {
        total += weight;
        sums[n++] = 1 + total;
    }
    int64_t count = 0;
    for (int k = 0; k < kCounts; ++k) {
        const double words = k < n ? std::rint(sums[k] / sums[n - 1] * 0x1p32) : 0x1p32;
        count += words < 0x1p32;
        last[k] = static_cast<uint32_t>(static_cast<int64_t>(std::max(words, 1.0)) - 1);
    }
    return count;
}

// iso(frames, turn, intensity, noise, mean_of), or NotImplemented: augment/iso.py, whose `mean_of` gives the mean of a
// frame's Poisson numbers, by the sums of its lightness.
PyObject* fast_iso(PyObject* const* args) {
    FastImage fast;
    Iso iso{};
    const View& x = fast.x;
    if (!PyFloat_CheckExact(args[1]) || !PyFloat_CheckExact(args[2]) ||
        !fast.parse(args[0], args[2], args[3], Py_False, Py_None, 0, 1))
        return declined();
    if (x.is_tensor || (x.kind != Kind::f32 && !is_level(x.kind)) || x.ndim < 3 || fast.channels != 3)
        Py_RETURN_NOTIMPLEMENTED;
    iso.x = x.data, iso.type = dtype(x.kind), iso.top = x.kind == Kind::u8 ? 255 : x.kind == Kind::u16 ? 65535 : 1;
    iso.turn = PyFloat_AS_DOUBLE(args[1]), iso.intensity = PyFloat_AS_DOUBLE(args[2]);
    iso.frame = x.shape[x.ndim - 3] * x.shape[x.ndim - 2];
    const auto frames = static_cast<size_t>(fast.call.size / iso.frame);
    std::vector<uint64_t> memory(frames * (2 + kCounts / 2));
    auto* const last = reinterpret_cast<uint32_t*>(memory.data() + 2 * frames);
    iso.sums = memory.data();
    const auto run = [&](const GoOn& go_on) {
        return iso.last ? run_iso(fast.call, iso, go_on) : run_lightness(fast.call, iso, go_on);
    };
    if (!run_call(x.count > kAtOnce, run)) return nullptr;
    for (size_t f = 0; f < frames; ++f) {
        const Reference mean(
            PyObject_CallFunction(args[4], "KKLO", iso.sums[2 * f], iso.sums[2 * f + 1], iso.frame, args[2]));
        if (!mean.object) return nullptr;
        iso.counts = std::max(iso.counts, set_last_words(PyFloat_AS_DOUBLE(mean.object), last + kCounts * f));
    }
    if (!fast.outputs.make(fast.call)) return nullptr;
    iso.last = last, iso.out = fast.call.out[0];
    return run_call(x.count > kAtOnce, run) ? fast.outputs.give() : nullptr;
}

}  // namespace
}  // namespace nf

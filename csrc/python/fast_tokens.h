// SPDX-License-Identifier: Apache-2.0
// The fast path of the forward process of tokens.
#pragma once
#include "fast_numbers.h"
#include "fast_results.h"

namespace nf {
namespace {

// Calls f with the elements' address, as a pointer to their type.
template <class F>
auto of_tokens(const View& ids, const F& f) {
    switch (ids.kind) {
        case Kind::u8:
            return f(reinterpret_cast<const uint8_t*>(ids.data));
        case Kind::u16:
            return f(reinterpret_cast<const uint16_t*>(ids.data));
        case Kind::i32:
            return f(reinterpret_cast<const int32_t*>(ids.data));
        default:
            return f(reinterpret_cast<const int64_t*>(ids.data));
    }
}

// Whether a token is a number of these tokens' dtype.
bool is_of(const View& ids, int64_t token) {
    return of_tokens(ids, [&](auto* first) {
        return static_cast<int64_t>(static_cast<std::remove_cvref_t<decltype(*first)>>(token)) == token;
    });
}

// Whether all tokens lie in [0, n).
bool all_below(const View& ids, uint64_t n) {
    return of_tokens(ids, [&](auto* first) {
        uint64_t largest = 0;
        for (int64_t i = 0; i < ids.count; ++i)
            largest = std::max(largest, static_cast<uint64_t>(static_cast<int64_t>(first[i])));
        return largest < n;
    });
}

// Takes None, or bools in the shape of an array, of any library that a call with this array takes.
bool take_bools(PyObject* o, const View& of, FastArray& bools) {
    return o == Py_None ||
           (bools.read(o) && bools.v.kind == Kind::b1 && bools.v.same_shape(of) && bools.v.is_tensor <= of.is_tensor);
}

constexpr int kMasks = 14;                         // a stream, as in noise.py
constexpr int64_t kVocabulary = int64_t{1} << 31;  // as MOST of operations/tokens.py

// tokens(ids, p, noise, token, is_vocabulary, where, complement, batched, out), or NotImplemented: (x_t, changed) of
// q_mask, whose mask the token is, or of q_uniform, whose vocabulary it is.
PyObject* fast_tokens(PyObject* const* args) {
    FastArray tokens, where;
    FastReals p;
    FastNoise noise;
    FastOutputs outputs;
    Call call{};
    Masks masks{};
    Turned turned;
    const View& ids = tokens.v;
    const bool batched = args[7] != Py_False, draws = args[4] == Py_True;
    int64_t token;
    if (!PyBool_Check(args[6]) || !PyBool_Check(args[7]) || !tokens.read(args[0], nullptr, &turned) ||
        !is_token(ids.kind) || ids.ndim < 1 + batched || !take_integer(args[3], token) ||
        token < (draws ? 1 : INT64_MIN) || !is_of(ids, token - draws) || !p.parse(args[1]) ||
        p.is_tensor > ids.is_tensor || !p.within(0, 1) || !take_bools(args[5], ids, where))
        return declined();
    constexpr int64_t kMost = 1 << 24;  // tokens: more are checked in pieces, between which Ctrl-C is heard
    if (draws && (token > kVocabulary || ids.count > kMost || !all_below(ids, static_cast<uint64_t>(token))))
        Py_RETURN_NOTIMPLEMENTED;
    const int64_t first_row = 0;
    call.batch = batched ? ids.shape[0] : 1;
    call.size = ids.count / call.batch;
    call.segment = ids.count;
    call.index = &first_row;
    call.n_rows = 1;
    outputs.wanted = 2, outputs.all = true;
    outputs.first = outputs.others = {ids.kind, ids.is_tensor, ids.ndim, ids.shape, ids.count, nullptr};
    outputs.others.kind = Kind::b1, outputs.others.descriptor = boolean;
    if (!ids.is_tensor) outputs.first.descriptor = PyArray_DESCR(array(ids.object));
    masks.segment = p.covers(ids.ndim, ids.shape, ids.count);
    if (!masks.segment || !noise.parse(args[2], kMasks, call, ids.ndim - batched, ids.shape + batched) ||
        !outputs.take(0, args[8], call) || outputs.spoil(ids, !turned.any()) || outputs.spoil(where.v, false))
        Py_RETURN_NOTIMPLEMENTED;
    if (!outputs.make(call)) return nullptr;
    call.draw = Draw::words;
    masks.tokens = call.in[kX] = ids.data;
    masks.out = call.out[0];
    masks.masked = static_cast<uint8_t*>(call.out[1]);
    masks.where = reinterpret_cast<const uint8_t*>(where.v.data);
    masks.p = p.values.get();
    (draws ? masks.vocabulary : masks.mask) = static_cast<uint64_t>(token);
    masks.bytes = bytes_of(ids.kind);
    call.in_type[kX] = masks.bytes == 8   ? DType::f64
                       : masks.bytes == 4 ? DType::f32
                       : masks.bytes == 2 ? DType::u16
                                          : DType::u8;
    masks.complement = args[6] == Py_True;
    const auto run = [&](const Call& words, const GoOn& go_on) { return run_masks(words, masks, go_on, turned); };
    return run_plain(call, run) ? outputs.give() : nullptr;
}

}  // namespace
}  // namespace nf

// SPDX-License-Identifier: Apache-2.0
// The arguments of a custom call from XLA's runtime: the part of its stable C ABI (XLA_FFI_*, version 0) that a handler
// needs. It is declared here so that wheels are built without jaxlib and one wheel runs with all its releases. A test
// compares sizes, offsets and numbers with jaxlib's header. Structures grow only at their ends.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nf::xla {

enum class Type : int32_t {
    s32 = 4,
    s64 = 5,
    u8 = 6,
    u16 = 7,
    u32 = 8,
    u64 = 9,
    f16 = 10,
    f32 = 11,
    f64 = 12,
    bf16 = 16
};

struct Extension {
    size_t struct_size;
    int32_t type;
    Extension* next;
};
constexpr int32_t kMetadata = 1;  // an extension: XLA asks for the handler's version

struct Version {
    size_t struct_size;
    Extension* extensions;
    int major, minor;
};

struct Metadata {
    size_t struct_size;
    Version version;
    uint32_t traits;
};

struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

struct Error;
enum class Code : int32_t { invalid_argument = 3, resource_exhausted = 8 };
struct ErrorArgs {
    size_t struct_size;
    Extension* extensions;
    const char* message;
    Code code;
};

struct Api {
    size_t struct_size;
    Extension* extensions;
    Version version;
    const void* internal;
    Error* (*create_error)(ErrorArgs*);
};

struct Buffer {
    size_t struct_size;
    Extension* extensions;
    Type type;
    void* data;
    int64_t rank;
    int64_t* dims;
};

struct Array {
    Type type;
    size_t size;
    void* data;
};

struct Name {
    const char* text;
    size_t length;
};

constexpr int32_t kBuffer = 1;  // the one kind of arguments and results
struct Buffers {
    size_t struct_size;
    Extension* extensions;
    int64_t size;
    int32_t* kinds;
    Buffer** buffers;
};

constexpr int32_t kArray = 1;  // a kind of attributes
struct Attributes {
    size_t struct_size;
    Extension* extensions;
    int64_t size;
    int32_t* kinds;
    Name** names;
    void** values;
};

struct Frame {
    size_t struct_size;
    Extension* extensions;
    const Api* api;
    void* context;
    int32_t stage;
    Buffers arguments, results;
    Attributes attributes;
};

// The handler of all operations (xla.cpp).
Error* run(Frame* frame);

}  // namespace nf::xla

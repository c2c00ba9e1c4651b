// SPDX-License-Identifier: Apache-2.0
#include "layouts.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../cpu/dispatch.h"

namespace nf {
namespace {

constexpr int64_t kLine = 64;           // bytes of a line of the caches
constexpr int64_t kTile = 8192;         // bytes of a tile, which lies in the nearest cache
static_assert(kTile >= kLine * kLine);  // whole lines of both arrays, of elements of a byte
constexpr int64_t kTilesAtOnce = 32;    // for one thread

// An axis, and how far its elements are apart in both arrays.
struct Axis {
    int64_t length, from, to;
};

// What is copied at once: columns along the axis that is fastest in `to`, rows along one that is fast in `from`. Each
// line of either array is then read or written once, whatever the strides. A third order goes through a buffer.
struct Tiles {
    Axis row{1, 0, 0}, column{1, 0, 0};
    Axis loops[kMostAxes];  // over tiles: the axes that are left, the row's tiles and the column's
    int n_loops = 0, row_loop = -1, column_loop = -1;
    int64_t rows = 1, columns = 1, count = 1;
    bool is_turned = false;
    bool asks = false;     // whether lines of `to` are asked for a tile before: they lie in memory
    bool is_near = false;  // whether `to` lies in the caches, and its lines do not take each other's place there
    bool reads = false;    // the same of `from`

    // from_near: `from` lies in the caches, so any part of its lines may be read, and long runs of `to` be written.
    explicit Tiles(const Copy& copy, bool from_near = false) {
        Axis axes[kMostAxes];
        int n = 0;
        for (int i = 0; i < copy.axes; ++i)
            if (copy.shape[i] != 1) axes[n++] = {copy.shape[i], copy.from_strides[i], copy.to_strides[i]};
        std::sort(axes, axes + n, [](const Axis& a, const Axis& b) { return std::abs(a.to) > std::abs(b.to); });
        n = merged(axes, n);
        if (n == 0) return;
        column = axes[--n];
        if (n > 0) {
            const auto fastest = std::min_element(
                axes, axes + n, [](const Axis& a, const Axis& b) { return std::abs(a.from) < std::abs(b.from); });
            is_turned = std::abs(fastest->from) < std::abs(column.from);
            const auto chosen = is_turned ? fastest : axes + n - 1;
            row = *chosen;
            std::copy(chosen + 1, axes + n--, chosen);
        }
        const int64_t line = kLine / copy.item, tile = kTile / copy.item;
        columns = std::min(column.length, !is_turned ? tile : from_near ? tile / 8 : line);
        rows = std::min(row.length, from_near ? tile / columns : std::max(line, tile / columns));
        columns = std::min(column.length, std::max(columns, tile / rows));
        std::copy(axes, axes + n, loops);
        row_loop = n, column_loop = n + 1, n_loops = n + 2;
        loops[row_loop] = {(row.length + rows - 1) / rows, rows * row.from, rows * row.to};
        loops[column_loop] = {(column.length + columns - 1) / columns, columns * column.from, columns * column.to};
        for (int i = 0; i < n_loops; ++i) count *= loops[i].length;
    }

    // Takes tiles in the order of `from`.
    void follow_from() {
        for (int last = 1; last < n_loops; ++last)
            for (int i = last; i > 0 && std::abs(loops[i - 1].from) < std::abs(loops[i].from); --i) {
                std::swap(loops[i - 1], loops[i]);
                for (int* loop : {&row_loop, &column_loop}) *loop += *loop == i ? -1 : *loop == i - 1;
            }
    }

    struct Tile {
        int64_t from, to;  // bytes
        int64_t rows, columns;
    };

    Tile tile(int64_t number) const {
        Tile made{0, 0, rows, columns};
        for (int i = n_loops - 1; i >= 0; number /= loops[i--].length) {
            const int64_t at = number % loops[i].length;
            made.from += at * loops[i].from, made.to += at * loops[i].to;
            if (i == row_loop) made.rows = std::min(rows, row.length - at * rows);
            if (i == column_loop) made.columns = std::min(columns, column.length - at * columns);
        }
        return made;
    }

    // Makes one axis of two that go on in both arrays. Returns the number of axes.
    static int merged(Axis* axes, int n) {
        int kept = 0;
        for (int i = 0; i < n; ++i) {
            Axis& before = axes[kept ? kept - 1 : 0];
            const Axis& axis = axes[i];
            if (kept && before.from == axis.from * axis.length && before.to == axis.to * axis.length)
                before = {before.length * axis.length, axis.from, axis.to};
            else
                axes[kept++] = axis;
        }
        return kept;
    }
};

template <class T>
T load(const char* at) {
    T element;
    std::memcpy(&element, at, sizeof element);
    return element;
}

// Copies a plane: along its longer axis, whose loop is the inner one.
template <class T>
void copy_plane(const char* from, char* to, const Axis& one, const Axis& other) {
    const Axis &outer = one.length < other.length ? one : other, &inner = one.length < other.length ? other : one;
    const int64_t n = inner.length, from_step = inner.from, to_step = inner.to;  // bytes that are stored might be these
    for (int64_t i = 0; i < outer.length; ++i, from += outer.from, to += outer.to)
        for (int64_t k = 0; k < n; ++k) {
            const T element = load<T>(from + k * from_step);
            std::memcpy(to + k * to_step, &element, sizeof element);
        }
}

// Reads four runs of four elements, `step` apart, and writes their transpose, as four runs `to_step` apart. It reads
// three runs where `inputs` is 3, and writes three where `outputs` is 3.
template <class T>
[[gnu::always_inline]] inline void turn_four(const char* from, int64_t step, int64_t inputs, char* to, int64_t to_step,
                                             int64_t outputs) {
    using Four [[gnu::vector_size(4 * sizeof(T))]] = T;
    const auto a = load<Four>(from), b = load<Four>(from + step), c = load<Four>(from + 2 * step),
               d = inputs > 3 ? load<Four>(from + 3 * step) : c;
    const Four low_ac = __builtin_shufflevector(a, c, 0, 4, 1, 5), high_ac = __builtin_shufflevector(a, c, 2, 6, 3, 7),
               low_bd = __builtin_shufflevector(b, d, 0, 4, 1, 5), high_bd = __builtin_shufflevector(b, d, 2, 6, 3, 7);
    const Four turned[] = {
        __builtin_shufflevector(low_ac, low_bd, 0, 4, 1, 5), __builtin_shufflevector(low_ac, low_bd, 2, 6, 3, 7),
        __builtin_shufflevector(high_ac, high_bd, 0, 4, 1, 5), __builtin_shufflevector(high_ac, high_bd, 2, 6, 3, 7)};
    std::memcpy(to, &turned[0], sizeof(Four));
    std::memcpy(to + to_step, &turned[1], sizeof(Four));
    std::memcpy(to + 2 * to_step, &turned[2], sizeof(Four));
    if (outputs > 3) std::memcpy(to + 3 * to_step, &turned[3], sizeof(Four));
}

// Copies a plane whose rows are next to each other in `from`, and its columns in `to`: four by four, by shuffles. Three
// rows, as of colours, count as four: the fourth element that is read lies in the array and is not written. Three
// columns count as four, too: the fourth element that is written belongs to the next row, which is written later. So
// the last column, or row, is copied without shuffles. A plane of three by three has no four of either.
template <class T>
void turn_few(const char* from, char* to, const Axis& row, const Axis& column) {
    constexpr int64_t size = sizeof(T), three = 3 * size;
    const bool three_in = row.length == 3 && column.from >= three;
    const bool three_out = column.length == 3 && row.to == three && !three_in;
    const int64_t rows = three_in ? 3 : (row.length - three_out) / 4 * 4;
    const int64_t columns = three_out ? 3 : (column.length - three_in) / 4 * 4;
    const auto four = [&](int64_t r, int64_t c) {
        turn_four<T>(from + r * size + c * column.from, column.from, columns - c, to + r * row.to + c * size, row.to,
                     rows - r);
    };
    if (rows < columns)
        for (int64_t r = 0; r < rows; r += 4)
            for (int64_t c = 0; c < columns; c += 4) four(r, c);
    else
        for (int64_t c = 0; c < columns; c += 4)
            for (int64_t r = 0; r < rows; r += 4) four(r, c);
    const auto rest = [&](int64_t r, int64_t c, int64_t n_rows, int64_t n_columns) {
        copy_plane<T>(from + r * size + c * column.from, to + r * row.to + c * size, {n_rows, size, row.to},
                      {n_columns, column.from, size});
    };
    rest(rows, 0, row.length - rows, column.length);
    rest(0, columns, rows, column.length - columns);
}

// The same of eight bytes, two by two: four would fill two registers of some processors.
void turn_pairs(const char* from, char* to, const Axis& row, const Axis& column) {
    using Two [[gnu::vector_size(16)]] = uint64_t;
    constexpr int64_t size = sizeof(uint64_t);
    const int64_t rows = row.length / 2 * 2, columns = column.length / 2 * 2;
    for (int64_t c = 0; c < columns; c += 2)
        for (int64_t r = 0; r < rows; r += 2) {
            const char* const f = from + r * size + c * column.from;
            char* const t = to + r * row.to + c * size;
            const auto a = load<Two>(f), b = load<Two>(f + column.from);
            const Two first = __builtin_shufflevector(a, b, 0, 2), second = __builtin_shufflevector(a, b, 1, 3);
            std::memcpy(t, &first, sizeof first);
            std::memcpy(t + row.to, &second, sizeof second);
        }
    copy_plane<uint64_t>(from + rows * size, to + rows * row.to, {row.length - rows, size, row.to},
                         {column.length, column.from, size});
    copy_plane<uint64_t>(from + columns * column.from, to + columns * size, {rows, size, row.to},
                         {column.length - columns, column.from, size});
}

// The same, of four bytes eight columns at a time, where the processor has such vectors.
template <class T>
void turn_plane(const char* from, char* to, const Axis& row, const Axis& column) {
    constexpr int64_t size = sizeof(T);
    const auto turn = size == 4 && column.from % size == 0 && row.to % size == 0 ? kernels().turn : nullptr;
    const int64_t rows = turn ? row.length / 4 * 4 : 0, columns = rows ? column.length / 8 * 8 : 0;
    if (columns == 0) return turn_few<T>(from, to, row, column);
    turn(reinterpret_cast<const float*>(from), column.from / size, reinterpret_cast<float*>(to), row.to / size, rows,
         columns);
    const auto rest = [&](int64_t r, int64_t c, int64_t n_rows, int64_t n_columns) {
        if (n_rows && n_columns)
            turn_few<T>(from + r * size + c * column.from, to + r * row.to + c * size, {n_rows, size, row.to},
                        {n_columns, column.from, size});
    };
    rest(rows, 0, row.length - rows, column.length);
    rest(0, columns, rows, column.length - columns);
}

// Copies rows x columns elements in the order of `from`: to lines of `to` that stay in the nearest cache, else by a
// buffer, since lines that are far apart may take each other's place there.
template <class T>
void copy_turned(const Tiles& t, const char* from, char* to, int64_t rows, int64_t columns) {
    constexpr int64_t size = sizeof(T);
    alignas(kLine) char buffer[kTile];
    const bool few_rows = rows * size < kLine;
    const bool direct = t.is_near || few_rows || t.column.to != size || t.row.to == columns * size;
    char* const near = direct ? to : buffer;
    const Axis row{rows, t.row.from, direct ? t.row.to : columns * size};
    const Axis column{columns, t.column.from, direct ? t.column.to : size};
    const bool turns = row.from == size && column.to == size && rows > 2 && columns > 2;
    if constexpr (size < 8)
        turns ? turn_plane<T>(from, near, row, column) : copy_plane<T>(from, near, row, column);
    else
        turns ? turn_pairs(from, near, row, column) : copy_plane<T>(from, near, row, column);
    if (direct) return;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * t.row.to, near + r * row.to, static_cast<size_t>(row.to));
}

template <class T>
void copy_straight(const Tiles& t, const char* from, char* to, int64_t rows, int64_t columns) {
    const int64_t size = sizeof(T), run = columns * size;
    if (t.column.from != size || t.column.to != size || run < kLine / 2)
        return copy_plane<T>(from, to, {rows, t.row.from, t.row.to}, {columns, t.column.from, t.column.to});
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * t.row.to, from + r * t.row.from, static_cast<size_t>(run));
}

using CopyTile = void (*)(const Tiles&, const char* from, char* to, int64_t rows, int64_t columns);

CopyTile copy_tile_of(int item, bool is_turned) {
    const auto of = [is_turned]<class T>(T) -> CopyTile { return is_turned ? copy_turned<T> : copy_straight<T>; };
    return item == 1 ? of(uint8_t{}) : item == 2 ? of(uint16_t{}) : item == 4 ? of(uint32_t{}) : of(uint64_t{});
}

void copy_tiles(const Copy& copy, const Tiles& t, int64_t begin, int64_t end) {
    const CopyTile copy_tile = copy_tile_of(copy.item, t.is_turned);
    const auto prefetch = [item = copy.item](const char* first, int64_t runs, int64_t apart, int64_t run, auto write) {
        for (int64_t i = 0; i < runs; ++i)
            for (int64_t byte = 0; byte < run * item; byte += kLine)
                __builtin_prefetch(first + i * apart + byte, write.value, 2);
    };
    Tiles::Tile tile = t.tile(begin);
    for (int64_t number = begin; number < end; ++number) {
        const Tiles::Tile next = t.tile(number + 1);
        const bool goes_on = number + 1 < end;
        if (t.asks && goes_on) prefetch(copy.to + next.to, next.rows, t.row.to, next.columns, std::true_type());
        if (t.reads && goes_on)
            prefetch(copy.from + next.from, next.columns, t.column.from, next.rows, std::false_type());
        copy_tile(t, copy.from + tile.from, copy.to + tile.to, tile.rows, tile.columns);
        tile = next;
    }
}

}  // namespace

bool run_copy(const Copy& copy, const GoOn& go_on) {
    if (std::find(copy.shape, copy.shape + copy.axes, 0) != copy.shape + copy.axes) return true;
    const Tiles tiles(copy);
    const auto body = [&](int64_t begin, int64_t end) { copy_tiles(copy, tiles, begin, end); };
    return parallel_for(tiles.count, kTilesAtOnce, body, go_on);
}

void copy_here(const Copy& copy, bool near, bool from_near) {
    Tiles tiles(copy, from_near && !near);
    tiles.is_near = near;
    tiles.asks = from_near && tiles.is_turned;
    tiles.reads = !from_near && tiles.is_turned;
    if (tiles.reads) tiles.follow_from();
    copy_tiles(copy, tiles, 0, tiles.count);
}

}  // namespace nf

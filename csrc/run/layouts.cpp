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
// line of either array is then read or written once, whatever the strides. A third order goes through a buffer. Where
// such an axis is shorter than a line, the axes that go on in its array belong to it: lines are gathered.
struct Tiles {
    Axis others[kMostAxes], row_axes[kMostAxes], column_axes[kMostAxes];
    Axis row{1, 0, 0}, column{1, 0, 0};  // the first of these axes, or all of them where one array has them in order
    int n_others = 0, n_row_axes = 0, n_column_axes = 0;
    int64_t rows = 1, columns = 1, row_tiles = 1, column_tiles = 1, count = 1;
    bool is_turned = false;
    bool is_gathered = false;  // whether rows or columns have several axes
    bool asks = false;         // whether lines of `to` are asked for a tile before: they lie in memory
    bool is_near = false;      // whether `to` lies in the caches, and its lines do not take each other's place there

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
            Axis* const fastest = nearest(axes, n);
            is_turned = std::abs(fastest->from) < std::abs(column.from);
            Axis* const chosen = is_turned ? fastest : axes + n - 1;
            row = *chosen;
            std::copy(chosen + 1, axes + n--, chosen);
        }
        const int64_t line = kLine / copy.item, tile = kTile / copy.item;
        if (is_turned && row.from == copy.item && column.to == copy.item) {
            n_row_axes = fill_line(row, &Axis::from, line, row_axes, axes, n);
            n_column_axes = fill_line(column, &Axis::to, line, column_axes, axes, n);
            is_gathered = n_row_axes + n_column_axes > 2;
        }
        n_others = n;
        std::copy(axes, axes + n, others);
        columns = std::min(column.length, !is_turned ? tile : from_near ? tile / 8 : line);
        rows = std::min(row.length, from_near ? tile / columns : std::max(line, tile / columns));
        columns = std::min(column.length, std::max(columns, tile / rows));
        row_tiles = (row.length + rows - 1) / rows;
        column_tiles = (column.length + columns - 1) / columns;
        count = row_tiles * column_tiles;
        for (int i = 0; i < n; ++i) count *= others[i].length;
    }

    // Takes the axes that go on in one array after this one, until they fill a line there. Returns their number.
    static int fill_line(Axis& all, int64_t Axis::* side, int64_t line, Axis* taken, Axis* axes, int& n) {
        int count = 1;
        taken[0] = all;
        while (all.length < line) {
            const auto goes_on = [&](const Axis& a) { return a.*side == all.*side * all.length; };
            Axis* const next = std::find_if(axes, axes + n, goes_on);
            if (next == axes + n) break;
            all.length *= next->length;
            taken[count++] = *next;
            std::copy(next + 1, axes + n--, next);
        }
        return count;
    }

    // The axis whose elements are the nearest ones in `from`.
    static Axis* nearest(Axis* axes, int n) {
        return std::min_element(axes, axes + n,
                                [](const Axis& a, const Axis& b) { return std::abs(a.from) < std::abs(b.from); });
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
[[gnu::noinline]] void turn_pairs(const char* from, char* to, const Axis& row, const Axis& column) {
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
[[gnu::noinline]] void turn_plane(const char* from, char* to, const Axis& row, const Axis& column) {
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

using Turn = void (*)(const char* from, char* to, const Axis& row, const Axis& column);

template <class T>
constexpr Turn turn_of() {
    if constexpr (sizeof(T) < 8)
        return turn_plane<T>;
    else
        return turn_pairs;
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
    (turns ? turn_of<T>() : copy_plane<T>)(from, near, row, column);
    if (direct) return;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * t.row.to, near + r * row.to, static_cast<size_t>(row.to));
}

// The places of elements that follow one another along several axes, in one array.
class Walk {
  public:
    Walk(const Axis* axes, int n, int64_t Axis::* side, int64_t first) : axes_(axes), n_(n), side_(side) {
        for (int i = 0; i < n; first /= axes[i++].length) place_ += (at_[i] = first % axes[i].length) * (axes[i].*side);
    }
    int64_t next() {
        const int64_t place = place_;
        for (int i = 0; i < n_; at_[i++] = 0) {
            place_ += axes_[i].*side_;
            if (++at_[i] < axes_[i].length) break;
            place_ -= axes_[i].length * (axes_[i].*side_);
        }
        return place;
    }

  private:
    const Axis* axes_;
    int n_;
    int64_t Axis::* side_;
    int64_t place_ = 0, at_[kMostAxes];
};

// Copies rows x columns elements of several axes: lines of `from` to a buffer, which is turned to lines of `to`.
void copy_gathered(const Tiles& t, int64_t size, Turn turn, const char* from, char* to, int64_t r, int64_t c,
                   int64_t rows, int64_t columns) {
    alignas(kLine) char lines[kTile], turned[kTile];
    const Axis row{rows, size, columns * size}, column{columns, rows * size, size};
    Walk from_lines(t.column_axes, t.n_column_axes, &Axis::from, c);
    for (int64_t i = 0; i < columns; ++i)
        std::memcpy(lines + i * column.from, from + r * size + from_lines.next(), static_cast<size_t>(column.from));
    turn(lines, turned, row, column);
    Walk to_lines(t.row_axes, t.n_row_axes, &Axis::to, r);
    for (int64_t i = 0; i < rows; ++i)
        std::memcpy(to + c * size + to_lines.next(), turned + i * row.to, static_cast<size_t>(row.to));
}

template <class T>
void copy_straight(const Tiles& t, const char* from, char* to, int64_t rows, int64_t columns) {
    const int64_t size = sizeof(T), run = columns * size;
    if (t.column.from != size || t.column.to != size || run < kLine / 2)
        return copy_plane<T>(from, to, {rows, t.row.from, t.row.to}, {columns, t.column.from, t.column.to});
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * t.row.to, from + r * t.row.from, static_cast<size_t>(run));
}

template <class T>
void copy_tiles(const Copy& copy, const Tiles& t, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t c = tile % t.column_tiles * t.columns, r = tile / t.column_tiles % t.row_tiles * t.rows;
        const char* from = copy.from;
        char* to = copy.to;
        int64_t rest = tile / t.column_tiles / t.row_tiles;
        for (int i = t.n_others - 1; i >= 0; rest /= t.others[i--].length) {
            from += rest % t.others[i].length * t.others[i].from;
            to += rest % t.others[i].length * t.others[i].to;
        }
        const int64_t rows = std::min(t.rows, t.row.length - r), columns = std::min(t.columns, t.column.length - c);
        if (t.is_gathered) {
            copy_gathered(t, sizeof(T), turn_of<T>(), from, to, r, c, rows, columns);
            continue;
        }
        from += r * t.row.from + c * t.column.from;
        to += r * t.row.to + c * t.column.to;
        // The next tile has the columns that follow, or these ones of the rows that follow.
        const bool across = c + t.columns < t.column.length;
        const char* const next = to + (across ? t.columns * t.column.to : t.rows * t.row.to - c * t.column.to);
        for (int64_t i = 0; t.asks && i < (across ? rows : std::min(t.rows, t.row.length - r - t.rows)); ++i)
            for (int64_t byte = 0; byte < columns * copy.item; byte += kLine)
                __builtin_prefetch(next + i * t.row.to + byte, 1, 2);
        (t.is_turned ? copy_turned<T> : copy_straight<T>)(t, from, to, rows, columns);
    }
}

using CopyTiles = void (*)(const Copy&, const Tiles&, int64_t begin, int64_t end);

CopyTiles copy_tiles_of(int item) {
    return item == 1   ? copy_tiles<uint8_t>
           : item == 2 ? copy_tiles<uint16_t>
           : item == 4 ? copy_tiles<uint32_t>
                       : copy_tiles<uint64_t>;
}

}  // namespace

bool run_copy(const Copy& copy, const GoOn& go_on) {
    if (std::find(copy.shape, copy.shape + copy.axes, 0) != copy.shape + copy.axes) return true;
    const Tiles tiles(copy);
    const auto body = [&](int64_t begin, int64_t end) { copy_tiles_of(copy.item)(copy, tiles, begin, end); };
    return parallel_for(tiles.count, kTilesAtOnce, body, go_on);
}

void copy_here(const Copy& copy, bool near, bool from_near) {
    Tiles tiles(copy, from_near && !near);
    tiles.is_near = near;
    tiles.asks = from_near && tiles.is_turned;
    copy_tiles_of(copy.item)(copy, tiles, 0, tiles.count);
}

int64_t run_in_order(const Copy& copy) {
    int64_t run = 1;
    for (int axis = copy.axes - 1; axis >= 0; run *= copy.shape[axis--])
        if (copy.shape[axis] > 1 && copy.from_strides[axis] != copy.to_strides[axis]) break;
    return run;
}

const char* part_of(const Copy& whole, int64_t begin, int64_t end, char* to) {
    const auto place = [&](int64_t at) {
        const char* from = whole.from;
        for (int a = whole.axes - 1; a >= 0; at /= whole.shape[a--])
            from += at % whole.shape[a] * whole.from_strides[a];
        return from;
    };
    const char* const first = place(begin);
    const int64_t run = run_in_order(whole);
    if (begin % run + end - begin <= run && reinterpret_cast<uintptr_t>(first) % static_cast<size_t>(whole.item) == 0)
        return first;
    for (int64_t at = begin; at < end;) {
        // A box: a part of one axis, and all of those after it.
        Copy box = whole;
        int axis = whole.axes - 1;
        int64_t inner = 1;
        for (int64_t all; axis > 0 && at % (all = inner * whole.shape[axis]) == 0 && all <= end - at; --axis)
            inner = all;
        std::fill_n(box.shape, axis, 1);
        box.shape[axis] = std::min(whole.shape[axis] - at / inner % whole.shape[axis], (end - at) / inner);
        box.from = place(at), box.to = to + whole.item * (at - begin);
        copy_here(box, false, false);
        at += box.shape[axis] * inner;
    }
    return to;
}

}  // namespace nf

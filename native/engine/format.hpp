// How a weight matrix lies in memory. Knows nothing of instruction sets.
//
// A matrix [rows, cols] is cut into panels of 16 rows (`lanes` = 1) or 64 rows (`lanes` = 4), a
// panel into blocks of columns, a block into steps. One step of one 16-row group is 64 bytes: one
// 32-bit lane for each row, which holds
//   f32   1 column  (block: 64 columns = 64 steps, no scales)
//   bf16  2 columns (block: 64 columns = 32 steps, no scales)
//   q8    4 columns (block: 128 columns = 32 steps after one line of 16 float32 scales)
//         value = scale · (byte − 128)
//   q4    8 columns (block: 64 columns = 8 steps after one line of 16 (bf16 scale, bf16 offset))
//         low nibbles are columns 8j..8j+3 of step j, high nibbles 8j+4..8j+7;
//         value = scale · nibble + offset
// so a kernel reads one sequential stream and never rearranges a byte. With `lanes` = 4 the lines
// of the four 16-row groups follow each other within a step: what a zero activation lets us skip
// is then 256 contiguous bytes. Rows and columns are padded with zeros up to whole panels and blocks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace wkv::engine {

enum class Format : int { f32 = 0, bf16 = 1, q8 = 2, q4 = 3 };

constexpr int kRows = 16;   // rows of one line
constexpr int kLine = 64;   // bytes of one line

// Inlined always: these are compiled into every instruction set's file, and a copy that the linker
// kept from one of them must not reach a CPU without it.
#define WKV_INLINE [[gnu::always_inline]] inline

WKV_INLINE constexpr int block_columns(Format f) { return f == Format::q8 ? 128 : 64; }
WKV_INLINE constexpr int block_steps(Format f) {
  return f == Format::f32 ? 64 : f == Format::bf16 ? 32 : f == Format::q8 ? 32 : 8;
}
WKV_INLINE constexpr int block_header(Format f) { return f == Format::q8 || f == Format::q4 ? 1 : 0; }
WKV_INLINE constexpr int step_columns(Format f) { return block_columns(f) / block_steps(f); }

Format format_from_name(const char* name);  // throws std::invalid_argument
const char* format_name(Format f);

struct Matrix {
  Format format = Format::f32;
  int rows = 0, cols = 0, lanes = 1;
  const uint8_t* data = nullptr;

  WKV_INLINE int panel_rows() const { return kRows * lanes; }
  WKV_INLINE int panels() const { return (rows + panel_rows() - 1) / panel_rows(); }
  WKV_INLINE int blocks() const { return (cols + block_columns(format) - 1) / block_columns(format); }
  WKV_INLINE int padded_cols() const { return blocks() * block_columns(format); }
  WKV_INLINE size_t step_bytes() const { return size_t(lanes) * kLine; }
  WKV_INLINE size_t block_bytes() const {
    return step_bytes() * size_t(block_steps(format) + block_header(format));
  }
  WKV_INLINE size_t panel_bytes() const { return block_bytes() * size_t(blocks()); }
  WKV_INLINE size_t bytes() const { return panel_bytes() * size_t(panels()); }
};

// What one block of a quantized input has beside its values: their scale, and with Σq the sum of the
// block, what the zero points of the weights need.
struct InputHeader {
  int32_t start;     // −128·Σq
  float scale, off;  // off = scale·Σq
};

// What one token's input vector of a product looks like after `quantize`: values | headers, and for
// sparse products the list of the steps that are not zero.
//   f32, bf16: the values, in float32. q8, q4: int8 values with one scale a block.
struct Layout {
  Format format = Format::f32;
  int cols = 0, blocks = 0;
  size_t headers = 0, counts = 0, steps = 0;  // byte offsets
  size_t bytes = 0;                                            // from one token to the next

  Layout() = default;
  Layout(Format f, int cols);
};

// Reads one row as float32 (an embedding), and the whole matrix back.
void unpack_row(const Matrix& m, int row, float* out);

// Writes panels [first, last) of `m` from the float32 rows of `source` (row-major, [rows, cols]).
// `importance` [cols], or null, weights the squared error that q4's scales and offsets minimise.
void pack_panels(const Matrix& m, int first, int last, const float* source, const float* importance,
                 uint8_t* out);

WKV_INLINE float bf16_to_float(uint16_t h) {
  union { uint32_t u; float f; } c{uint32_t(h) << 16};
  return c.f;
}
WKV_INLINE uint16_t float_to_bf16(float f) {  // round to nearest even; NaN stays NaN
  union { float f; uint32_t u; } c{f};
  if ((c.u & 0x7fffffff) > 0x7f800000) return uint16_t((c.u >> 16) | 0x40);
  return uint16_t((c.u + 0x7fff + ((c.u >> 16) & 1)) >> 16);
}

}  // namespace wkv::engine

#include "engine/format.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace wkv::engine {

namespace {
constexpr const char* kNames[] = {"f32", "bf16", "q8", "q4"};

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

Format format_from_name(const char* name) {
  for (int i = 0; i < 4; ++i)
    if (std::strcmp(name, kNames[i]) == 0) return Format(i);
  throw std::invalid_argument(std::string("unknown weight format '") + name + "': choose f32, bf16, q8 or q4");
}

const char* format_name(Format f) { return kNames[int(f)]; }

Layout::Layout(Format f, int columns) : format(f), cols(columns) {
  Matrix m;
  m.format = f;
  m.rows = 1;
  m.cols = columns;
  blocks = m.blocks();
  const size_t element = f == Format::f32 || f == Format::bf16 ? 4 : 1;
  headers = up(element * size_t(m.padded_cols()), kLine);
  counts = headers + sizeof(InputHeader) * size_t(blocks);
  steps = counts + size_t(blocks);
  bytes = up(steps + size_t(blocks) * size_t(block_steps(f)), kLine);
  // An odd number of lines keeps the tokens of a tile out of each other's cache sets.
  if (bytes / kLine % 2 == 0) bytes += kLine;
}

void unpack_row(const Matrix& m, int row, float* out) {
  const int in_panel = row % m.panel_rows(), group = in_panel / kRows, lane = in_panel % kRows;
  const uint8_t* panel = m.data + size_t(row / m.panel_rows()) * m.panel_bytes();
  const int columns = block_columns(m.format), per_step = step_columns(m.format);
  for (int b = 0, c = 0; b < m.blocks(); ++b) {
    const uint8_t* base = panel + size_t(b) * m.block_bytes() + size_t(group) * kLine + size_t(lane) * 4;
    float scale = 1, offset = 0;
    if (m.format == Format::q8) {
      std::memcpy(&scale, base, 4);
    } else if (m.format == Format::q4) {
      uint16_t pair[2];
      std::memcpy(pair, base, 4);
      scale = bf16_to_float(pair[0]);
      offset = bf16_to_float(pair[1]);
    }
    const uint8_t* steps = base + size_t(block_header(m.format)) * m.step_bytes();
    for (int i = 0; i < columns && c < m.cols; ++i, ++c) {
      const uint8_t* lane32 = steps + size_t(i / per_step) * m.step_bytes();
      const int j = i % per_step;
      switch (m.format) {
        case Format::f32: std::memcpy(out + c, lane32, 4); break;
        case Format::bf16: {
          uint16_t h;
          std::memcpy(&h, lane32 + 2 * j, 2);
          out[c] = bf16_to_float(h);
          break;
        }
        case Format::q8: out[c] = scale * float(int(lane32[j]) - 128); break;
        case Format::q4:
          out[c] = scale * float(j < 4 ? lane32[j] & 15 : lane32[j - 4] >> 4) + offset;
          break;
      }
    }
  }
}

}  // namespace wkv::engine

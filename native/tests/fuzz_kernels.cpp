// A coverage-guided fuzzer target: sizes, format, weights and inputs from the fuzzer's bytes, run
// through every kernel that reads them, in buffers with not a byte to spare. Weight bytes are what a
// damaged or hostile file can choose; no value of theirs may reach outside.
//   cmake -S native/tests -B build/tests/fuzz -DCMAKE_CXX_COMPILER=clang++ -DWKV_FUZZ=ON \
//         -DWKV_SANITIZE=address,undefined,fuzzer-no-link
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/dispatch.hpp"

using namespace wkv::engine;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 8) return 0;
  Matrix m;
  m.format = Format(bytes[0] % 4);
  m.lanes = bytes[1] % 2 ? 4 : 1;
  m.rows = 1 + bytes[2] % 80;
  m.cols = 1 + (bytes[3] | bytes[4] << 8) % 300;
  const int tokens = 1 + bytes[5] % 15;
  const auto all = instruction_sets();
  const Kernels& k = kernels(all[bytes[6] % all.size()]);
  bytes += 8;
  size -= 8;
  const auto fill = [&](void* to, size_t n) {
    for (size_t i = 0; i < n; ++i) static_cast<uint8_t*>(to)[i] = size ? bytes[i % size] : 0;
  };
  std::vector<uint8_t> data(m.bytes());
  fill(data.data(), data.size());
  m.data = data.data();
  std::vector<float> x(size_t(tokens) * size_t(m.cols)), row(size_t(m.cols));
  fill(x.data(), x.size() * sizeof(float));
  const Layout l(m.format, m.cols);
  std::vector<uint8_t> q(l.bytes * size_t(tokens));
  for (int t = 0; t < tokens; ++t) k.quantize(x.data() + t * m.cols, l, q.data() + size_t(t) * l.bytes);
  std::vector<float> out(size_t(tokens) * size_t(m.rows));
  k.matmul(m, 0, m.panels(), q.data(), l, tokens, out.data(), size_t(m.rows));
  list_steps(l, q.data());
  k.matvec_sparse(m, 0, m.panels(), q.data(), l, out.data());
  for (int r = 0; r < m.rows; ++r) unpack_row(m, r, row.data());
  std::vector<float> source(size_t(m.rows) * size_t(m.cols));
  fill(source.data(), source.size() * sizeof(float));
  bool finite = true;  // packing is only ever given weights that were checked
  for (float v : source) finite = finite && v - v == 0.0f;
  if (finite) pack_panels(m, 0, m.panels(), source.data(), nullptr, data.data());
  return 0;
}

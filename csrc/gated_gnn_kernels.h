// The inner loops of gated_gnn, one set for each instruction set.
//
// Rows are padded to a multiple of kPanel elements with zeros, so that every loop is over whole
// vectors. Each output element is summed in an order that does not depend on how many rows are
// processed together.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ghn_fast {

constexpr std::size_t kPanel = 16;

constexpr std::size_t padded(std::size_t size) { return (size + kPanel - 1) / kPanel * kPanel; }

// A matrix whose rows are `stride` elements apart.
template <class T>
struct Rows {
  T* data;
  std::size_t stride;

  T* operator[](std::size_t row) const { return data + row * stride; }
  Rows columns(std::size_t first) const { return {data + first, stride}; }
};

// A matrix of `inputs` x `outputs` elements, in panels of kPanel columns that are contiguous:
// element (k, j) is at data[(j / kPanel * inputs + k) * kPanel + j % kPanel].
template <class T>
struct Panels {
  const T* data;
  const T* bias;  // `outputs` elements
  std::size_t inputs;
  std::size_t outputs;  // a multiple of kPanel
};

enum class Start { kBias, kZero, kOutput };

template <class T>
struct GatedGnnKernels {
  // y[r] = x[r] w + start, for each r of rows; then ReLU if asked.
  void (*product)(const std::uint32_t* rows, std::size_t num_rows, Rows<T> x, Panels<T> w,
                  Rows<T> y, Start start, bool relu);
  // sum += the given rows of x.
  void (*add_rows)(const std::uint32_t* rows, std::size_t num_rows, Rows<T> x, std::size_t width,
                   T* sum);
  // sum += table[bytes[u]] x[u] over all u below count.
  void (*add_weighted)(const std::uint8_t* bytes, std::size_t count, const T* table, Rows<T> x,
                       std::size_t width, T* sum);
  // From the gates before their activations (r, z, the state's share of n, the message's share of
  // n; each `width` wide) and the state: the gates r, z and n (in the last place), the new state.
  void (*gru)(const std::uint32_t* rows, std::size_t num_rows, Rows<T> gates, Rows<T> h,
              Rows<T> h_new, std::size_t width);
  // The gradient of the above: that of the gates before their activations, in the same places,
  // from dh, which is left with the direct share of the gradient of h.
  void (*gru_backward)(const std::uint32_t* rows, std::size_t num_rows, Rows<T> gates, Rows<T> h,
                       Rows<T> dh, Rows<T> dgates, std::size_t width);
  // d = 0 where x <= 0.
  void (*mask)(const T* x, T* d, std::size_t width);
  // y[i, j] += the sum over n of a[n, i] b[n, j], for i in [first, last) and j below width.
  void (*outer)(Rows<T> a, Rows<T> b, std::size_t num_rows, std::size_t first, std::size_t last,
                std::size_t width, Rows<T> y);
};

// The kernels for this machine; T is float or double.
template <class T>
const GatedGnnKernels<T>& gated_gnn_kernels();

}  // namespace ghn_fast

// From decoded blocks to parameters in one pass: a block is normalised, repeated along every
// dimension and cut to the parameter's shape (arXiv 2110.13100, sections 3.3 and 3.4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ghn_fast {

// Output channels, input channels, and up to three of space. Tensors of fewer dimensions have
// size 1 in those they lack.
constexpr std::size_t kTileDims = 5;
using TileSizes = std::array<std::int64_t, kTileDims>;

enum class TileRule : std::int64_t {
  kScale = 0,       // scale * p
  kNormWeight = 1,  // 2 sigmoid(p / 2)
  kBias = 2,        // tanh(p / 5)
};

enum class ElementType : std::int64_t { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };

// A strided array; strides are in elements.
template <class T>
struct StridedArray {
  T* data;
  TileSizes sizes;
  TileSizes strides;
};

template <class T>
struct TileJob {
  StridedArray<const T> block;
  StridedArray<void> parameter;
  ElementType type;  // of the parameter
  TileRule rule;
  double scale;
};

// Fills all parameters. They must not overlap. T, of the blocks, is float or double.
// Throws std::invalid_argument, before anything is written, for negative sizes, sizes whose product
// wraps around, parameters of empty blocks, and unknown types and rules.
template <class T>
void tile(const TileJob<T>* jobs, std::size_t num_jobs, int num_threads);

template <class T>
struct TileGradientJob {
  StridedArray<const T> block;  // its values are read where the rule is not kScale
  T* block_gradient;
  TileSizes block_gradient_strides;
  const T* parameter_gradient;  // contiguous; null counts as zeros
  TileSizes parameter_sizes;
  TileRule rule;
  double scale;
  bool add;  // to the gradient of the block that an earlier job has written
};

// Writes the gradients of whole blocks: the sum over their repetitions. Jobs that add must follow
// the one that they add to directly, with blocks of the same address and sizes. Throws as tile().
template <class T>
void tile_backward(const TileGradientJob<T>* jobs, std::size_t num_jobs, int num_threads);

}  // namespace ghn_fast

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "shortest_paths.h"

namespace ghn_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kUnreachable = 255;

// One block a graph. Rows are made from the last node to the first, because a row needs those of
// the node's successors; the threads share the entries of a row.
__global__ void sweep(DeviceDags graphs, int max_distance, std::uint8_t* distances) {
  const std::int64_t first = graphs.node_offsets[blockIdx.x];
  const auto n = static_cast<std::int64_t>(graphs.node_offsets[blockIdx.x + 1] - first);
  std::uint8_t* matrix = distances + graphs.matrix_offsets[blockIdx.x];
  for (std::int64_t u = n - 1; u >= 0; --u) {
    const std::int64_t begin = graphs.successor_offsets[first + u];
    const std::int64_t end = graphs.successor_offsets[first + u + 1];
    for (std::int64_t w = threadIdx.x; w < n; w += blockDim.x) {
      int best = kUnreachable;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t v = graphs.successors[i];
        // Rows hold 0 for "no path", and entry (v, v) is 0 too but is a path of no edges.
        const int beyond = w == v ? 0 : matrix[v * n + w];
        if (w == v || beyond != 0) best = min(best, beyond + 1);
      }
      matrix[u * n + w] = best <= max_distance ? static_cast<std::uint8_t>(best) : 0;
    }
    __syncthreads();
  }
}

}  // namespace

void shortest_paths_cuda(const DeviceDags& graphs, int num_graphs, std::uint8_t max_distance,
                         std::uint8_t* distances, void* stream) {
  if (num_graphs == 0) return;
  sweep<<<num_graphs, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(graphs, max_distance,
                                                                        distances);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("shortest_paths on CUDA: ") + cudaGetErrorString(error));
  }
}

}  // namespace ghn_fast

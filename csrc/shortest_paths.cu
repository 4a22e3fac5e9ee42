#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "shortest_paths.h"

namespace ghn_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnreachable = 255;

// One thread a column of a matrix: the distances of all nodes to one node. Going from the last
// node to the first, a node's distance needs only those of its successors in the same column, which
// the same thread has written. Neighbouring threads write neighbouring bytes.
__global__ void sweep(DeviceDags graphs, int max_distance, std::uint8_t* distances) {
  const std::int64_t first = graphs.node_offsets[blockIdx.x];
  const std::int64_t n = graphs.node_offsets[blockIdx.x + 1] - first;
  const std::int64_t target = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (target >= n) return;
  std::uint8_t* column = distances + graphs.matrix_offsets[blockIdx.x] + target;
  for (std::int64_t u = n - 1; u >= target; --u) column[u * n] = 0;
  for (std::int64_t u = target - 1; u >= 0; --u) {
    const std::int64_t end = graphs.successor_offsets[first + u + 1];
    int best = kUnreachable;
    for (std::int64_t i = graphs.successor_offsets[first + u]; i < end; ++i) {
      const std::int64_t v = graphs.successors[i];
      // No path leads from beyond the target. An edge that does not go forward is no edge, so that
      // nothing outside the column is read, whatever the edges are.
      if (v <= u || v > target) continue;
      const int beyond = column[v * n];
      // 0 is no path, but for the target itself.
      if (v == target || beyond != 0) best = min(best, beyond + 1);
    }
    column[u * n] = best <= max_distance ? static_cast<std::uint8_t>(best) : 0;
  }
}

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("shortest_paths on CUDA: ") + cudaGetErrorString(error));
  }
}

}  // namespace

void shortest_paths_cuda(const DeviceDags& graphs, int num_graphs, std::int64_t most_nodes,
                         std::uint8_t max_distance, std::uint8_t* distances, void* stream) {
  if (num_graphs == 0 || most_nodes == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_graphs),
                        static_cast<unsigned>((most_nodes + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, sweep, graphs, static_cast<int>(max_distance), distances));
}

}  // namespace ghn_fast

// csrc/shortest_paths.cu compiled for the CPU, as a function that ctypes can call.
#include "../../../csrc/shortest_paths.cu"

extern "C" void shortest_paths_on_cpu(const std::int64_t* node_offsets,
                                      const std::int64_t* matrix_offsets,
                                      const std::int64_t* successor_offsets,
                                      const std::int64_t* successors, int num_graphs,
                                      std::int64_t most_nodes, int max_distance,
                                      std::uint8_t* distances) {
  const ghn_fast::DeviceDags graphs{node_offsets, matrix_offsets, successor_offsets, successors};
  ghn_fast::shortest_paths_cuda(graphs, num_graphs, most_nodes,
                                static_cast<std::uint8_t>(max_distance), distances, nullptr);
}

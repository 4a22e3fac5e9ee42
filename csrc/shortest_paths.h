// All-pairs shortest path lengths of directed acyclic graphs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ghn_fast {

// A graph whose nodes are numbered in topological order.
struct Dag {
  std::size_t num_nodes;
  const std::int64_t* edges;  // num_edges pairs (source, target), source < target
  std::size_t num_edges;
};

constexpr std::size_t kMaxNodes = 65535;

// Writes the num_nodes x num_nodes matrix of shortest path lengths: entry (u, v) is the number of
// edges on the shortest path from u to v where 1 <= length <= max_distance, else 0.
// Throws std::invalid_argument for an index out of range, for an edge that does not go forward in
// the order (a cycle or an unsorted graph), and for more than kMaxNodes nodes.
void shortest_paths(const Dag& graph, std::uint8_t max_distance, std::uint8_t* distances);

// The same for many graphs, in parallel over them. Nothing is written if any graph is invalid.
void shortest_paths_batch(const Dag* graphs, std::size_t num_graphs, std::uint8_t max_distance,
                          std::uint8_t* const* distances, int num_threads);

// Graphs in device memory, their nodes counted through the whole batch. All pointers are to the
// device. Edges are not checked: those that do not go forward are left out.
struct DeviceDags {
  const std::int64_t* node_offsets;       // num_graphs + 1
  const std::int64_t* matrix_offsets;     // num_graphs, where each matrix begins in the output
  const std::int64_t* successor_offsets;  // sum of num_nodes + 1
  const std::int64_t* successors;         // numbers within their graph
};

// The same on the current CUDA device; `stream` is a cudaStream_t. The largest graph has
// `most_nodes`, at most kMaxNodes. Returns before it is done; throws std::runtime_error where it
// could not be started. Built only with a CUDA compiler (GHN_FAST_WITH_CUDA).
void shortest_paths_cuda(const DeviceDags& graphs, int num_graphs, std::int64_t most_nodes,
                         std::uint8_t max_distance, std::uint8_t* distances, void* stream);

}  // namespace ghn_fast

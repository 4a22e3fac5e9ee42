#include "shortest_paths.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace ghn_fast {
namespace {

// Unreachable while sweeping; saturating addition keeps it there.
constexpr std::uint8_t kUnreachable = 255;

std::string describe(std::int64_t source, std::int64_t target) {
  return "(" + std::to_string(source) + ", " + std::to_string(target) + ")";
}

void validate(const Dag& graph) {
  if (graph.num_nodes > kMaxNodes) {
    throw std::invalid_argument("a graph of " + std::to_string(graph.num_nodes) +
                                " nodes is too large; at most " + std::to_string(kMaxNodes) +
                                " nodes are supported");
  }
  const auto num_nodes = static_cast<std::int64_t>(graph.num_nodes);
  for (std::size_t e = 0; e < graph.num_edges; ++e) {
    const std::int64_t source = graph.edges[2 * e];
    const std::int64_t target = graph.edges[2 * e + 1];
    if (source < 0 || target < 0 || source >= num_nodes || target >= num_nodes) {
      throw std::invalid_argument("edge " + describe(source, target) + " is out of range for " +
                                  std::to_string(num_nodes) + " nodes");
    }
    if (source >= target) {
      throw std::invalid_argument("edge " + describe(source, target) +
                                  " does not go forward: the nodes are not in topological order, "
                                  "or the graph has a cycle");
    }
  }
}

// Targets grouped by source (compressed sparse rows).
struct Successors {
  std::vector<std::size_t> offsets;
  std::vector<std::uint32_t> targets;

  explicit Successors(const Dag& graph) : offsets(graph.num_nodes + 1), targets(graph.num_edges) {
    for (std::size_t e = 0; e < graph.num_edges; ++e) ++offsets[graph.edges[2 * e] + 1];
    for (std::size_t u = 0; u < graph.num_nodes; ++u) offsets[u + 1] += offsets[u];
    std::vector<std::size_t> next(offsets.begin(), offsets.end() - 1);
    for (std::size_t e = 0; e < graph.num_edges; ++e) {
      targets[next[graph.edges[2 * e]]++] = static_cast<std::uint32_t>(graph.edges[2 * e + 1]);
    }
  }
};

// row[w] = min(row[w], successor[w] + 1), saturating. The compiler turns this into byte-wide
// minimum and saturating addition, 16 to 64 entries an instruction.
void relax(std::uint8_t* __restrict row, const std::uint8_t* __restrict successor,
           std::size_t length) {
  for (std::size_t w = 0; w < length; ++w) {
    const std::uint8_t through = successor[w] == kUnreachable ? kUnreachable : successor[w] + 1;
    row[w] = std::min(row[w], through);
  }
}

// Unreachable, too far, and the node itself become 0.
void finish(std::uint8_t* __restrict row, std::size_t length, std::uint8_t max_distance) {
  for (std::size_t w = 0; w < length; ++w) row[w] = row[w] <= max_distance ? row[w] : 0;
}

void sweep(const Dag& graph, std::uint8_t max_distance, std::uint8_t* distances) {
  const std::size_t n = graph.num_nodes;
  const Successors successors(graph);
  std::memset(distances, kUnreachable, n * n);
  // Successors come later in the order, so their rows are final when u's is computed, and a row
  // holds nothing before its own node.
  for (std::size_t u = n; u-- > 0;) {
    std::uint8_t* row = distances + u * n;
    for (std::size_t i = successors.offsets[u]; i < successors.offsets[u + 1]; ++i) {
      const std::size_t v = successors.targets[i];
      relax(row + v, distances + v * n + v, n - v);
    }
    row[u] = 0;
  }
  finish(distances, n * n, max_distance);
}

}  // namespace

void shortest_paths(const Dag& graph, std::uint8_t max_distance, std::uint8_t* distances) {
  validate(graph);
  sweep(graph, max_distance, distances);
}

void shortest_paths_batch(const Dag* graphs, std::size_t num_graphs, std::uint8_t max_distance,
                          std::uint8_t* const* distances, [[maybe_unused]] int num_threads) {
  for (std::size_t g = 0; g < num_graphs; ++g) validate(graphs[g]);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_threads > 1)
#endif
  for (std::ptrdiff_t g = 0; g < static_cast<std::ptrdiff_t>(num_graphs); ++g) {
    sweep(graphs[g], max_distance, distances[g]);
  }
}

}  // namespace ghn_fast

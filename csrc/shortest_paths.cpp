#include "shortest_paths.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"

namespace ghn_fast {
namespace {

// Less than this is not worth another thread.
constexpr std::size_t kBytesPerThread = 256 << 10;

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

// Targets grouped by source (compressed sparse rows), those of a source in ascending order.
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
    // The first successor's row is copied and has to be the longest.
    for (std::size_t u = 0; u < graph.num_nodes; ++u) {
      if (offsets[u + 1] - offsets[u] < 2) continue;
      std::sort(targets.begin() + offsets[u], targets.begin() + offsets[u + 1]);
    }
  }
};

// GCC makes a copy of a function for each instruction set and picks one when the library loads.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define GHN_FAST_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define GHN_FAST_CLONES
#endif

// One edge more than a distance; 0, which is no path, stays 0, and what is too far becomes it.
std::uint8_t one_further(std::uint8_t distance, std::uint8_t max_distance) {
  return distance == 0 || distance >= max_distance ? 0 : distance + 1;
}

// Rows are computed in whole blocks, so that no loop ends with single bytes.
constexpr std::size_t kBlock = 32;

// row[w] = one further than successor[w].
GHN_FAST_CLONES void extend(std::uint8_t* __restrict row, const std::uint8_t* __restrict successor,
                            std::size_t blocks, std::uint8_t max_distance) {
  for (; blocks > 0; --blocks, row += kBlock, successor += kBlock) {
    for (std::size_t w = 0; w < kBlock; ++w) row[w] = one_further(successor[w], max_distance);
  }
}

// The shorter of a known path and one that is one further than the successor's.
std::uint8_t shorter(std::uint8_t known, std::uint8_t successor, std::uint8_t max_distance) {
  // Less one, no path is the largest byte, and the minimum is the shorter path.
  const std::uint8_t one = known - 1, other = one_further(successor, max_distance) - 1;
  return std::min(one, other) + 1;
}

// row[w] = the shorter of row[w] and one further than successor[w].
GHN_FAST_CLONES void relax(std::uint8_t* __restrict row, const std::uint8_t* __restrict successor,
                           std::size_t blocks, std::uint8_t max_distance) {
  for (; blocks > 0; --blocks, row += kBlock, successor += kBlock) {
    for (std::size_t w = 0; w < kBlock; ++w) {
      row[w] = shorter(row[w], successor[w], max_distance);
    }
  }
}

void sweep(const Dag& graph, std::uint8_t max_distance, std::uint8_t* distances) {
  const std::size_t n = graph.num_nodes;
  const Successors successors(graph);
  // Successors come later in the order, so their rows are final when u's is computed, and a row
  // holds nothing up to its own node: what a row takes from before its successor is zeros.
  for (std::size_t u = n; u-- > 0;) {
    std::uint8_t* row = distances + u * n;
    const std::uint32_t* begin = successors.targets.data() + successors.offsets[u];
    const std::uint32_t* end = successors.targets.data() + successors.offsets[u + 1];
    if (begin == end) {
      std::memset(row, 0, n);
      continue;
    }
    // Blocks end with the row and begin at or before the successor's column, if the row is long
    // enough; where it is not, its first bytes are done one by one.
    const std::size_t most = n / kBlock;
    for (const std::uint32_t* v = begin; v != end; ++v) {
      const std::uint8_t* successor = distances + *v * n;
      const std::size_t blocks = std::min((n - *v + kBlock - 1) / kBlock, most);
      const std::size_t start = n - blocks * kBlock;
      if (v == begin) {
        if (start > 0) std::memset(row, 0, start);
        extend(row + start, successor + start, blocks, max_distance);
      } else {
        relax(row + start, successor + start, blocks, max_distance);
      }
      for (std::size_t w = *v; w < start; ++w) row[w] = shorter(row[w], successor[w], max_distance);
      row[*v] = 1;
    }
  }
}

}  // namespace

void shortest_paths(const Dag& graph, std::uint8_t max_distance, std::uint8_t* distances) {
  validate(graph);
  sweep(graph, max_distance, distances);
}

void shortest_paths_batch(const Dag* graphs, std::size_t num_graphs, std::uint8_t max_distance,
                          std::uint8_t* const* distances, int num_threads) {
  std::size_t bytes = 0;
  for (std::size_t g = 0; g < num_graphs; ++g) {
    validate(graphs[g]);
    bytes += graphs[g].num_nodes * graphs[g].num_nodes;
  }
  const auto threads = static_cast<int>(std::clamp<std::size_t>(
      bytes / kBytesPerThread, 1, static_cast<std::size_t>(std::max(num_threads, 1))));
  parallel_for(num_graphs, threads,
               [&](std::size_t g) { sweep(graphs[g], max_distance, distances[g]); });
}

}  // namespace ghn_fast

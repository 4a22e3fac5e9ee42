#include "dag_levels.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "shortest_paths.h"

namespace ghn_fast {
namespace {

// More graphs in a group make larger matrix products of a level, fewer keep the states of a group
// in cache.
constexpr std::size_t kGraphsPerGroup = 4;

constexpr std::uint64_t kOnes = 0x0101010101010101u;
constexpr std::uint64_t kHighBits = 0x8080808080808080u;

std::uint64_t load_word(const std::uint8_t* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

void validate(const std::uint8_t* distances, std::size_t n, std::size_t graph) {
  std::uint8_t found = 0;
  for (std::size_t u = 0; u < n; ++u) {
    for (std::size_t v = 0; v <= u; ++v) found |= distances[u * n + v];
  }
  if (found != 0) {
    throw std::invalid_argument("distances must be strictly upper triangular: graph " +
                                std::to_string(graph) +
                                " has a cycle, or its nodes are not in topological order");
  }
}

// The nodes at distance 1 after each node.
NeighbourLists list_children(const std::uint8_t* distances, std::size_t n) {
  NeighbourLists lists;
  lists.offsets.reserve(n + 1);
  lists.offsets.push_back(0);
  lists.nodes.reserve(2 * n);
  for (std::size_t u = 0; u < n; ++u) {
    const std::uint8_t* row = distances + u * n;
    std::size_t v = u + 1;
    while (v < n) {
      if (v + 8 <= n) {
        // Only words with a byte 1 in them (a zero byte once the ones are flipped).
        const std::uint64_t word = load_word(row + v) ^ kOnes;
        if (((word - kOnes) & ~word & kHighBits) == 0) {
          v += 8;
          continue;
        }
      }
      const std::size_t stop = std::min(v + 8, n);
      for (; v < stop; ++v) {
        if (row[v] == 1) lists.nodes.push_back(static_cast<std::uint32_t>(v));
      }
    }
    lists.offsets.push_back(static_cast<std::uint32_t>(lists.nodes.size()));
  }
  return lists;
}

NeighbourLists reversed(const NeighbourLists& lists) {
  const std::size_t n = lists.offsets.size() - 1;
  NeighbourLists result{std::vector<std::uint32_t>(n + 1), {}};
  result.nodes.resize(lists.nodes.size());
  for (const std::uint32_t node : lists.nodes) ++result.offsets[node + 1];
  for (std::size_t v = 0; v < n; ++v) result.offsets[v + 1] += result.offsets[v];
  std::vector<std::uint32_t> next(result.offsets.begin(), result.offsets.end() - 1);
  for (std::size_t u = 0; u < n; ++u) {
    for (std::size_t i = 0; i < lists.size(u); ++i) {
      result.nodes[next[lists.begin(u)[i]]++] = static_cast<std::uint32_t>(u);
    }
  }
  return result;
}

std::vector<std::uint16_t> find_levels(const std::uint8_t* distances, std::size_t n) {
  std::vector<std::uint16_t> levels(n, 0);
  for (std::size_t u = 0; u < n; ++u) {
    const std::uint8_t* row = distances + u * n;
    const auto next = static_cast<std::uint16_t>(levels[u] + 1);
    for (std::size_t v = u + 1; v < n; ++v) {
      levels[v] = std::max(levels[v], row[v] != 0 ? next : std::uint16_t{0});
    }
  }
  return levels;
}

// Exchanges the bytes of `high` picked by `mask` with those of `low` that lie `shift` bits higher.
void exchange(std::uint64_t& low, std::uint64_t& high, int shift, std::uint64_t mask) {
  const std::uint64_t difference = ((low >> shift) ^ high) & mask;
  low ^= difference << shift;
  high ^= difference;
}

// Transposes 8 x 8 bytes, each row a little-endian word.
void transpose_words(std::uint64_t* rows) {
  for (int i = 0; i < 4; ++i) exchange(rows[i], rows[i + 4], 32, 0x00000000FFFFFFFFu);
  for (const int i : {0, 1, 4, 5}) exchange(rows[i], rows[i + 2], 16, 0x0000FFFF0000FFFFu);
  for (const int i : {0, 2, 4, 6}) exchange(rows[i], rows[i + 1], 8, 0x00FF00FF00FF00FFu);
}

void transpose_block(const std::uint8_t* from, std::uint8_t* to, std::size_t n, std::size_t u,
                     std::size_t v) {
  if (u + 8 > n || v + 8 > n) {
    for (std::size_t i = u; i < std::min(u + 8, n); ++i) {
      for (std::size_t j = v; j < std::min(v + 8, n); ++j) to[j * n + i] = from[i * n + j];
    }
    return;
  }
  std::uint64_t rows[8];
  for (std::size_t i = 0; i < 8; ++i) rows[i] = load_word(from + (u + i) * n + v);
  transpose_words(rows);
  for (std::size_t j = 0; j < 8; ++j) std::memcpy(to + (v + j) * n + u, &rows[j], 8);
}

std::vector<std::uint8_t> transposed_upper(const std::uint8_t* distances, std::size_t n) {
  std::vector<std::uint8_t> result(n * n);
  for (std::size_t u = 0; u < n; u += 8) {
    for (std::size_t v = u; v < n; v += 8) transpose_block(distances, result.data(), n, u, v);
  }
  return result;
}

void fill(DagView& view, std::size_t graph) {
  if (view.num_nodes > kMaxNodes) {
    throw std::invalid_argument("graph " + std::to_string(graph) + " has more than " +
                                std::to_string(kMaxNodes) + " nodes");
  }
  validate(view.distances, view.num_nodes, graph);
  view.transposed = transposed_upper(view.distances, view.num_nodes);
  view.children = list_children(view.distances, view.num_nodes);
  view.parents = reversed(view.children);
  view.levels = find_levels(view.distances, view.num_nodes);
}

DagGroup make_group(std::vector<const DagView*> graphs) {
  DagGroup group;
  group.graphs = std::move(graphs);
  std::size_t depth = 0, total = 0;
  for (const DagView* graph : group.graphs) {
    for (const std::uint16_t level : graph->levels) depth = std::max(depth, level + std::size_t{1});
    total += graph->num_nodes;
  }
  group.bounds.assign(depth + 1, 0);
  for (const DagView* graph : group.graphs) {
    for (const std::uint16_t level : graph->levels) ++group.bounds[level + 1];
  }
  std::partial_sum(group.bounds.begin(), group.bounds.end(), group.bounds.begin());
  group.nodes.resize(total);
  group.owners.resize(total);
  std::vector<std::size_t> next(group.bounds);
  for (const DagView* graph : group.graphs) {
    for (std::size_t v = 0; v < graph->num_nodes; ++v) {
      const std::size_t place = next[graph->levels[v]]++;
      group.nodes[place] = static_cast<std::uint32_t>(graph->first + v);
      group.owners[place] = graph;
    }
  }
  return group;
}

// Half of the pairs of nodes, and a hundred times the nodes, weigh about the same in a graph of a
// few hundred.
std::size_t work_of(const DagView& graph) { return graph.num_nodes * (graph.num_nodes + 200); }

}  // namespace

std::vector<DagView> view_graphs(const DagBatch& batch, int num_threads) {
  std::vector<DagView> views(batch.num_graphs);
  const std::uint8_t* distances = batch.distances;
  std::size_t first = 0;
  for (std::size_t g = 0; g < batch.num_graphs; ++g) {
    const auto n = static_cast<std::size_t>(batch.num_nodes[g]);
    views[g].first = first;
    views[g].num_nodes = n;
    views[g].distances = distances;
    first += n;
    distances += n * n;
  }
  parallel_for(views.size(), num_threads, [&](std::size_t g) { fill(views[g], g); });
  return views;
}

std::vector<DagGroup> group_graphs(const std::vector<DagView>& graphs, int num_threads) {
  const std::size_t threads = static_cast<std::size_t>(std::max(num_threads, 1));
  const std::size_t per_group =
      std::clamp(graphs.size() / threads, std::size_t{1}, kGraphsPerGroup);
  const std::size_t num_groups = (graphs.size() + per_group - 1) / per_group;
  std::vector<const DagView*> by_work;
  for (const DagView& graph : graphs) by_work.push_back(&graph);
  std::stable_sort(by_work.begin(), by_work.end(),
                   [](const DagView* a, const DagView* b) { return work_of(*a) > work_of(*b); });
  std::vector<std::vector<const DagView*>> members(num_groups);
  std::vector<std::size_t> work(num_groups, 0);
  for (const DagView* graph : by_work) {
    const auto lightest = std::min_element(work.begin(), work.end()) - work.begin();
    members[lightest].push_back(graph);
    work[lightest] += work_of(*graph);
  }
  std::vector<DagGroup> groups;
  for (auto& graphs_of_group : members) groups.push_back(make_group(std::move(graphs_of_group)));
  return groups;
}

}  // namespace ghn_fast

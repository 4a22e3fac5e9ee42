// What message passing needs to know of the graphs of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gated_gnn.h"

namespace ghn_fast {

// Lists of node numbers, one for each node (compressed sparse rows).
struct NeighbourLists {
  std::vector<std::uint32_t> offsets;
  std::vector<std::uint32_t> nodes;

  const std::uint32_t* begin(std::size_t node) const { return nodes.data() + offsets[node]; }
  std::size_t size(std::size_t node) const { return offsets[node + 1] - offsets[node]; }
};

// One graph: its nodes are `first` .. `first + num_nodes - 1` of the batch, numbers in the lists
// are its own (from 0).
struct DagView {
  std::size_t first;
  std::size_t num_nodes;
  const std::uint8_t* distances;         // (u, v)
  std::vector<std::uint8_t> transposed;  // (v, u); only the entries u < v are written
  NeighbourLists children;
  NeighbourLists parents;
  std::vector<std::uint16_t> levels;
};

// Graphs that one thread processes together, a level of all of them at a time. A level holds the
// nodes whose longest chain of heard nodes is equally long, so that they hear only earlier levels.
struct DagGroup {
  std::vector<const DagView*> graphs;
  std::vector<std::uint32_t> nodes;    // numbers in the batch, level after level
  std::vector<const DagView*> owners;  // the graph of each of `nodes`
  std::vector<std::size_t> bounds;     // where each level begins in `nodes`, and the end
};

// Throws std::invalid_argument for a matrix that is not strictly upper triangular and for more
// than 65535 nodes in a graph.
std::vector<DagView> view_graphs(const DagBatch& batch, int num_threads);

// Groups of a few graphs, about equally much work in each, no fewer than there are threads.
std::vector<DagGroup> group_graphs(const std::vector<DagView>& graphs, int num_threads);

}  // namespace ghn_fast

// DeepNets-1M (arXiv 2110.13100): sampling networks, and their graphs, from a few integers.
//
// Sampling, liveness and products equal the Python modules of ghn_fast/nets (sampler, liveness,
// products), which explain the rules; graphs, parameters and multiply-adds are those of the modules
// of ghn_fast/nets/space when they are run.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ghn_fast::deepnets {

// The operations of a cell, in the order of genotypes.OPERATIONS.
enum class Op : std::uint8_t {
  kNone,
  kMaxPool,
  kAvgPool,
  kSkip,
  kSepConv3,
  kSepConv5,
  kDilConv3,
  kDilConv5,
  kConv1,
  kConv7x1,
  kConv3,
  kConv5,
  kConv7,
  kMsa,
  kCse,
};
constexpr int kNumOps = 15;

struct CellEdge {
  Op op;
  std::uint8_t source;
};

// A cell: two edges for each step; the states that are concatenated.
struct CellType {
  std::vector<CellEdge> edges;
  std::vector<std::uint8_t> concat;
};

struct Genotype {
  CellType normal;
  CellType reduce;
  bool has(Op op) const;
};

// The arguments of a network.
struct Net {
  Genotype genotype;
  int cells = 1;
  int width = 32;  // C
  int kernel = 3;  // ks
  int stem_type = 0;
  bool stem_pool = false;
  bool norm = true;
  bool preproc = true;
  int multiplier = 2;  // C_mult
  int fc_layers = 1;
  int fc_dim = 0;
  bool glob_avg = true;

  bool is_vit() const { return genotype.has(Op::kMsa); }
  const CellType& cell(int index) const;
};

// The cells at one and two thirds of the depth halve the resolution.
bool is_reduction(int cell, int cells);

std::int64_t count_parameters(const Net& net, int num_classes, bool large_images);

// Of the forward pass for one image. Throws std::invalid_argument for a network whose output is cut
// off.
std::int64_t count_multiply_adds(const Net& net, int num_classes, bool large_images);

// Which operations carry a signal to the output.
struct CellPlan {
  bool alive = false;  // false: nothing of the cell is computed
  std::vector<bool> operations;
  std::array<bool, 2> inputs{};
  std::vector<std::int16_t> concat;  // -1: zeros stand for a state without a value
};

struct NetPlan {
  bool connected = false;
  std::vector<CellPlan> cells;
  std::array<bool, 2> stem{};
};

NetPlan plan_network(const Genotype& genotype, int cells);

// For each gate and attention that is computed, in order, whether the published graph has it.
std::vector<bool> published_products(const Net& net, const NetPlan& plan);

// Network `index` of a split: "train", "val", "test", "wide", "deep", "dense", "bnfree", "search".
// Throws std::invalid_argument for another name.
Net sample(const std::string& split, std::uint64_t seed, std::uint64_t index, bool large_images);

// The name of a parameter, without text until it is asked for.
struct Name {
  const char* suffix = nullptr;  // nullptr: an operation without parameters
  std::int16_t cell = -1;        // -1: not in a cell
  std::int16_t position = -1;    // of the operation in its cell, or of the classifier's layer

  std::string text() const;
};

struct GraphNode {
  std::uint8_t type;  // index into NODE_TYPES
  std::uint8_t dims;  // 0: no shape
  bool norm;          // a normalisation: its bias belongs to the node
  std::array<std::int32_t, 4> shape;
  Name name;
};

// Nodes in the order in which the network computes them, which is topological.
struct NetGraph {
  std::vector<GraphNode> nodes;
  std::vector<std::int64_t> edges;  // pairs (source, target), sorted
  std::vector<GraphNode> unused;    // parameters that do not reach the output
};

// Throws std::invalid_argument for a network whose output is cut off.
NetGraph build_graph(const Net& net, int num_classes, bool large_images);

// A node in the published files: the numbers of its primitive (its type, or 15 for a pointwise
// convolution), of its cell, and of its name in published_names(). Throws std::out_of_range for a
// network larger than the format provides for.
std::array<std::uint16_t, 3> published_row(const GraphNode& node, int cells);

// Names without their cell, for cells of up to `positions` operations.
std::vector<std::string> published_names(int positions);

// The number of edges on the longest path.
std::int64_t depth(const NetGraph& graph);

}  // namespace ghn_fast::deepnets

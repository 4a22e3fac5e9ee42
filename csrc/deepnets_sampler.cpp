// Sampling, counting and liveness of DeepNets-1M networks; see sampler.py, liveness.py.
#include <algorithm>
#include <stdexcept>

#include "deepnets.h"

namespace ghn_fast::deepnets {
namespace {

constexpr std::int64_t kEvaluationParameters = 2'500'000;
constexpr int kWidthStep = 16;
constexpr int kMinWidth = 32;
constexpr int kReferenceFcDim = 256;

// Philox4x32-10 (Salmon et al., SC 2011).
class Stream {
 public:
  Stream(std::uint64_t seed, std::uint32_t stream, std::uint64_t index)
      : seed_(seed), stream_(stream), index_(index) {}

  int below(int limit) {
    if (used_ == words_.size()) refill();
    return static_cast<int>((static_cast<std::uint64_t>(words_[used_++]) * limit) >> 32);
  }
  bool coin() { return below(2) == 1; }
  bool chance(int numerator, int denominator) { return below(denominator) < numerator; }

 private:
  void refill() {
    auto k0 = static_cast<std::uint32_t>(seed_);
    auto k1 = static_cast<std::uint32_t>(seed_ >> 32);
    std::uint32_t c0 = block_++;
    std::uint32_t c1 = stream_;
    auto c2 = static_cast<std::uint32_t>(index_);
    auto c3 = static_cast<std::uint32_t>(index_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0;
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<std::uint32_t>(p1);
      c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<std::uint32_t>(p0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    words_ = {c0, c1, c2, c3};
    used_ = 0;
  }

  std::uint64_t seed_;
  std::uint32_t stream_;
  std::uint64_t index_;
  std::uint32_t block_ = 0;
  std::array<std::uint32_t, 4> words_{};
  std::size_t used_ = 4;
};

enum class Norm { kMixed, kAlways, kNever };

struct Rules {
  const char* split;
  std::uint32_t stream;
  int min_cells = 4, max_cells = 18;
  std::vector<int> deep_thresholds = {7, 8, 9, 10};
  int min_steps = 1, medium_steps = 2, max_steps = 4;
  std::int64_t max_parameters = 10'000'000;
  Norm norm = Norm::kMixed;
  std::array<int, 2> preproc_coins = {10, 2};
};

std::vector<Rules> make_rules() {
  std::vector<Rules> rules{{"train", 0}, {"val", 1},   {"test", 2},   {"wide", 2},
                           {"deep", 3},  {"dense", 4}, {"bnfree", 5}, {"search", 6}};
  Rules& deep = rules[4];
  deep.min_cells = 10;
  deep.max_cells = 36;
  deep.deep_thresholds = {18};
  deep.max_parameters = 100'000'000;
  Rules& dense = rules[5];
  dense.min_steps = 2;
  dense.medium_steps = 6;
  dense.max_steps = 10;
  dense.max_parameters = 100'000'000;
  rules[6].norm = Norm::kNever;
  Rules& search = rules[7];
  search.min_cells = 6;
  search.max_cells = 20;
  search.deep_thresholds = {10};
  search.medium_steps = 3;
  search.max_steps = 6;
  search.norm = Norm::kAlways;
  search.preproc_coins = {8, 2};
  return rules;
}

const Rules& rules_of(const std::string& split) {
  static const std::vector<Rules> all = make_rules();
  for (const Rules& rules : all) {
    if (split == rules.split) return rules;
  }
  throw std::invalid_argument("unknown split '" + split + "'");
}

// Operations from `first` to `last` - 1 are allowed.
std::vector<CellEdge> sample_edges(Stream& stream, int steps, int first, int last) {
  std::vector<CellEdge> edges;
  edges.reserve(2 * static_cast<std::size_t>(steps));
  for (int states = 2; states < steps + 2; ++states) {
    const int one = stream.below(states);
    int other = stream.below(states - 1);
    other += other >= one;
    for (const int source : {one, other}) {
      const int op = first + stream.below(last - first);
      edges.push_back({static_cast<Op>(op), static_cast<std::uint8_t>(source)});
    }
  }
  return edges;
}

Genotype sample_genotype(Stream& stream, int steps) {
  const bool only_pool = stream.coin();
  const bool drop_concat = steps > 1 && stream.coin();
  const int first = steps > 1 ? 0 : 1;
  Genotype genotype;
  genotype.normal.edges = sample_edges(stream, steps, first, kNumOps);
  genotype.reduce.edges = sample_edges(stream, steps, first, only_pool ? 4 : kNumOps);
  for (int state = 2; state <= steps; ++state) {
    if (!drop_concat || stream.coin()) {
      genotype.normal.concat.push_back(static_cast<std::uint8_t>(state));
    }
  }
  genotype.normal.concat.push_back(static_cast<std::uint8_t>(steps + 1));
  genotype.reduce.concat = genotype.normal.concat;
  return genotype;
}

bool is_convolution(Op op) { return op >= Op::kSepConv3 && op <= Op::kConv7; }

bool is_large(Op op) { return op == Op::kConv5 || op == Op::kConv7; }

template <class Predicate>
int count_ops(const CellType& cell, Predicate predicate) {
  return static_cast<int>(std::count_if(cell.edges.begin(), cell.edges.end(),
                                        [&](const CellEdge& edge) { return predicate(edge.op); }));
}

bool is_refused(const Genotype& genotype) {
  const auto is_gate = [](Op op) { return op == Op::kCse; };
  const bool convolves = count_ops(genotype.normal, is_convolution) > 0 ||
                         count_ops(genotype.reduce, is_convolution) > 0;
  if (!convolves && (genotype.has(Op::kCse) || !genotype.has(Op::kMsa))) return true;
  for (const CellType* cell : {&genotype.normal, &genotype.reduce}) {
    if (count_ops(*cell, is_gate) > 1 || count_ops(*cell, is_large) > 1) return true;
  }
  return false;
}

// Draws a network, false if the split's rules reject it.
bool attempt(Stream& stream, const Rules& rules, Net& net) {
  net.cells = rules.min_cells + stream.below(rules.max_cells - rules.min_cells + 1);
  const int thresholds = static_cast<int>(rules.deep_thresholds.size());
  const bool deep = net.cells > rules.deep_thresholds[stream.below(thresholds)];
  const int max_steps = deep ? rules.medium_steps : rules.max_steps;
  const int steps = rules.min_steps + stream.below(max_steps - rules.min_steps + 1);
  net.genotype = sample_genotype(stream, steps);
  if (is_refused(net.genotype)) return false;
  const bool is_vit = net.is_vit();
  net.multiplier = 1 + stream.below(2);
  net.preproc = true;
  if (steps == 1 && net.multiplier == 1) {
    net.preproc = stream.chance(rules.preproc_coins[is_vit], 10);
  }
  net.glob_avg = is_vit || deep || stream.chance(9, 10);
  net.stem_type = stream.below(2);
  net.kernel = 3 + 2 * stream.below(3);
  net.stem_pool = net.stem_type == 0 && stream.coin();
  const bool may_lack_norm = net.cells <= rules.min_cells + 1 && steps <= rules.medium_steps;
  net.norm =
      rules.norm != Norm::kNever && !(rules.norm == Norm::kMixed && may_lack_norm && stream.coin());
  net.fc_layers = 1 + stream.below(2);
  net.fc_dim = kReferenceFcDim;
  net.width = kMinWidth;
  return std::max(count_parameters(net, 10, false), count_parameters(net, 10, true)) <=
             rules.max_parameters &&
         plan_network(net.genotype, net.cells).connected;
}

void draw_training_widths(Stream& stream, Net& net, bool large_images) {
  const std::int64_t parameters = count_parameters(net, 10, large_images);
  const bool dense =
      count_ops(net.genotype.normal, is_large) > 0 || count_ops(net.genotype.reduce, is_large) > 0;
  int hidden = stream.below(4);
  int widths = 7;
  if (parameters > 800'000 || !net.glob_avg || dense || net.cells > 12) {
    widths = 1;
  } else if (parameters > 400'000 || net.cells > 10) {
    widths = 2;
  } else if (parameters > 200'000 || net.cells > 8) {
    widths = 3;
  }
  net.width = kMinWidth + kWidthStep * stream.below(widths);
  if (widths == 7 && net.width <= 64) hidden = stream.below(8);
  net.fc_dim = 64 * (1 + hidden);
}

void set_evaluation_width(Net& net) {
  net.width = kMinWidth;
  while (count_parameters(net, 10, false) < kEvaluationParameters) net.width += kWidthStep;
}

std::int64_t operation_parameters(Op op, std::int64_t width, bool strided, int per_norm) {
  const std::int64_t square = width * width;
  const std::int64_t norm = per_norm * width;
  const auto depthwise = [&](int kernel) { return kernel * kernel * width + square + norm; };
  switch (op) {
    case Op::kNone:
    case Op::kMaxPool:
    case Op::kAvgPool:
      return 0;
    case Op::kSkip:
      return strided ? square + norm : 0;
    case Op::kSepConv3:
      return 2 * depthwise(3);
    case Op::kSepConv5:
      return 2 * depthwise(5);
    case Op::kDilConv3:
      return depthwise(3);
    case Op::kDilConv5:
      return depthwise(5);
    case Op::kConv1:
      return square + norm;
    case Op::kConv7x1:
      return 14 * square + norm;
    case Op::kConv3:
      return 9 * square + norm;
    case Op::kConv5:
      return 25 * square + norm;
    case Op::kConv7:
      return 49 * square + norm;
    case Op::kMsa:
      return 6 * square + 7 * width;
    case Op::kCse:
      return 2 * width * (width / 2) + width / 2 + width;
  }
  return 0;
}

// The stem's parameters; `channels` is set to those of its output.
std::int64_t stem_parameters(const Net& net, bool large_images, std::int64_t& channels) {
  const std::int64_t width = net.width;
  const std::int64_t first = 3 * net.kernel * net.kernel;
  const int per_norm = net.norm ? 2 : 0;
  channels = width;
  if (net.is_vit()) {
    const int patch = large_images ? 16 : 3;
    const int size = large_images ? 14 : 11;
    return width * (3 * patch * patch + size * size);
  }
  if (net.stem_type == 0) {
    if (net.preproc && !large_images) channels *= 3;
    return channels * (first + per_norm);
  }
  const std::int64_t half = width / 2;
  return half * (first + per_norm) + 9 * width * (half + width) + 2 * width * per_norm;
}

std::vector<bool> valid_states(const CellType& cell, bool first, bool second) {
  std::vector<bool> valid{first, second};
  for (std::size_t i = 0; i < cell.edges.size(); i += 2) {
    bool any = false;
    for (std::size_t j = i; j < i + 2; ++j) {
      any = any || (cell.edges[j].op != Op::kNone && valid[cell.edges[j].source]);
    }
    valid.push_back(any);
  }
  return valid;
}

CellPlan plan_cell(const CellType& cell, const std::vector<bool>& valid) {
  CellPlan plan;
  plan.alive = true;
  std::vector<bool> needed(valid.size(), false);
  for (const std::uint8_t state : cell.concat) {
    needed[state] = valid[state];
    plan.concat.push_back(valid[state] ? static_cast<std::int16_t>(state) : std::int16_t{-1});
  }
  plan.operations.assign(cell.edges.size(), false);
  for (std::size_t i = cell.edges.size(); i-- > 0;) {
    const CellEdge& edge = cell.edges[i];
    const bool alive = needed[2 + i / 2] && edge.op != Op::kNone && valid[edge.source];
    plan.operations[i] = alive;
    if (alive) needed[edge.source] = true;
  }
  plan.inputs = {needed[0], needed[1]};
  return plan;
}

}  // namespace

bool Genotype::has(Op op) const {
  const auto is_op = [op](Op other) { return other == op; };
  return count_ops(normal, is_op) + count_ops(reduce, is_op) > 0;
}

bool is_reduction(int cell, int cells) {
  return cell > 0 && (cell == cells / 3 || cell == 2 * cells / 3);
}

const CellType& Net::cell(int index) const {
  return is_reduction(index, cells) ? genotype.reduce : genotype.normal;
}

std::int64_t count_parameters(const Net& net, int num_classes, bool large_images) {
  const int per_norm = net.norm ? 2 : 0;
  const bool is_vit = net.is_vit();
  std::int64_t before = 0;
  std::int64_t total = stem_parameters(net, large_images, before);
  std::int64_t last = before;
  std::int64_t width = net.width;
  for (int c = 0; c < net.cells; ++c) {
    const bool reduction = is_reduction(c, net.cells);
    if (reduction) width *= net.multiplier;
    if (net.preproc) total += (before + last) * width + 2 * width * per_norm;
    const CellType& cell = net.cell(c);
    for (const CellEdge& edge : cell.edges) {
      const bool strided = reduction && !is_vit && edge.source < 2;
      total += operation_parameters(edge.op, width, strided, per_norm);
    }
    before = last;
    last = static_cast<std::int64_t>(cell.concat.size()) * width;
  }
  if (!net.glob_avg) {
    const int size = (large_images ? 14 : 8) / (net.stem_type == 1 || net.stem_pool ? 2 : 1);
    last *= size * size;
  }
  for (int layer = 1; layer < net.fc_layers; ++layer) {
    total += (last + 1) * net.fc_dim;
    last = net.fc_dim;
  }
  return total + (last + 1) * num_classes;
}

NetPlan plan_network(const Genotype& genotype, int cells) {
  const auto type_of = [&](int cell) -> const CellType& {
    return is_reduction(cell, cells) ? genotype.reduce : genotype.normal;
  };
  NetPlan plan;
  std::vector<std::vector<bool>> valid;
  bool before = true;
  bool last = true;
  for (int c = 0; c < cells; ++c) {
    const CellType& cell = type_of(c);
    valid.push_back(valid_states(cell, before, last));
    before = last;
    last = std::any_of(cell.concat.begin(), cell.concat.end(),
                       [&](std::uint8_t state) { return valid.back()[state]; });
  }
  plan.connected = last;
  if (!plan.connected) return plan;
  // Position c + 2 is the output of cell c, positions 0 and 1 are the stem's.
  std::vector<bool> needed(static_cast<std::size_t>(cells) + 2, false);
  needed.back() = true;
  plan.cells.resize(static_cast<std::size_t>(cells));
  for (std::size_t c = plan.cells.size(); c-- > 0;) {
    if (!needed[c + 2]) continue;
    plan.cells[c] = plan_cell(type_of(static_cast<int>(c)), valid[c]);
    for (const std::size_t i : {0, 1}) {
      if (plan.cells[c].inputs[i]) needed[c + i] = true;
    }
  }
  plan.stem = {needed[0], needed[1]};
  return plan;
}

Net sample(const std::string& split, std::uint64_t seed, std::uint64_t index, bool large_images) {
  const Rules& rules = rules_of(split);
  Stream stream(seed, rules.stream, index);
  Net net;
  while (!attempt(stream, rules, net)) {
  }
  if (split == "train") {
    draw_training_widths(stream, net, large_images);
    return net;
  }
  set_evaluation_width(net);
  if (split == "wide") net.width *= large_images ? 2 : 4;
  return net;
}

}  // namespace ghn_fast::deepnets

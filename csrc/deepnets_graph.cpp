// From the arguments of a DeepNets-1M network to its graph; see graphs.py.
#include <algorithm>
#include <stdexcept>

#include "deepnets.h"

namespace ghn_fast::deepnets {
namespace {

// Indices into NODE_TYPES.
enum Type : std::uint8_t {
  kMaxPool,
  kAvgPool,
  kSepConv,
  kDilConv,
  kConv,
  kMsa,
  kCse,
  kSum,
  kConcat,
  kInput,
  kBias,
  kBatchNorm,
  kLayerNorm,
  kPosEnc,
  kGlobAvg,
};

// The nodes that a value comes from. One node is held as it is, several are in the writer's list.
struct Value {
  std::int32_t begin = 0;
  std::int32_t count = 0;
};

using Shape = std::array<std::int32_t, 4>;

class Writer {
 public:
  Writer(const Net& net, const NetPlan& plan, int num_classes, bool large_images)
      : net_(net),
        plan_(plan),
        num_classes_(num_classes),
        large_(large_images),
        is_vit_(net.is_vit()),
        products_(published_products(net, plan)) {}

  NetGraph write() {
    std::array<Value, 2> states{};
    const Value input = operation(kInput, {});
    std::int32_t channels = stem(input, states);
    std::array<std::int32_t, 2> inputs{channels, channels};
    std::int32_t width = net_.width;
    bool halved = net_.stem_type == 1;
    for (int c = 0; c < net_.cells; ++c) {
      const bool reduction = is_reduction(c, net_.cells);
      if (reduction) width *= net_.multiplier;
      cell_ = static_cast<std::int16_t>(c);
      const Value made = cell(states, inputs, width, reduction, halved);
      states = {states[1], made};
      inputs = {inputs[1], static_cast<std::int32_t>(net_.cell(c).concat.size()) * width};
      halved = reduction;
    }
    cell_ = position_ = -1;
    head(states[1], inputs[1]);
    sort_edges();
    return std::move(graph_);
  }

 private:
  // Nodes.

  Value add(const GraphNode& node, Value sources) {
    if (!alive_) {
      if (node.name.suffix != nullptr) graph_.unused.push_back(node);
      return {};
    }
    const auto number = static_cast<std::int32_t>(graph_.nodes.size());
    graph_.nodes.push_back(node);
    for (std::int32_t i = 0; i < sources.count; ++i) {
      edges_.push_back({source(sources, i), number});
    }
    return {number, 1};
  }

  Value operation(Type type, Value sources) {
    return add({type, 0, false, {}, name(nullptr)}, sources);
  }

  Value pool(Type type, Value value) {
    return add({type, 4, false, {1, 1, 3, 3}, name(nullptr)}, value);
  }

  std::int32_t source(Value value, std::int32_t i) const {
    return value.count == 1 ? value.begin : sources_[static_cast<std::size_t>(value.begin + i)];
  }

  // The nodes of all values, each once, in the order in which they come.
  Value merge(const Value* values, std::size_t count) {
    const std::size_t begin = sources_.size();
    for (std::size_t v = 0; v < count; ++v) {
      for (std::int32_t i = 0; i < values[v].count; ++i) {
        const std::int32_t node = source(values[v], i);
        const auto first = sources_.begin() + static_cast<std::ptrdiff_t>(begin);
        if (std::find(first, sources_.end(), node) == sources_.end()) sources_.push_back(node);
      }
    }
    const std::size_t size = sources_.size() - begin;
    if (size != 1) return {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(size)};
    const Value single{sources_.back(), 1};
    sources_.pop_back();
    return single;
  }

  // A sum or concatenation, which is a node only if it has several inputs.
  Value join(Type type, const Value* values, std::size_t count) {
    const Value merged = merge(values, count);
    return count > 1 && merged.count > 1 ? operation(type, merged) : merged;
  }

  // A gate or attention: a node where it is one in the published graphs.
  Value product(Type type, const Value* values, std::size_t count) {
    const Value merged = merge(values, count);
    if (alive_ && !products_[next_product_++]) return merged;
    return operation(type, merged);
  }

  Name name(const char* suffix) const { return {suffix, cell_, position_}; }

  Value weight(Type type, const char* suffix, const Shape& shape, Value value) {
    return add({type, 4, false, shape, name(suffix)}, value);
  }

  Value conv(const char* suffix, std::int32_t out, std::int32_t in, int kh, int kw, Value value) {
    return weight(kConv, suffix, {out, in, kh, kw}, value);
  }

  Value batch_norm(const char* suffix, std::int32_t channels, Value value) {
    if (!net_.norm) return value;
    return add({kBatchNorm, 1, true, {channels, 0, 0, 0}, name(suffix)}, value);
  }

  Value layer_norm(const char* suffix, std::int32_t channels, Value value) {
    return add({kLayerNorm, 1, true, {channels, 0, 0, 0}, name(suffix)}, value);
  }

  Value matrix(const char* suffix, std::int32_t out, std::int32_t in, Value value) {
    return add({kConv, 2, false, {out, in, 0, 0}, name(suffix)}, value);
  }

  Value linear(const char* weight_suffix, const char* bias_suffix, std::int32_t out,
               std::int32_t in, Value value) {
    value = matrix(weight_suffix, out, in, value);
    return add({kBias, 1, false, {out, 0, 0, 0}, name(bias_suffix)}, value);
  }

  // Parts of the network.

  // Sets the first two states, returns their number of channels.
  std::int32_t stem(Value value, std::array<Value, 2>& states) {
    const std::int32_t width = net_.width;
    const int kernel = net_.kernel;
    if (is_vit_) {
      const int patch = large_ ? 16 : 3;
      const int size = large_ ? 14 : 11;
      const Value image = conv("stem0.weight", width, 3, patch, patch, value);
      const Value table = weight(kPosEnc, "pos_enc.weight", {1, width, size, size}, {});
      const Value both[] = {image, table};
      states[0] = states[1] = join(kSum, both, 2);
      return width;
    }
    if (net_.stem_type == 0) {
      const std::int32_t channels = width * (net_.preproc && !large_ ? 3 : 1);
      value = conv("stem.0.weight", channels, 3, kernel, kernel, value);
      value = batch_norm("stem.1.weight", channels, value);
      if (net_.stem_pool) value = pool(kMaxPool, value);
      states = {value, value};
      return channels;
    }
    value = conv("stem0.0.weight", width / 2, 3, kernel, kernel, value);
    value = batch_norm("stem0.1.weight", width / 2, value);
    value = conv("stem0.3.weight", width, width / 2, 3, 3, value);
    states[0] = batch_norm("stem0.4.weight", width, value);
    alive_ = plan_.stem[1];
    value = conv("stem1.1.weight", width, width, 3, 3, states[0]);
    states[1] = batch_norm("stem1.2.weight", width, value);
    alive_ = true;
    return width;
  }

  Value cell(const std::array<Value, 2>& states, const std::array<std::int32_t, 2>& inputs,
             std::int32_t width, bool reduction, bool halved) {
    const CellType& type = net_.cell(cell_);
    const CellPlan& plan = plan_.cells[static_cast<std::size_t>(cell_)];
    position_ = -1;
    alive_ = plan.inputs[0];
    values_.clear();
    values_.push_back(preprocess0(inputs[0], width, halved && !is_vit_, states[0]));
    alive_ = plan.inputs[1];
    values_.push_back(preprocess1(inputs[1], width, states[1]));
    const bool strided = reduction && !is_vit_;
    Value terms[2];
    std::size_t count = 0;
    for (std::size_t i = 0; i < type.edges.size(); ++i) {
      const CellEdge& edge = type.edges[i];
      alive_ = plan.alive && plan.operations[i];
      position_ = static_cast<std::int16_t>(i);
      const Value made =
          cell_operation(edge.op, width, strided && edge.source < 2, values_[edge.source]);
      if (alive_) terms[count++] = made;
      if (i % 2 == 1) {
        alive_ = true;
        values_.push_back(join(kSum, terms, count));
        count = 0;
      }
    }
    alive_ = true;
    kept_.clear();
    for (const std::int16_t state : plan.concat) {
      if (state >= 0) kept_.push_back(values_[static_cast<std::size_t>(state)]);
    }
    return join(kConcat, kept_.data(), kept_.size());
  }

  Value preprocess0(std::int32_t in, std::int32_t width, bool halve, Value value) {
    if (!net_.preproc) return value;
    if (halve) {
      return factorized_reduce("preprocess0.conv_1.weight", "preprocess0.conv_2.weight",
                               "preprocess0.bn.weight", in, width, value);
    }
    value = conv("preprocess0.op.1.weight", width, in, 1, 1, value);
    return batch_norm("preprocess0.op.2.weight", width, value);
  }

  Value preprocess1(std::int32_t in, std::int32_t width, Value value) {
    if (!net_.preproc) return value;
    value = conv("preprocess1.op.1.weight", width, in, 1, 1, value);
    return batch_norm("preprocess1.op.2.weight", width, value);
  }

  Value factorized_reduce(const char* first, const char* second, const char* norm, std::int32_t in,
                          std::int32_t width, Value value) {
    const Value one = conv(first, width / 2, in, 1, 1, value);
    const Value other = conv(second, width / 2, in, 1, 1, value);
    const Value both[] = {one, other};
    return batch_norm(norm, width, join(kConcat, both, 2));
  }

  Value cell_operation(Op op, std::int32_t width, bool strided, Value value) {
    switch (op) {
      case Op::kNone:
        return {};
      case Op::kMaxPool:
        return pool(kMaxPool, value);
      case Op::kAvgPool:
        return pool(kAvgPool, value);
      case Op::kSkip:
        if (!strided) return value;
        return factorized_reduce("conv_1.weight", "conv_2.weight", "bn.weight", width, width,
                                 value);
      case Op::kSepConv3:
        return separable(width, 3, value);
      case Op::kSepConv5:
        return separable(width, 5, value);
      case Op::kDilConv3:
        return depthwise(kDilConv, width, 3, value);
      case Op::kDilConv5:
        return depthwise(kDilConv, width, 5, value);
      case Op::kConv1:
        return square_conv(width, 1, value);
      case Op::kConv3:
        return square_conv(width, 3, value);
      case Op::kConv5:
        return square_conv(width, 5, value);
      case Op::kConv7:
        return square_conv(width, 7, value);
      case Op::kConv7x1:
        value = conv("op.1.weight", width, width, 1, 7, value);
        value = conv("op.2.weight", width, width, 7, 1, value);
        return batch_norm("op.3.weight", width, value);
      case Op::kMsa:
        return transformer(width, value);
      case Op::kCse:
        return squeeze_excitation(width, value);
    }
    return {};
  }

  Value square_conv(std::int32_t width, int kernel, Value value) {
    value = conv("op.1.weight", width, width, kernel, kernel, value);
    return batch_norm("op.2.weight", width, value);
  }

  Value depthwise(Type type, std::int32_t width, int kernel, Value value) {
    value = weight(type, "op.1.weight", {width, 1, kernel, kernel}, value);
    value = conv("op.2.weight", width, width, 1, 1, value);
    return batch_norm("op.3.weight", width, value);
  }

  Value separable(std::int32_t width, int kernel, Value value) {
    value = depthwise(kSepConv, width, kernel, value);
    value = weight(kSepConv, "op.5.weight", {width, 1, kernel, kernel}, value);
    value = conv("op.6.weight", width, width, 1, 1, value);
    return batch_norm("op.7.weight", width, value);
  }

  Value transformer(std::int32_t width, Value value) {
    Value inner = layer_norm("ln1.weight", width, value);
    inner = matrix("to_qkv.weight", 3 * width, width, inner);
    inner = product(kMsa, &inner, 1);
    inner = linear("to_out.0.weight", "to_out.0.bias", width, width, inner);
    const Value attended[] = {value, inner};
    value = join(kSum, attended, 2);
    inner = layer_norm("ln2.weight", width, value);
    inner = linear("ff.net.0.weight", "ff.net.0.bias", width, width, inner);
    inner = linear("ff.net.3.weight", "ff.net.3.bias", width, width, inner);
    const Value both[] = {value, inner};
    return join(kSum, both, 2);
  }

  Value squeeze_excitation(std::int32_t width, Value value) {
    Value gate = linear("fc1.weight", "fc1.bias", width / 2, width, value);
    gate = linear("fc2.weight", "fc2.bias", width, width / 2, gate);
    const Value both[] = {value, gate};
    return product(kCse, both, 2);
  }

  void head(Value value, std::int32_t channels) {
    if (net_.glob_avg) {
      value = operation(kGlobAvg, value);
    } else {
      const bool pooled = net_.stem_type == 1 || net_.stem_pool;
      const int size = (large_ ? 14 : 8) / (pooled ? 2 : 1);
      channels *= size * size;
    }
    const int layers = std::max(net_.fc_layers, 1);
    for (int layer = 0; layer < layers; ++layer) {
      const std::int32_t out = layer + 1 < layers ? net_.fc_dim : num_classes_;
      position_ = static_cast<std::int16_t>(layer);
      value = linear("weight", "bias", out, channels, value);
      channels = out;
    }
  }

  // Edges come ordered by target; they leave ordered by source, then target.
  void sort_edges() {
    std::vector<std::size_t> place(graph_.nodes.size() + 1, 0);
    for (const auto& edge : edges_) ++place[static_cast<std::size_t>(edge[0]) + 1];
    for (std::size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    graph_.edges.resize(2 * edges_.size());
    for (const auto& edge : edges_) {
      const std::size_t at = 2 * place[static_cast<std::size_t>(edge[0])]++;
      graph_.edges[at] = edge[0];
      graph_.edges[at + 1] = edge[1];
    }
  }

  const Net& net_;
  const NetPlan& plan_;
  const int num_classes_;
  const bool large_;
  const bool is_vit_;
  const std::vector<bool> products_;
  std::size_t next_product_ = 0;
  bool alive_ = true;  // off: only the names of parameters are taken down
  std::int16_t cell_ = -1;
  std::int16_t position_ = -1;
  NetGraph graph_;
  std::vector<std::array<std::int32_t, 2>> edges_;
  std::vector<std::int32_t> sources_;
  std::vector<Value> values_;
  std::vector<Value> kept_;
};

}  // namespace

std::string Name::text() const {
  if (suffix == nullptr) return {};
  if (cell < 0) {
    return position < 0 ? suffix : "classifier." + std::to_string(3 * position) + "." + suffix;
  }
  std::string prefix = "cells." + std::to_string(cell) + ".";
  if (position >= 0) prefix += "_ops." + std::to_string(position) + ".";
  return prefix + suffix;
}

NetGraph build_graph(const Net& net, int num_classes, bool large_images) {
  const NetPlan plan = plan_network(net.genotype, net.cells);
  if (!plan.connected) {
    throw std::invalid_argument("'none' operations cut every path from the input to the output");
  }
  return Writer(net, plan, num_classes, large_images).write();
}

std::int64_t depth(const NetGraph& graph) {
  std::vector<std::int64_t> longest(graph.nodes.size(), 0);
  // Edges are sorted by their sources, and those are in topological order.
  for (std::size_t e = 0; e < graph.edges.size(); e += 2) {
    std::int64_t& target = longest[static_cast<std::size_t>(graph.edges[e + 1])];
    target = std::max(target, longest[static_cast<std::size_t>(graph.edges[e])] + 1);
  }
  return *std::max_element(longest.begin(), longest.end());
}

}  // namespace ghn_fast::deepnets

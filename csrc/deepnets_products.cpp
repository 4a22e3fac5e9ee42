// Which gates and attentions are nodes in the published graphs; see products.py, which explains.
#include <algorithm>

#include "deepnets.h"

namespace ghn_fast::deepnets {
namespace {

// The kinds of autograd nodes that the walk tells apart.
enum class Kind : std::uint8_t { kOther, kWeight, kPosEnc, kHard, kMul, kSoftmax, kClone };

constexpr int kAbsent = -1;

struct AutogradNode {
  Kind kind;
  bool sliced;           // its result is a strided view, which is copied before it is reshaped
  std::int32_t product;  // cell * positions + position, or kAbsent
  std::int32_t inputs;   // where its inputs begin
  std::int32_t num_inputs;
};

class Autograd {
 public:
  Autograd(const Net& net)
      : net_(net),
        is_vit_(net.is_vit()),
        positions_(static_cast<std::int32_t>(
            std::max(net.genotype.normal.edges.size(), net.genotype.reduce.edges.size()))) {}

  // The products that stand where the walk expects them, by cell * positions + position.
  std::vector<bool> recognised() {
    const int output = network();
    std::vector<std::int32_t> order = topological(preorder(output));
    std::vector<bool> kept(static_cast<std::size_t>(net_.cells * positions_), false);
    std::vector<std::int32_t> rest;
    const auto at = [](const std::vector<std::int32_t>& nodes, std::ptrdiff_t place) {
      // Negative places wrap around, as they do in the published walk.
      return nodes[static_cast<std::size_t>(
          place < 0 ? place + static_cast<std::ptrdiff_t>(nodes.size()) : place)];
    };
    for (std::size_t i = 0; i < order.size(); ++i) {
      const bool is_mul = kind(order[i]) == Kind::kMul;
      const bool gate =
          is_mul && kind(at(order, static_cast<std::ptrdiff_t>(i) - 2)) == Kind::kHard;
      if (gate) keep(order[i], kept);
      if (!is_mul || gate) rest.push_back(order[i]);
    }
    for (std::size_t i = 0; i < rest.size(); ++i) {
      if (kind(rest[i]) == Kind::kClone &&
          kind(at(rest, static_cast<std::ptrdiff_t>(i) - 11)) == Kind::kSoftmax) {
        keep(rest[i], kept);
      }
    }
    return kept;
  }

  std::int32_t positions() const { return positions_; }

 private:
  Kind kind(std::int32_t node) const {
    return node < 0 ? Kind::kOther : nodes_[static_cast<std::size_t>(node)].kind;
  }

  void keep(std::int32_t node, std::vector<bool>& kept) const {
    const std::int32_t product = nodes_[static_cast<std::size_t>(node)].product;
    if (product != kAbsent) kept[static_cast<std::size_t>(product)] = true;
  }

  // Building.

  int add(Kind kind, std::initializer_list<int> inputs, std::int32_t product = kAbsent) {
    return add(kind, inputs.begin(), inputs.size(), product);
  }

  int add(Kind kind, const int* inputs, std::size_t count, std::int32_t product = kAbsent) {
    nodes_.push_back({kind, false, product, static_cast<std::int32_t>(inputs_.size()),
                      static_cast<std::int32_t>(count)});
    inputs_.insert(inputs_.end(), inputs, inputs + count);
    return static_cast<int>(nodes_.size()) - 1;
  }

  // `length` operations of no interest, one after another.
  int chain(int x, int length) {
    for (int i = 0; i < length; ++i) x = add(Kind::kOther, {x});
    return x;
  }

  int network() {
    std::array<int, 2> states = stem();
    bool halved = net_.stem_type == 1;
    for (int c = 0; c < net_.cells; ++c) {
      const bool reduction = is_reduction(c, net_.cells);
      states = {states[1], cell(c, states, reduction, halved && !is_vit_)};
      halved = reduction;
    }
    return states[1];
  }

  std::array<int, 2> stem() {
    const int image = add(Kind::kOther, {});
    if (is_vit_) {
      const int encoded = add(Kind::kPosEnc, {image});
      return {encoded, encoded};
    }
    const int first = norm(image);
    if (net_.stem_type == 0) {
      const int pooled = net_.stem_pool ? chain(first, 1) : first;
      return {pooled, pooled};
    }
    // The activation that begins the second part is in place: both parts see it.
    const int second = chain(norm(chain(first, 2)), 1);
    return {second, norm(chain(second, 1))};
  }

  int norm(int x) { return net_.norm ? chain(x, 1) : x; }

  int cell(int c, const std::array<int, 2>& inputs, bool reduction, bool halve) {
    const CellType& type = net_.cell(c);
    states_.assign({preprocess(inputs[0], halve), preprocess(inputs[1], false)});
    for (std::size_t i = 0; i < type.edges.size(); i += 2) {
      int terms[2];
      std::size_t count = 0;
      for (std::size_t j = i; j < i + 2; ++j) {
        const CellEdge& edge = type.edges[j];
        const bool strided = reduction && edge.source < 2 && !is_vit_;
        const std::int32_t product = c * positions_ + static_cast<std::int32_t>(j);
        const int made = operation(edge.op, states_[edge.source], product, strided);
        if (made != kAbsent) terms[count++] = made;
      }
      const int sum = count == 2 ? add(Kind::kOther, terms, 2) : count == 1 ? terms[0] : kAbsent;
      states_.push_back(sum);
    }
    return concat(type);
  }

  int concat(const CellType& type) {
    parts_.clear();
    for (const std::uint8_t state : type.concat) parts_.push_back(states_[state]);
    const auto known =
        std::find_if(parts_.begin(), parts_.end(), [](int part) { return part != kAbsent; });
    if (known == parts_.end()) return kAbsent;
    const int zeros = add(Kind::kMul, {*known});
    std::replace(parts_.begin(), parts_.end(), kAbsent, zeros);
    return add(Kind::kOther, parts_.data(), parts_.size());
  }

  int preprocess(int x, bool halve) {
    if (x == kAbsent) return kAbsent;
    if (!net_.preproc) return halve ? sliced(x) : x;
    return halve ? reduce(x) : norm(chain(x, 2));
  }

  int reduce(int x) {
    const int active = chain(x, 1);
    const int shifted = chain(active, 3);
    const int plain = chain(active, 1);
    return norm(add(Kind::kOther, {plain, shifted}));
  }

  int sliced(int x) {
    const int result = chain(x, 2);
    nodes_.back().sliced = true;
    return result;
  }

  int reshaped(int x) {
    if (!nodes_[static_cast<std::size_t>(x)].sliced) return chain(x, 1);
    return chain(add(Kind::kClone, {x}), 1);
  }

  int linear(int x) { return add(Kind::kOther, {add(Kind::kWeight, {x})}); }

  int token_linear(int x) { return chain(linear(chain(x, 1)), 1); }

  int operation(Op op, int x, std::int32_t product, bool strided) {
    if (x == kAbsent) return kAbsent;
    switch (op) {
      case Op::kNone:
        return kAbsent;
      case Op::kSkip:
        return strided ? reduce(x) : x;
      case Op::kCse:
        return gate(x, product, strided);
      case Op::kMsa:
        return transformer(x, product);
      case Op::kMaxPool:
      case Op::kAvgPool:
        return chain(x, 1);
      case Op::kSepConv3:
      case Op::kSepConv5:
        return norm(chain(norm(chain(x, 3)), 3));
      case Op::kDilConv3:
      case Op::kDilConv5:
      case Op::kConv7x1:
        return norm(chain(x, 3));
      default:
        return norm(chain(x, 2));
    }
  }

  int gate(int x, std::int32_t product, bool strided) {
    const int average = chain(reshaped(x), 1);
    const int hidden = linear(chain(linear(average), 1));
    const int gate = chain(add(Kind::kHard, {hidden}), 1);
    const int scaled = add(Kind::kMul, {x, gate}, product);
    return strided ? sliced(scaled) : scaled;
  }

  int transformer(int x, std::int32_t product) {
    const int tokens = chain(reshaped(x), 1);
    const int attended = token_linear(attention(chain(tokens, 1), product));
    const int middle = add(Kind::kOther, {attended, tokens});
    const int hidden = chain(token_linear(chain(middle, 1)), 1);
    const int last = token_linear(hidden);
    return chain(add(Kind::kOther, {last, middle}), 2);
  }

  int attention(int tokens, std::int32_t product) {
    const int weight = add(Kind::kWeight, {chain(tokens, 1)});
    const int qkv = chain(add(Kind::kOther, {weight}), 2);
    const int query = chain(qkv, 6);
    const int key = chain(qkv, 6);
    const int value = chain(qkv, 6);
    const int scores = chain(add(Kind::kOther, {query, key}), 3);
    const int scaled = add(Kind::kMul, {scores});
    const int weights = chain(add(Kind::kSoftmax, {scaled}), 4);
    const int mixed = chain(add(Kind::kOther, {weights, value}), 4);
    return chain(add(Kind::kClone, {mixed}, product), 1);
  }

  // Order.

  // As the walk visits them: an operation, then its inputs from first to last; of a linear layer
  // the bias, then the layer's input, then its weight.
  std::vector<std::int32_t> preorder(int output) const {
    std::vector<std::int32_t> visited;
    std::vector<bool> seen(nodes_.size(), false);
    std::vector<std::int32_t> pending{output};
    while (!pending.empty()) {
      const std::int32_t node = pending.back();
      pending.pop_back();
      if (seen[static_cast<std::size_t>(node)]) continue;
      seen[static_cast<std::size_t>(node)] = true;
      visited.push_back(node);
      const AutogradNode& info = nodes_[static_cast<std::size_t>(node)];
      const std::int32_t* inputs = inputs_.data() + info.inputs;
      if (info.num_inputs == 1 && kind(inputs[0]) == Kind::kWeight) {
        pending.push_back(inputs[0]);
        const AutogradNode& weight = nodes_[static_cast<std::size_t>(inputs[0])];
        inputs = inputs_.data() + weight.inputs;
        pending.insert(pending.end(), std::make_reverse_iterator(inputs + weight.num_inputs),
                       std::make_reverse_iterator(inputs));
      } else {
        pending.insert(pending.end(), std::make_reverse_iterator(inputs + info.num_inputs),
                       std::make_reverse_iterator(inputs));
      }
    }
    return visited;
  }

  // Generations by longest path from the input, each in the order of `visited`. Nodes that the
  // walk adds (the input, the sum after a position encoding) are kAbsent.
  std::vector<std::int32_t> topological(const std::vector<std::int32_t>& visited) const {
    const std::size_t count = visited.size();
    std::vector<std::int32_t> place(nodes_.size(), kAbsent);
    for (std::size_t i = 0; i < count; ++i) {
      place[static_cast<std::size_t>(visited[i])] = static_cast<std::int32_t>(i);
    }
    std::vector<std::int32_t> missing(count, 0);
    std::vector<std::int32_t> begin(count + 1, 0);
    const auto for_each_edge = [&](const auto& action) {
      for (std::size_t i = 0; i < count; ++i) {
        const AutogradNode& info = nodes_[static_cast<std::size_t>(visited[i])];
        const std::int32_t* inputs = inputs_.data() + info.inputs;
        for (std::int32_t k = 0; k < info.num_inputs; ++k) {
          // An input that is read twice counts once.
          if (std::find(inputs, inputs + k, inputs[k]) == inputs + k) {
            action(static_cast<std::size_t>(place[static_cast<std::size_t>(inputs[k])]), i);
          }
        }
      }
    };
    for_each_edge([&](std::size_t from, std::size_t to) {
      ++begin[from + 1];
      ++missing[to];
    });
    for (std::size_t i = 0; i < count; ++i) begin[i + 1] += begin[i];
    std::vector<std::int32_t> successors(static_cast<std::size_t>(begin[count]));
    std::vector<std::int32_t> end(begin.begin(), begin.end() - 1);
    for_each_edge([&](std::size_t from, std::size_t to) {
      successors[static_cast<std::size_t>(end[from]++)] = static_cast<std::int32_t>(to);
    });
    std::vector<std::int32_t> queue;  // a first-in first-out queue visits generation by generation
    queue.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      if (missing[i] == 0) queue.push_back(static_cast<std::int32_t>(i));
    }
    std::vector<std::int32_t> order{kAbsent};
    order.reserve(count + 2);
    for (std::size_t next = 0; next < queue.size(); ++next) {
      const auto i = static_cast<std::size_t>(queue[next]);
      order.push_back(visited[i]);
      if (kind(visited[i]) == Kind::kPosEnc) order.push_back(kAbsent);
      for (std::int32_t s = begin[i]; s < end[i]; ++s) {
        const std::int32_t to = successors[static_cast<std::size_t>(s)];
        if (--missing[static_cast<std::size_t>(to)] == 0) queue.push_back(to);
      }
    }
    return order;
  }

  const Net& net_;
  const bool is_vit_;
  const std::int32_t positions_;
  std::vector<AutogradNode> nodes_;
  std::vector<int> inputs_;
  std::vector<int> states_;
  std::vector<int> parts_;
};

}  // namespace

std::vector<bool> published_products(const Net& net, const NetPlan& plan) {
  std::vector<bool> result;
  if (!net.genotype.has(Op::kMsa) && !net.genotype.has(Op::kCse)) return result;
  Autograd autograd(net);
  const std::vector<bool> kept = autograd.recognised();
  for (int c = 0; c < net.cells; ++c) {
    const CellPlan& cell = plan.cells[static_cast<std::size_t>(c)];
    if (!cell.alive) continue;
    const CellType& type = net.cell(c);
    for (std::size_t i = 0; i < type.edges.size(); ++i) {
      const Op op = type.edges[i].op;
      if ((op == Op::kMsa || op == Op::kCse) && cell.operations[i]) {
        result.push_back(kept[static_cast<std::size_t>(c * autograd.positions()) + i]);
      }
    }
  }
  return result;
}

}  // namespace ghn_fast::deepnets

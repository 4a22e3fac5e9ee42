#include "gated_gnn.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "aligned.h"
#include "checked.h"
#include "dag_levels.h"
#include "gated_gnn_kernels.h"
#include "parallel.h"

namespace ghn_fast {
namespace {

// Widths of the rows, padded. A row of gates holds r, z, the state's share of n, and n; a row of
// hidden activations those of both MLPs, a row of messages ("said") the outputs of both.
struct Widths {
  std::size_t hid;
  std::size_t gates;
  std::size_t hidden;
  std::size_t hidden_direct;  // mlp's part of `hidden`
  std::size_t said;

  Widths(std::size_t hid, std::size_t width, std::size_t width_ve)
      : hid(padded(hid)),
        gates(4 * padded(hid)),
        hidden(padded(width) + padded(width_ve)),
        hidden_direct(padded(width)),
        said(width_ve == 0 ? padded(hid) : 2 * padded(hid)) {}
};

template <class T>
Widths widths_of(const GatedGnnWeights<const T>& weights) {
  return {weights.hid, weights.mlp.width, weights.mlp_ve.w1 == nullptr ? 0 : weights.mlp_ve.width};
}

// What one pass over all nodes reads and leaves.
template <class T>
struct PassRows {
  Rows<T> h, m, gates, hidden, said, h_new;

  static std::size_t size(const Widths& w) { return w.hid + w.gates + w.hidden + w.said; }

  PassRows(T* rest, Rows<T> h, Rows<T> h_new, std::size_t num_nodes, const Widths& w)
      : h(h), h_new(h_new) {
    const auto take = [&](std::size_t width) {
      const Rows<T> rows{rest, width};
      rest += num_nodes * width;
      return rows;
    };
    m = take(w.hid);
    gates = take(w.gates);
    hidden = take(w.hidden);
    said = take(w.said);
  }
};

// Saved for the backward pass: the states before each pass and at the end, then each pass's rows.
template <class T>
PassRows<T> saved_pass(T* saved, std::size_t pass, std::size_t passes, std::size_t num_nodes,
                       const Widths& w) {
  const std::size_t state = num_nodes * w.hid;
  T* rest = saved + (passes + 1) * state + pass * num_nodes * PassRows<T>::size(w);
  return {rest, {saved + pass * state, w.hid}, {saved + (pass + 1) * state, w.hid}, num_nodes, w};
}

// Without gradients two states in turn and one set of rows do.
template <class T>
PassRows<T> scratch_pass(T* scratch, std::size_t pass, std::size_t num_nodes, const Widths& w) {
  const std::size_t state = num_nodes * w.hid;
  const Rows<T> even{scratch, w.hid}, odd{scratch + state, w.hid};
  return {scratch + 2 * state, pass % 2 == 0 ? even : odd, pass % 2 == 0 ? odd : even, num_nodes,
          w};
}

template <class T>
class PackedMatrix {
 public:
  // element(k, j) is asked for every place, the padded ones too; bias(j) likewise.
  template <class Element, class Bias>
  PackedMatrix(std::size_t inputs, std::size_t outputs, const Element& element, const Bias& bias)
      : memory_(inputs * outputs + outputs), inputs_(inputs), outputs_(outputs) {
    T* to = memory_.data();
    for (std::size_t panel = 0; panel < outputs; panel += kPanel) {
      for (std::size_t k = 0; k < inputs; ++k) {
        for (std::size_t j = panel; j < panel + kPanel; ++j) *to++ = element(k, j);
      }
    }
    for (std::size_t j = 0; j < outputs; ++j) *to++ = bias(j);
  }

  template <class Element>
  PackedMatrix(std::size_t inputs, std::size_t outputs, const Element& element)
      : PackedMatrix(inputs, outputs, element, [](std::size_t) { return T(0); }) {}

  operator Panels<T>() const {
    return {memory_.data(), memory_.data() + inputs_ * outputs_, inputs_, outputs_};
  }

 private:
  AlignedArray<T> memory_;
  std::size_t inputs_;
  std::size_t outputs_;
};

// Reads a (gates hid, hid) or (gates hid) tensor by padded positions: unit i of gate g is at
// g * padded(hid) + i.
template <class T>
class GateReader {
 public:
  GateReader(const T* weights, std::size_t hid) : weights_(weights), hid_(hid) {}

  T matrix(std::size_t place, std::size_t column) const {
    const std::size_t gate = place / padded(hid_), unit = place % padded(hid_);
    return unit < hid_ && column < hid_ ? weights_[(gate * hid_ + unit) * hid_ + column] : T(0);
  }
  T vector(std::size_t place) const {
    const std::size_t gate = place / padded(hid_), unit = place % padded(hid_);
    return unit < hid_ ? weights_[gate * hid_ + unit] : T(0);
  }

 private:
  const T* weights_;
  std::size_t hid_;
};

// The hidden unit at a place of a row of `hidden`: w1's row of the MLP that it belongs to.
template <class T>
class HiddenReader {
 public:
  explicit HiddenReader(const GatedGnnWeights<const T>& weights)
      : weights_(weights), widths_(widths_of(weights)) {}

  T matrix(std::size_t place, std::size_t column) const {
    const auto [mlp, unit] = find(place);
    return unit < mlp.width && column < weights_.hid ? mlp.w1[unit * weights_.hid + column] : T(0);
  }
  T vector(std::size_t place) const {
    const auto [mlp, unit] = find(place);
    return unit < mlp.width ? mlp.b1[unit] : T(0);
  }

 private:
  std::pair<const MlpWeights<const T>&, std::size_t> find(std::size_t place) const {
    if (place < widths_.hidden_direct) return {weights_.mlp, place};
    return {weights_.mlp_ve, place - widths_.hidden_direct};
  }

  const GatedGnnWeights<const T>& weights_;
  Widths widths_;
};

template <class T>
struct ForwardWeights {
  PackedMatrix<T> state;              // h to the gates r, z and its share of n
  PackedMatrix<T> message_rz;         // m to the gates r, z
  PackedMatrix<T> message_n;          // m to its share of n
  PackedMatrix<T> hidden;             // h to both MLPs' hidden units
  std::vector<PackedMatrix<T>> said;  // hidden units to messages, for each MLP

  explicit ForwardWeights(const GatedGnnWeights<const T>& weights)
      : ForwardWeights(weights, widths_of(weights), {weights.gru.w_hh, weights.hid},
                       {weights.gru.w_ih, weights.hid}, {weights.gru.b_hh, weights.hid},
                       {weights.gru.b_ih, weights.hid}, HiddenReader<T>(weights)) {}

 private:
  ForwardWeights(const GatedGnnWeights<const T>& weights, const Widths& w, GateReader<T> w_hh,
                 GateReader<T> w_ih, GateReader<T> b_hh, GateReader<T> b_ih,
                 const HiddenReader<T>& w1)
      : state(
            weights.hid, 3 * w.hid, [&](std::size_t k, std::size_t j) { return w_hh.matrix(j, k); },
            [&](std::size_t j) {
              return b_hh.vector(j) + (j < 2 * w.hid ? b_ih.vector(j) : T(0));
            }),
        message_rz(weights.hid, 2 * w.hid,
                   [&](std::size_t k, std::size_t j) { return w_ih.matrix(j, k); }),
        message_n(
            weights.hid, w.hid,
            [&](std::size_t k, std::size_t j) { return w_ih.matrix(2 * w.hid + j, k); },
            [&](std::size_t j) { return b_ih.vector(2 * w.hid + j); }),
        hidden(
            weights.hid, w.hidden, [&](std::size_t k, std::size_t j) { return w1.matrix(j, k); },
            [&](std::size_t j) { return w1.vector(j); }) {
    for (const MlpWeights<const T>* mlp : {&weights.mlp, &weights.mlp_ve}) {
      if (mlp->w1 == nullptr) continue;
      said.emplace_back(
          mlp->width, w.hid,
          [&](std::size_t k, std::size_t j) {
            return j < weights.hid ? mlp->w2[j * mlp->width + k] : T(0);
          },
          [&](std::size_t j) { return j < weights.hid ? mlp->b2[j] : T(0); });
    }
  }
};

template <class T>
struct BackwardWeights {
  PackedMatrix<T> state;       // gates r, z, the state's share of n, to h
  PackedMatrix<T> message_rz;  // gates r, z to m
  PackedMatrix<T> message_n;   // n to m
  PackedMatrix<T> hidden;      // hidden units to h
  std::vector<PackedMatrix<T>> said;

  explicit BackwardWeights(const GatedGnnWeights<const T>& weights)
      : BackwardWeights(weights, widths_of(weights), {weights.gru.w_hh, weights.hid},
                        {weights.gru.w_ih, weights.hid}, HiddenReader<T>(weights)) {}

 private:
  BackwardWeights(const GatedGnnWeights<const T>& weights, const Widths& w, GateReader<T> w_hh,
                  GateReader<T> w_ih, const HiddenReader<T>& w1)
      : state(3 * w.hid, w.hid, [&](std::size_t k, std::size_t j) { return w_hh.matrix(k, j); }),
        message_rz(2 * w.hid, w.hid,
                   [&](std::size_t k, std::size_t j) { return w_ih.matrix(k, j); }),
        message_n(w.hid, w.hid,
                  [&](std::size_t k, std::size_t j) { return w_ih.matrix(2 * w.hid + k, j); }),
        hidden(w.hidden, w.hid, [&](std::size_t k, std::size_t j) { return w1.matrix(k, j); }) {
    for (const MlpWeights<const T>* mlp : {&weights.mlp, &weights.mlp_ve}) {
      if (mlp->w1 == nullptr) continue;
      said.emplace_back(weights.hid, padded(mlp->width), [&](std::size_t k, std::size_t j) {
        return j < mlp->width ? mlp->w2[k * mlp->width + j] : T(0);
      });
    }
  }
};

// 1/d for each byte d, 0 for 0.
template <class T>
const std::array<T, 256>& inverse_table() {
  static const std::array<T, 256> table = [] {
    std::array<T, 256> values{};
    for (std::size_t d = 1; d < values.size(); ++d) values[d] = T(1) / static_cast<T>(d);
    return values;
  }();
  return table;
}

// The nodes that are joined to one node by paths, on one side of it.
struct Neighbourhood {
  const std::uint8_t* distances;  // of `count` nodes from `first` on
  std::size_t count;
  std::size_t first;
  const std::uint32_t* direct;  // those at distance 1
  std::size_t num_direct;
};

Neighbourhood ancestors(const DagView& graph, std::size_t v) {
  return {graph.transposed.data() + v * graph.num_nodes, v, 0, graph.parents.begin(v),
          graph.parents.size(v)};
}

Neighbourhood descendants(const DagView& graph, std::size_t v) {
  const std::size_t after = v + 1;
  return {graph.distances + v * graph.num_nodes + after, graph.num_nodes - after, after,
          graph.children.begin(v), graph.children.size(v)};
}

Neighbourhood neighbourhood(const DagView& graph, std::size_t v, bool before) {
  return before ? ancestors(graph, v) : descendants(graph, v);
}

template <class T>
Rows<T> from_row(Rows<T> rows, std::size_t first) {
  return {rows[first], rows.stride};
}

template <class T>
void clear_rows(const DagGroup& group, Rows<T> rows) {
  for (const DagView* graph : group.graphs) {
    std::memset(rows[graph->first], 0, graph->num_nodes * rows.stride * sizeof(T));
  }
}

// The levels of a group in the order of a pass.
template <class Visit>
void for_levels(const DagGroup& group, bool ascending, const Visit& visit) {
  const std::size_t depth = group.bounds.size() - 1;
  for (std::size_t i = 0; i < depth; ++i) {
    const std::size_t level = ascending ? i : depth - 1 - i;
    visit(group.bounds[level], group.bounds[level + 1]);
  }
}

template <class T>
class Forward {
 public:
  explicit Forward(const GatedGnnWeights<const T>& weights)
      : widths_(widths_of(weights)), weights_(weights), kernels_(gated_gnn_kernels<T>()) {}

  const Widths& widths() const { return widths_; }

  void pass(const DagGroup& group, const PassRows<T>& rows, bool ascending) const {
    const std::uint32_t* nodes = group.nodes.data();
    // Rows of nodes that are not heard are read too, with weight 0, so they must be finite.
    clear_rows(group, rows.said);
    // The state's share of the gates is known for all nodes beforehand.
    kernels_.product(nodes, group.nodes.size(), rows.h, weights_.state, rows.gates, Start::kBias,
                     false);
    for_levels(group, ascending, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        hear(*group.owners[i], nodes[i], rows, ascending);
      }
      update(nodes + begin, end - begin, rows);
    });
  }

 private:
  // m of one node.
  void hear(const DagView& graph, std::size_t node, const PassRows<T>& rows, bool ascending) const {
    const Neighbourhood heard = neighbourhood(graph, node - graph.first, ascending);
    T* m = rows.m[node];
    std::fill_n(m, widths_.hid, T(0));
    kernels_.add_rows(heard.direct, heard.num_direct, from_row(rows.said, graph.first), widths_.hid,
                      m);
    if (weights_.said.size() == 2) {
      kernels_.add_weighted(heard.distances, heard.count, inverse_table<T>().data(),
                            from_row(rows.said, graph.first + heard.first).columns(widths_.hid),
                            widths_.hid, m);
    }
  }

  // The states of nodes whose m is known, and what they say.
  void update(const std::uint32_t* nodes, std::size_t count, const PassRows<T>& rows) const {
    const auto product = [&](Rows<T> x, Panels<T> w, Rows<T> y, Start start, bool relu) {
      kernels_.product(nodes, count, x, w, y, start, relu);
    };
    product(rows.m, weights_.message_rz, rows.gates, Start::kOutput, false);
    product(rows.m, weights_.message_n, rows.gates.columns(3 * widths_.hid), Start::kBias, false);
    kernels_.gru(nodes, count, rows.gates, rows.h, rows.h_new, widths_.hid);
    product(rows.h_new, weights_.hidden, rows.hidden, Start::kBias, true);
    for (std::size_t i = 0; i < weights_.said.size(); ++i) {
      product(rows.hidden.columns(i * widths_.hidden_direct), weights_.said[i],
              rows.said.columns(i * widths_.hid), Start::kBias, true);
    }
  }

  Widths widths_;
  ForwardWeights<T> weights_;
  const GatedGnnKernels<T>& kernels_;
};

// Gradients of one pass: of the states (before it where they have been processed), the messages
// heard and said, the hidden units and the gates.
template <class T>
struct GradientRows {
  Rows<T> h, m, gates, hidden, said;

  static std::size_t size(const Widths& w) { return 2 * w.hid + w.gates + w.hidden + w.said; }

  GradientRows(T* rest, std::size_t num_nodes, const Widths& w) {
    const auto take = [&](std::size_t width) {
      const Rows<T> rows{rest, width};
      rest += num_nodes * width;
      return rows;
    };
    h = take(w.hid);
    m = take(w.hid);
    gates = take(w.gates);
    hidden = take(w.hidden);
    said = take(w.said);
  }
};

template <class T>
class Backward {
 public:
  explicit Backward(const GatedGnnWeights<const T>& weights)
      : widths_(widths_of(weights)), weights_(weights), kernels_(gated_gnn_kernels<T>()) {}

  const Widths& widths() const { return widths_; }

  // `ascending` is the direction of the pass, whose levels are now visited in the other order.
  void pass(const DagGroup& group, const PassRows<T>& rows, const GradientRows<T>& grads,
            bool ascending) const {
    const std::uint32_t* nodes = group.nodes.data();
    clear_rows(group, grads.m);
    for_levels(group, !ascending, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        gather(*group.owners[i], nodes[i], rows, grads, ascending);
      }
      update(nodes + begin, end - begin, rows, grads);
    });
    kernels_.product(nodes, group.nodes.size(), grads.gates, weights_.state, grads.h,
                     Start::kOutput, false);
  }

 private:
  // The gradient of what a node said, from those who heard it.
  void gather(const DagView& graph, std::size_t node, const PassRows<T>& rows,
              const GradientRows<T>& grads, bool ascending) const {
    const Neighbourhood hearers = neighbourhood(graph, node - graph.first, !ascending);
    T* said = grads.said[node];
    std::fill_n(said, widths_.said, T(0));
    kernels_.add_rows(hearers.direct, hearers.num_direct, from_row(grads.m, graph.first),
                      widths_.hid, said);
    if (weights_.said.size() == 2) {
      kernels_.add_weighted(hearers.distances, hearers.count, inverse_table<T>().data(),
                            from_row(grads.m, graph.first + hearers.first), widths_.hid,
                            said + widths_.hid);
    }
    kernels_.mask(rows.said[node], said, widths_.said);
  }

  void update(const std::uint32_t* nodes, std::size_t count, const PassRows<T>& rows,
              const GradientRows<T>& grads) const {
    const auto product = [&](Rows<T> x, Panels<T> w, Rows<T> y, Start start) {
      kernels_.product(nodes, count, x, w, y, start, false);
    };
    for (std::size_t i = 0; i < weights_.said.size(); ++i) {
      product(grads.said.columns(i * widths_.hid), weights_.said[i],
              grads.hidden.columns(i * widths_.hidden_direct), Start::kZero);
    }
    for (std::size_t i = 0; i < count; ++i) {
      kernels_.mask(rows.hidden[nodes[i]], grads.hidden[nodes[i]], widths_.hidden);
    }
    product(grads.hidden, weights_.hidden, grads.h, Start::kOutput);
    kernels_.gru_backward(nodes, count, rows.gates, rows.h, grads.h, grads.gates, widths_.hid);
    product(grads.gates, weights_.message_rz, grads.m, Start::kZero);
    product(grads.gates.columns(3 * widths_.hid), weights_.message_n, grads.m, Start::kOutput);
  }

  Widths widths_;
  BackwardWeights<T> weights_;
  const GatedGnnKernels<T>& kernels_;
};

// Gradients of the weights in padded matrices, summed over the passes. All nodes are summed in one
// order, whatever the threads; the threads share the elements.
template <class T>
class WeightGradients {
 public:
  WeightGradients(const Widths& w, std::size_t num_nodes)
      : widths_(w),
        memory_((6 * w.hid + w.hidden) * w.hid + w.said * w.hidden + w.gates + w.hidden + w.said),
        all_nodes_(num_nodes),
        kernels_(gated_gnn_kernels<T>()) {
    std::iota(all_nodes_.begin(), all_nodes_.end(), 0u);
    T* rest = memory_.data();
    const auto take = [&](std::size_t rows, std::size_t width) {
      const Rows<T> matrix{rest, width};
      std::fill_n(rest, rows * width, T(0));
      rest += rows * width;
      return matrix;
    };
    w_ih = take(3 * w.hid, w.hid);
    w_hh = take(3 * w.hid, w.hid);
    w1 = take(w.hidden, w.hid);
    w2[0] = take(w.hid, w.hidden);
    w2[1] = take(w.said - w.hid, w.hidden);
    gates_bias = take(1, w.gates);
    hidden_bias = take(1, w.hidden);
    said_bias = take(1, w.said);
  }

  void add(const PassRows<T>& rows, const GradientRows<T>& grads, int num_threads) {
    const std::size_t hid = widths_.hid, direct = widths_.hidden_direct;
    std::vector<Task> tasks;
    push(tasks, grads.gates, rows.m, 2 * hid, hid, w_ih);
    push(tasks, grads.gates.columns(3 * hid), rows.m, hid, hid, from_row(w_ih, 2 * hid));
    push(tasks, grads.gates, rows.h, 3 * hid, hid, w_hh);
    push(tasks, grads.hidden, rows.h_new, widths_.hidden, hid, w1);
    push(tasks, grads.said, rows.hidden, hid, direct, w2[0]);
    if (widths_.said > hid) {
      push(tasks, grads.said.columns(hid), rows.hidden.columns(direct), hid,
           widths_.hidden - direct, w2[1]);
    }
    parallel_for(tasks.size() + 1, num_threads, [&](std::size_t i) {
      if (i == tasks.size()) {
        add_biases(grads);
      } else {
        const Task& task = tasks[i];
        kernels_.outer(task.a, task.b, all_nodes_.size(), task.first, task.first + kTaskRows,
                       task.width, task.y);
      }
    });
  }

  Rows<T> w_ih, w_hh, w1, w2[2], gates_bias, hidden_bias, said_bias;

 private:
  static constexpr std::size_t kTaskRows = 8;

  struct Task {
    Rows<T> a, b;
    std::size_t first;
    std::size_t width;
    Rows<T> y;
  };

  static void push(std::vector<Task>& tasks, Rows<T> a, Rows<T> b, std::size_t height,
                   std::size_t width, Rows<T> y) {
    for (std::size_t first = 0; first < height; first += kTaskRows) {
      tasks.push_back({a, b, first, width, y});
    }
  }

  void add_biases(const GradientRows<T>& grads) {
    const auto add = [&](Rows<T> rows, Rows<T> bias) {
      kernels_.add_rows(all_nodes_.data(), all_nodes_.size(), rows, rows.stride, bias[0]);
    };
    add(grads.gates, gates_bias);
    add(grads.hidden, hidden_bias);
    add(grads.said, said_bias);
  }

  Widths widths_;
  AlignedArray<T> memory_;
  std::vector<std::uint32_t> all_nodes_;
  const GatedGnnKernels<T>& kernels_;
};

// Copies the first `width` elements of each row; padding in `to` becomes 0.
template <class T>
void copy_rows(Rows<const T> from, Rows<T> to, std::size_t num_rows, std::size_t width) {
  for (std::size_t r = 0; r < num_rows; ++r) {
    std::copy_n(from[r], width, to[r]);
    std::fill(to[r] + width, to[r] + to.stride, T(0));
  }
}

template <class T>
Rows<const T> as_const(Rows<T> rows) {
  return {rows.data, rows.stride};
}

template <class T>
void write_mlp(const WeightGradients<T>& grads, const Widths& w, std::size_t index, std::size_t hid,
               const MlpWeights<T>& to) {
  const std::size_t hidden = index * w.hidden_direct;
  copy_rows(as_const(from_row(grads.w1, hidden)), {to.w1, hid}, to.width, hid);
  copy_rows(as_const(grads.w2[index]), {to.w2, to.width}, hid, to.width);
  std::copy_n(grads.hidden_bias[0] + hidden, to.width, to.b1);
  std::copy_n(grads.said_bias[0] + index * w.hid, hid, to.b2);
}

template <class T>
void write_gru(const WeightGradients<T>& grads, const Widths& w, std::size_t hid,
               const GruWeights<T>& to) {
  for (std::size_t gate = 0; gate < 3; ++gate) {
    const std::size_t place = gate * w.hid, row = gate * hid;
    copy_rows(as_const(from_row(grads.w_ih, place)), {to.w_ih + row * hid, hid}, hid, hid);
    copy_rows(as_const(from_row(grads.w_hh, place)), {to.w_hh + row * hid, hid}, hid, hid);
    const T* bias = grads.gates_bias[0];
    std::copy_n(bias + place, hid, to.b_hh + row);
    std::copy_n(bias + (gate == 2 ? 3 * w.hid : place), hid, to.b_ih + row);
  }
}

// Floating-point operations that are worth another thread: about two milliseconds. For less, what
// is gained is small against what waiting for a thread costs where other work keeps it from
// running.
constexpr double kWorkPerThread = 160e6;

// Threads for one direction of the computation, no more than are worth starting.
template <class T>
int useful_threads(const DagBatch& graphs, const GatedGnnWeights<const T>& weights,
                   std::size_t passes, int num_threads) {
  const auto hid = static_cast<double>(weights.hid);
  const double hidden =
      static_cast<double>(weights.mlp.width) +
      (weights.mlp_ve.w1 == nullptr ? 0.0 : static_cast<double>(weights.mlp_ve.width));
  double work = 0;
  for (std::size_t g = 0; g < graphs.num_graphs; ++g) {
    const auto n = static_cast<double>(graphs.num_nodes[g]);
    work += n * hid * (n + 12 * hid + 4 * hidden);
  }
  const double worth = 1 + static_cast<double>(passes) * work / kWorkPerThread;
  return static_cast<int>(std::clamp(worth, 1.0, static_cast<double>(std::max(num_threads, 1))));
}

std::size_t count_nodes(const DagBatch& graphs) {
  return std::accumulate(graphs.num_nodes, graphs.num_nodes + graphs.num_graphs, std::size_t{0});
}

}  // namespace

std::size_t gated_gnn_saved_size(std::size_t num_nodes, std::size_t hid, std::size_t width,
                                 std::size_t width_ve, std::size_t rounds) {
  constexpr std::size_t kMost = 1 << 30;  // of each width: their sums are far from any limit
  if (hid > kMost || width > kMost || width_ve > kMost) {
    throw std::invalid_argument("hidden layers are too wide");
  }
  const Widths w(hid, width, width_ve);
  const auto signed_size = [](std::size_t size) {
    return static_cast<std::int64_t>(std::min<std::size_t>(size, kMostElements));
  };
  // Two passes a round, and the states before the first of them.
  const std::int64_t row = signed_size(w.hid + PassRows<float>::size(w));
  checked_product({signed_size(num_nodes), signed_size(rounds), 4, row}, "what is saved");
  return num_nodes * ((2 * rounds + 1) * w.hid + 2 * rounds * PassRows<float>::size(w));
}

template <class T>
void gated_gnn_forward(const DagBatch& graphs, const GatedGnnWeights<const T>& weights,
                       std::size_t rounds, const T* x, T* out, T* saved, int num_threads) {
  num_threads = useful_threads(graphs, weights, 2 * rounds, num_threads);
  const std::vector<DagView> views = view_graphs(graphs, num_threads);
  const std::vector<DagGroup> groups = group_graphs(views, num_threads);
  const Forward<T> forward(weights);
  const Widths& w = forward.widths();
  const std::size_t n = count_nodes(graphs), passes = 2 * rounds, hid = weights.hid;
  const AlignedArray<T> scratch(saved == nullptr ? n * (2 * w.hid + PassRows<T>::size(w)) : 0);
  const auto rows_of = [&](std::size_t pass) {
    return saved == nullptr ? scratch_pass(scratch.data(), pass, n, w)
                            : saved_pass(saved, pass, passes, n, w);
  };
  copy_rows<T>({x, hid}, rows_of(0).h, n, hid);
  parallel_for(groups.size(), num_threads, [&](std::size_t g) {
    for (std::size_t pass = 0; pass < passes; ++pass) {
      forward.pass(groups[g], rows_of(pass), pass % 2 == 0);
    }
  });
  copy_rows(as_const(rows_of(passes - 1).h_new), {out, hid}, n, hid);
}

template <class T>
void gated_gnn_backward(const DagBatch& graphs, const GatedGnnWeights<const T>& weights,
                        std::size_t rounds, const T* saved, const T* grad_out, T* grad_x,
                        const GatedGnnWeights<T>& grad_weights, int num_threads) {
  num_threads = useful_threads(graphs, weights, 4 * rounds, num_threads);
  const std::vector<DagView> views = view_graphs(graphs, num_threads);
  const std::vector<DagGroup> groups = group_graphs(views, num_threads);
  const Backward<T> backward(weights);
  const Widths& w = backward.widths();
  const std::size_t n = count_nodes(graphs), passes = 2 * rounds, hid = weights.hid;
  const AlignedArray<T> scratch(n * GradientRows<T>::size(w));
  const GradientRows<T> grads(scratch.data(), n, w);
  WeightGradients<T> sums(w, n);
  copy_rows<T>({grad_out, hid}, grads.h, n, hid);
  for (std::size_t pass = passes; pass-- > 0;) {
    // Only read; the rows' type is shared with the forward pass, which writes them.
    const PassRows<T> rows = saved_pass(const_cast<T*>(saved), pass, passes, n, w);
    parallel_for(groups.size(), num_threads,
                 [&](std::size_t g) { backward.pass(groups[g], rows, grads, pass % 2 == 0); });
    sums.add(rows, grads, num_threads);
  }
  copy_rows(as_const(grads.h), {grad_x, hid}, n, hid);
  write_mlp(sums, w, 0, hid, grad_weights.mlp);
  if (grad_weights.mlp_ve.w1 != nullptr) write_mlp(sums, w, 1, hid, grad_weights.mlp_ve);
  write_gru(sums, w, hid, grad_weights.gru);
}

template void gated_gnn_forward<float>(const DagBatch&, const GatedGnnWeights<const float>&,
                                       std::size_t, const float*, float*, float*, int);
template void gated_gnn_forward<double>(const DagBatch&, const GatedGnnWeights<const double>&,
                                        std::size_t, const double*, double*, double*, int);
template void gated_gnn_backward<float>(const DagBatch&, const GatedGnnWeights<const float>&,
                                        std::size_t, const float*, const float*, float*,
                                        const GatedGnnWeights<float>&, int);
template void gated_gnn_backward<double>(const DagBatch&, const GatedGnnWeights<const double>&,
                                         std::size_t, const double*, const double*, double*,
                                         const GatedGnnWeights<double>&, int);

}  // namespace ghn_fast

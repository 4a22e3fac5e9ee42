// Gated message passing over batches of directed acyclic graphs, and its gradient.
//
// In topological order (forward pass), then in reverse (backward pass), each node v gets
//   m_v = sum over direct neighbours u of MLP(h_u) + sum over all heard u of MLP_ve(h_u) / d(u, v)
//   h_v = GRU(m_v, h_v)
// where it hears its ancestors in the forward pass and its descendants in the backward pass
// (arXiv 2110.13100, equation 4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ghn_fast {

// Graphs one after the other. Each matrix of distances is row-major, 0 for none, and strictly
// upper triangular.
struct DagBatch {
  const std::int64_t* num_nodes;
  std::size_t num_graphs;
  const std::uint8_t* distances;
};

// Two linear layers, a ReLU after each: w1 (width, hid), b1 (width), w2 (hid, width), b2 (hid).
// `T` is const where they are read; a null w1 means that there is no such MLP.
template <class T>
struct MlpWeights {
  T* w1;
  T* b1;
  T* w2;
  T* b2;
  std::size_t width;
};

// w_ih and w_hh (3 hid, hid), b_ih and b_hh (3 hid); gates r, z, n.
template <class T>
struct GruWeights {
  T* w_ih;
  T* w_hh;
  T* b_ih;
  T* b_hh;
};

template <class T>
struct GatedGnnWeights {
  std::size_t hid;
  MlpWeights<T> mlp;
  MlpWeights<T> mlp_ve;
  GruWeights<T> gru;
};

// How many elements the backward pass needs the forward pass to leave. `width_ve` is 0 where
// there is no mlp_ve. Throws std::invalid_argument for more than memory can have.
std::size_t gated_gnn_saved_size(std::size_t num_nodes, std::size_t hid, std::size_t width,
                                 std::size_t width_ve, std::size_t rounds);

// Writes the final states of all nodes, (sum N, hid), from the initial ones, x. `saved` is null,
// or has room for gated_gnn_saved_size elements. T is float or double.
// Throws std::invalid_argument for a matrix that is not strictly upper triangular.
template <class T>
void gated_gnn_forward(const DagBatch& graphs, const GatedGnnWeights<const T>& weights,
                       std::size_t rounds, const T* x, T* out, T* saved, int num_threads);

// Writes the gradients of x and of all weights from that of the final states. The result does not
// depend on the number of threads.
template <class T>
void gated_gnn_backward(const DagBatch& graphs, const GatedGnnWeights<const T>& weights,
                        std::size_t rounds, const T* saved, const T* grad_out, T* grad_x,
                        const GatedGnnWeights<T>& grad_weights, int num_threads);

}  // namespace ghn_fast

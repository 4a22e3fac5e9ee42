// Python bindings of the core: arguments are unpacked here; contracting graphs and DeepNets-1M
// have files of their own, contract_module.cpp and deepnets_module.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "contract_module.h"
#include "cpu.h"
#include "deepnets_module.h"
#include "gated_gnn.h"
#include "shortest_paths.h"
#include "tile.h"

namespace py = pybind11;

namespace {

// Addresses of tensors, which the caller has checked and keeps alive.
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

std::uint8_t checked_distance(int max_distance) {
  if (max_distance < 1 || max_distance > 254) {
    throw std::invalid_argument("max_distance must be from 1 to 254");
  }
  return static_cast<std::uint8_t>(max_distance);
}

// The matrices are written one after another, and `distances` has room for all of them.
void shortest_paths(const std::vector<std::size_t>& num_nodes, const std::vector<Address>& edges,
                    const std::vector<std::size_t>& num_edges, int max_distance, Address distances,
                    int num_threads) {
  if (num_nodes.size() != edges.size() || num_nodes.size() != num_edges.size()) {
    throw std::invalid_argument("as many node counts as edge arrays are needed");
  }
  const std::uint8_t limit = checked_distance(max_distance);
  std::vector<ghn_fast::Dag> graphs(num_nodes.size());
  std::vector<std::uint8_t*> targets(num_nodes.size());
  auto* target = at<std::uint8_t>(distances);
  for (std::size_t g = 0; g < num_nodes.size(); ++g) {
    if (num_nodes[g] > ghn_fast::kMaxNodes) throw std::invalid_argument("a graph is too large");
    graphs[g] = {num_nodes[g], at<const std::int64_t>(edges[g]), num_edges[g]};
    targets[g] = target;
    target += num_nodes[g] * num_nodes[g];
  }
  py::gil_scoped_release release;
  ghn_fast::shortest_paths_batch(graphs.data(), graphs.size(), limit, targets.data(), num_threads);
}

struct GatedGnnSizes {
  GatedGnnSizes(std::vector<std::int64_t> num_nodes, std::size_t hid, std::size_t width,
                std::size_t width_ve, std::size_t rounds)
      : num_nodes(std::move(num_nodes)),
        hid(hid),
        width(width),
        width_ve(width_ve),
        rounds(rounds) {}

  std::vector<std::int64_t> num_nodes;
  std::size_t hid;
  std::size_t width;
  std::size_t width_ve;  // 0: no virtual edges
  std::size_t rounds;
};

// Addresses in the order mlp, gru, mlp_ve, four of each; the last may be missing.
template <class T>
ghn_fast::GatedGnnWeights<T> as_weights(const GatedGnnSizes& sizes,
                                        const std::vector<Address>& addresses) {
  if (addresses.size() != (sizes.width_ve == 0 ? 8 : 12)) {
    throw std::invalid_argument("as many weights as the MLPs and the GRU have are needed");
  }
  const auto get = [&](std::size_t i) {
    return i < addresses.size() ? at<T>(addresses[i]) : nullptr;
  };
  return {sizes.hid,
          {get(0), get(1), get(2), get(3), sizes.width},
          {get(8), get(9), get(10), get(11), sizes.width_ve},
          {get(4), get(5), get(6), get(7)}};
}

ghn_fast::DagBatch as_batch(const GatedGnnSizes& sizes, Address distances) {
  return {sizes.num_nodes.data(), sizes.num_nodes.size(), at<const std::uint8_t>(distances)};
}

template <class T>
void gated_gnn_forward(const GatedGnnSizes& sizes, Address distances,
                       const std::vector<Address>& weights, Address x, Address out, Address saved,
                       int num_threads) {
  const auto read_weights = as_weights<const T>(sizes, weights);
  py::gil_scoped_release release;
  ghn_fast::gated_gnn_forward<T>(as_batch(sizes, distances), read_weights, sizes.rounds,
                                 at<const T>(x), at<T>(out), at<T>(saved), num_threads);
}

template <class T>
void gated_gnn_backward(const GatedGnnSizes& sizes, Address distances,
                        const std::vector<Address>& weights, Address saved, Address grad_out,
                        Address grad_x, const std::vector<Address>& grad_weights, int num_threads) {
  const auto read_weights = as_weights<const T>(sizes, weights);
  const auto written_weights = as_weights<T>(sizes, grad_weights);
  py::gil_scoped_release release;
  ghn_fast::gated_gnn_backward<T>(as_batch(sizes, distances), read_weights, sizes.rounds,
                                  at<const T>(saved), at<const T>(grad_out), at<T>(grad_x),
                                  written_weights, num_threads);
}

template <class T>
void bind_gated_gnn_of(py::module_& m, const std::string& type) {
  m.def(("gated_gnn_forward_" + type).c_str(), &gated_gnn_forward<T>, py::arg("sizes"),
        py::arg("distances"), py::arg("weights"), py::arg("x"), py::arg("out"), py::arg("saved"),
        py::arg("num_threads"));
  m.def(("gated_gnn_backward_" + type).c_str(), &gated_gnn_backward<T>, py::arg("sizes"),
        py::arg("distances"), py::arg("weights"), py::arg("saved"), py::arg("grad_out"),
        py::arg("grad_x"), py::arg("grad_weights"), py::arg("num_threads"));
}

void bind_gated_gnn(py::module_& m) {
  py::class_<GatedGnnSizes>(m, "GatedGnnSizes")
      .def(
          py::init<std::vector<std::int64_t>, std::size_t, std::size_t, std::size_t, std::size_t>(),
          py::arg("num_nodes"), py::arg("hid"), py::arg("width"), py::arg("width_ve"),
          py::arg("rounds"));
  m.def("gated_gnn_saved_size", &ghn_fast::gated_gnn_saved_size, py::arg("num_nodes"),
        py::arg("hid"), py::arg("width"), py::arg("width_ve"), py::arg("rounds"));
  bind_gated_gnn_of<float>(m, "float");
  bind_gated_gnn_of<double>(m, "double");
}

// Addresses in device memory, as torch.Tensor.data_ptr() gives them, and the stream's handle.
#ifdef GHN_FAST_WITH_CUDA
void shortest_paths_cuda(std::uintptr_t node_offsets, std::uintptr_t matrix_offsets,
                         std::uintptr_t successor_offsets, std::uintptr_t successors,
                         int num_graphs, std::int64_t most_nodes, int max_distance,
                         std::uintptr_t distances, std::uintptr_t stream) {
  const auto indices = [](std::uintptr_t address) {
    return reinterpret_cast<const std::int64_t*>(address);
  };
  const ghn_fast::DeviceDags graphs{indices(node_offsets), indices(matrix_offsets),
                                    indices(successor_offsets), indices(successors)};
  const std::uint8_t limit = checked_distance(max_distance);
  py::gil_scoped_release release;
  ghn_fast::shortest_paths_cuda(graphs, num_graphs, most_nodes, limit,
                                reinterpret_cast<std::uint8_t*>(distances),
                                reinterpret_cast<void*>(stream));
}
constexpr bool kCuda = true;
#else
void shortest_paths_cuda(std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, int,
                         std::int64_t, int, std::uintptr_t, std::uintptr_t) {
  throw std::runtime_error("ghn_fast was built without a CUDA compiler");
}
constexpr bool kCuda = false;
#endif

void bind_shortest_paths(py::module_& m) {
  m.def("shortest_paths", &shortest_paths, py::arg("num_nodes"), py::arg("edges"),
        py::arg("num_edges"), py::arg("max_distance"), py::arg("distances"),
        py::arg("num_threads"));
  m.def("shortest_paths_cuda", &shortest_paths_cuda, py::arg("node_offsets"),
        py::arg("matrix_offsets"), py::arg("successor_offsets"), py::arg("successors"),
        py::arg("num_graphs"), py::arg("most_nodes"), py::arg("max_distance"), py::arg("distances"),
        py::arg("stream"));
}

// A tensor: its address, then its sizes and strides, in five dimensions.
using TensorInfo = std::array<std::int64_t, 1 + 2 * ghn_fast::kTileDims>;

template <class T>
ghn_fast::StridedArray<T> as_array(const TensorInfo& info) {
  ghn_fast::StridedArray<T> array{at<T>(static_cast<Address>(info[0])), {}, {}};
  std::copy_n(info.begin() + 1, ghn_fast::kTileDims, array.sizes.begin());
  std::copy_n(info.begin() + 1 + ghn_fast::kTileDims, ghn_fast::kTileDims, array.strides.begin());
  return array;
}

template <class T>
void tile(const std::vector<TensorInfo>& blocks, const std::vector<TensorInfo>& parameters,
          const std::vector<std::int64_t>& types, const std::vector<std::int64_t>& rules,
          const std::vector<double>& scales, int num_threads) {
  const std::size_t count = blocks.size();
  if (parameters.size() != count || types.size() != count || rules.size() != count ||
      scales.size() != count) {
    throw std::invalid_argument("as many blocks as parameters, types, rules and scales are needed");
  }
  std::vector<ghn_fast::TileJob<T>> jobs;
  for (std::size_t i = 0; i < count; ++i) {
    jobs.push_back({as_array<const T>(blocks[i]), as_array<void>(parameters[i]),
                    static_cast<ghn_fast::ElementType>(types[i]),
                    static_cast<ghn_fast::TileRule>(rules[i]), scales[i]});
  }
  py::gil_scoped_release release;
  ghn_fast::tile<T>(jobs.data(), count, num_threads);
}

template <class T>
void tile_backward(const std::vector<TensorInfo>& blocks,
                   const std::vector<TensorInfo>& block_gradients,
                   const std::vector<TensorInfo>& parameter_gradients,
                   const std::vector<bool>& adds, const std::vector<std::int64_t>& rules,
                   const std::vector<double>& scales, int num_threads) {
  const std::size_t count = blocks.size();
  if (block_gradients.size() != count || parameter_gradients.size() != count ||
      adds.size() != count || rules.size() != count || scales.size() != count) {
    throw std::invalid_argument("as many blocks as gradients, rules and scales are needed");
  }
  std::vector<ghn_fast::TileGradientJob<T>> jobs;
  for (std::size_t i = 0; i < count; ++i) {
    const auto block_gradient = as_array<T>(block_gradients[i]);
    const auto parameter_gradient = as_array<const T>(parameter_gradients[i]);
    jobs.push_back({as_array<const T>(blocks[i]), block_gradient.data, block_gradient.strides,
                    parameter_gradient.data, parameter_gradient.sizes,
                    static_cast<ghn_fast::TileRule>(rules[i]), scales[i], adds[i]});
  }
  py::gil_scoped_release release;
  ghn_fast::tile_backward<T>(jobs.data(), count, num_threads);
}

template <class T>
void bind_tile(py::module_& m, const std::string& type) {
  m.def(("tile_" + type).c_str(), &tile<T>, py::arg("blocks"), py::arg("parameters"),
        py::arg("types"), py::arg("rules"), py::arg("scales"), py::arg("num_threads"));
  m.def(("tile_backward_" + type).c_str(), &tile_backward<T>, py::arg("blocks"),
        py::arg("block_gradients"), py::arg("parameter_gradients"), py::arg("adds"),
        py::arg("rules"), py::arg("scales"), py::arg("num_threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of ghn_fast.";
  m.attr("cuda") = kCuda;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("compiler") = GHN_FAST_COMPILER;
  m.def("isa", [] { return ghn_fast::isa_name(ghn_fast::isa()); });
  m.def("use_isa", &ghn_fast::use_isa, py::arg("name"));
  ghn_fast::bind_contract(m);
  bind_shortest_paths(m);
  bind_gated_gnn(m);
  bind_tile<float>(m, "float");
  bind_tile<double>(m, "double");
  ghn_fast::deepnets::bind(m);
}

#include "deepnets_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checked.h"
#include "deepnets.h"
#include "parallel.h"
#include "shortest_paths.h"

namespace py = pybind11;

namespace ghn_fast::deepnets {
namespace {

constexpr std::array<const char*, kNumOps> kOpNames = {
    "none",         "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3",
    "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "conv_1x1",     "conv_7x1_1x7",
    "conv_3x3",     "conv_5x5",     "conv_7x7",     "msa",          "cse",
};

// The arguments of Network, as a dictionary.
using Arguments = py::typing::Dict<py::str, py::object>;
template <class T>
using Optional = py::typing::Optional<T>;
using Int64s = py::array_t<std::int64_t>;
using Int32s = py::array_t<std::int32_t>;

using NamedEdges = std::vector<std::pair<std::string, int>>;

Op op_of(const std::string& name) {
  const auto found = std::find(kOpNames.begin(), kOpNames.end(), name);
  if (found == kOpNames.end()) throw std::invalid_argument("unknown operation '" + name + "'");
  return static_cast<Op>(found - kOpNames.begin());
}

CellType as_cell(const NamedEdges& edges, const std::vector<int>& concat) {
  CellType cell;
  for (const auto& [name, source] : edges) {
    const auto limit = static_cast<int>(2 + cell.edges.size() / 2);
    if (source < 0 || source >= limit) throw std::invalid_argument("a state is out of range");
    cell.edges.push_back({op_of(name), static_cast<std::uint8_t>(source)});
  }
  for (const int state : concat) {
    if (state < 0 || state >= static_cast<int>(2 + edges.size() / 2)) {
      throw std::invalid_argument("a concatenated state is out of range");
    }
    cell.concat.push_back(static_cast<std::uint8_t>(state));
  }
  if (edges.empty() || edges.size() % 2 != 0 || edges.size() > 400 || concat.empty()) {
    throw std::invalid_argument("a cell needs 1 to 200 steps of two operations and an output");
  }
  return cell;
}

NamedEdges named_edges(const CellType& cell) {
  NamedEdges edges;
  for (const CellEdge& edge : cell.edges) {
    edges.emplace_back(kOpNames[static_cast<std::size_t>(edge.op)], edge.source);
  }
  return edges;
}

std::vector<int> states_of(const CellType& cell) {
  return {cell.concat.begin(), cell.concat.end()};
}

// The arguments of Network, with the genotype as (normal, normal_concat, reduce, reduce_concat).
Arguments as_arguments(const Net& net) {
  const Genotype& genotype = net.genotype;
  Arguments result;
  result["genotype"] = py::make_tuple(named_edges(genotype.normal), states_of(genotype.normal),
                                      named_edges(genotype.reduce), states_of(genotype.reduce));
  result["C"] = net.width;
  result["n_cells"] = net.cells;
  result["ks"] = net.kernel;
  result["stem_type"] = net.stem_type;
  result["stem_pool"] = net.stem_pool;
  result["norm"] = net.norm ? py::object(py::str("bnorm")) : py::object(py::none());
  result["preproc"] = net.preproc;
  result["C_mult"] = net.multiplier;
  result["fc_layers"] = net.fc_layers;
  result["fc_dim"] = net.fc_dim;
  result["glob_avg"] = net.glob_avg;
  return result;
}

template <class T>
void read(const Arguments& arguments, const char* name, T& value) {
  if (arguments.contains(name)) value = arguments[name].cast<T>();
}

// Of a layer that does not follow a cell.
constexpr int kMostFeatures = 1 << 24;

// Keeps every number of channels below 2^31 and every sum of multiply-adds below 2^63.
void validate(const Net& net) {
  const auto require = [](bool holds, const char* name) {
    if (!holds) throw std::invalid_argument(std::string(name) + " is out of range");
  };
  require(net.cells >= 1 && net.cells <= 10'000, "n_cells");
  require(net.width >= 1, "C");
  require(net.kernel >= 1 && net.kernel <= 1024, "ks");
  require(net.multiplier >= 1, "C_mult");
  require(net.fc_layers >= 0 && net.fc_layers <= 1000, "fc_layers");
  require(net.fc_dim >= 0 && net.fc_dim <= kMostFeatures, "fc_dim");
  // Cells at one and two thirds of the depth multiply the width.
  const std::int64_t width =
      checked_product({net.width, net.multiplier, net.multiplier}, "a network");
  std::size_t states = 4, edges = 1;
  for (const CellType* cell : {&net.genotype.normal, &net.genotype.reduce}) {
    states = std::max(states, cell->concat.size());
    edges = std::max(edges, cell->edges.size());
  }
  constexpr std::int64_t kKernel = 7 * 7, kPositions = 14 * 14, kPixels = 112 * 112;
  const auto count = [](std::size_t size) { return static_cast<std::int64_t>(size); };
  require(checked_product({width, count(states), kPositions}, "a network") <= INT32_MAX, "C");
  checked_product({width, width, kKernel, kPixels, net.cells, count(edges)}, "a network");
}

Net as_net(const Arguments& arguments) {
  using Fields = std::tuple<NamedEdges, std::vector<int>, NamedEdges, std::vector<int>>;
  const auto [normal, normal_concat, reduce, reduce_concat] = arguments["genotype"].cast<Fields>();
  Net net;
  net.genotype = {as_cell(normal, normal_concat), as_cell(reduce, reduce_concat)};
  net.cells = arguments["n_cells"].cast<int>();
  net.width = arguments["C"].cast<int>();
  read(arguments, "ks", net.kernel);
  read(arguments, "stem_type", net.stem_type);
  read(arguments, "stem_pool", net.stem_pool);
  read(arguments, "preproc", net.preproc);
  read(arguments, "C_mult", net.multiplier);
  read(arguments, "fc_layers", net.fc_layers);
  read(arguments, "fc_dim", net.fc_dim);
  read(arguments, "glob_avg", net.glob_avg);
  if (arguments.contains("norm")) {
    const py::object norm = arguments["norm"];
    net.norm = !norm.is_none() && !norm.equal(py::str("")) && !norm.equal(py::str("none"));
  }
  validate(net);
  return net;
}

void validate_classes(int num_classes) {
  if (num_classes < 1 || num_classes > kMostFeatures) {
    throw std::invalid_argument("num_classes is out of range");
  }
}

template <class T>
py::array_t<T> new_array(std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape));
}

// (types (N,), edges (E, 2), names, shapes, biases, unused); names and shapes hold None for
// operations without, biases None for nodes that are no normalisation.
using GraphFields =
    py::typing::Tuple<py::array_t<std::uint8_t>, Int64s, py::typing::List<Optional<py::str>>,
                      py::typing::List<Optional<py::typing::Tuple<py::int_, py::ellipsis>>>,
                      py::typing::List<Optional<py::str>>, py::typing::List<py::str>>;

GraphFields graph(const Arguments& arguments, int num_classes, bool large_images) {
  validate_classes(num_classes);
  const NetGraph made = build_graph(as_net(arguments), num_classes, large_images);
  const auto count = static_cast<py::ssize_t>(made.nodes.size());
  auto types = new_array<std::uint8_t>({count});
  py::list names, shapes, biases, unused;
  const auto bias_of = [](std::string weight) {
    return weight.replace(weight.size() - std::strlen("weight"), std::string::npos, "bias");
  };
  for (std::size_t i = 0; i < made.nodes.size(); ++i) {
    const GraphNode& node = made.nodes[i];
    types.mutable_data()[i] = node.type;
    py::tuple shape(node.dims);
    for (std::size_t d = 0; d < node.dims; ++d) shape[d] = py::int_(node.shape[d]);
    shapes.append(node.dims > 0 ? py::object(shape) : py::none());
    const std::string name = node.name.text();
    names.append(name.empty() ? py::object(py::none()) : py::object(py::str(name)));
    biases.append(node.norm ? py::object(py::str(bias_of(name))) : py::object(py::none()));
  }
  for (const GraphNode& node : made.unused) {
    const std::string name = node.name.text();
    unused.append(name);
    if (node.norm) unused.append(bias_of(name));
  }
  auto edges = new_array<std::int64_t>({static_cast<py::ssize_t>(made.edges.size() / 2), 2});
  std::copy(made.edges.begin(), made.edges.end(), edges.mutable_data());
  return py::make_tuple(types, edges, names, shapes, biases, unused);
}

// Where each network's part of a flat array begins, and after the last one the length.
using Offsets = std::vector<std::size_t>;

struct BatchOffsets {
  explicit BatchOffsets(const std::vector<NetGraph>& graphs) {
    for (const NetGraph& graph : graphs) {
      const std::size_t n = graph.nodes.size();
      nodes.push_back(nodes.back() + n);
      edges.push_back(edges.back() + graph.edges.size() / 2);
      pairs.push_back(pairs.back() + n * n);
    }
  }

  Offsets nodes{0}, edges{0}, pairs{0};
};

py::array_t<std::int64_t> sizes_of(const Offsets& offsets) {
  auto sizes = new_array<std::int64_t>({static_cast<py::ssize_t>(offsets.size() - 1)});
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    sizes.mutable_data()[i] = static_cast<std::int64_t>(offsets[i + 1] - offsets[i]);
  }
  return sizes;
}

// Networks of a split as flat arrays: num_nodes (B,) int64, types (sum N,) uint8, shapes (sum N, 4)
// int32 (zero where there is none), num_edges (B,) int64, edges (sum E, 2) int32, distances
// (sum N^2,) uint8, and the rows of the published files (sum N, 3) uint16, none of them if not
// asked for.
using BatchArrays = py::typing::Tuple<Int64s, py::array_t<std::uint8_t>, Int32s, Int64s, Int32s,
                                      py::array_t<std::uint8_t>, py::array_t<std::uint16_t>>;

BatchArrays batch(const std::string& split, std::uint64_t seed,
                  const std::vector<std::uint64_t>& indices, int num_classes, bool large_images,
                  int max_distance, bool with_rows, int num_threads) {
  if (max_distance < 1 || max_distance > 254) {
    throw std::invalid_argument("max_distance must be from 1 to 254");
  }
  validate_classes(num_classes);
  const std::size_t count = indices.size();
  std::vector<NetGraph> graphs(count);
  std::vector<int> cells(count);
  {
    py::gil_scoped_release release;
    parallel_for(count, num_threads, [&](std::size_t i) {
      const Net net = sample(split, seed, indices[i], large_images);
      cells[i] = net.cells;
      graphs[i] = build_graph(net, num_classes, large_images);
    });
  }
  const BatchOffsets offsets(graphs);
  const auto total = static_cast<py::ssize_t>(offsets.nodes[count]);
  auto types = new_array<std::uint8_t>({total});
  auto shapes = new_array<std::int32_t>({total, 4});
  auto ends = new_array<std::int32_t>({static_cast<py::ssize_t>(offsets.edges[count]), 2});
  auto distances = new_array<std::uint8_t>({static_cast<py::ssize_t>(offsets.pairs[count])});
  auto rows = new_array<std::uint16_t>({with_rows ? total : 0, 3});
  std::uint8_t* const type_data = types.mutable_data();
  std::int32_t* const shape_data = shapes.mutable_data();
  std::int32_t* const end_data = ends.mutable_data();
  std::uint8_t* const distance_data = distances.mutable_data();
  std::uint16_t* const row_data = rows.mutable_data();
  {
    py::gil_scoped_release release;
    parallel_for(count, num_threads, [&](std::size_t i) {
      const NetGraph& made = graphs[i];
      for (std::size_t n = 0; n < made.nodes.size(); ++n) {
        const std::size_t at = offsets.nodes[i] + n;
        type_data[at] = made.nodes[n].type;
        std::copy(made.nodes[n].shape.begin(), made.nodes[n].shape.end(), shape_data + 4 * at);
        if (with_rows) {
          const auto row = published_row(made.nodes[n], cells[i]);
          std::copy(row.begin(), row.end(), row_data + 3 * at);
        }
      }
      std::transform(made.edges.begin(), made.edges.end(), end_data + 2 * offsets.edges[i],
                     [](std::int64_t end) { return static_cast<std::int32_t>(end); });
      shortest_paths({made.nodes.size(), made.edges.data(), made.edges.size() / 2},
                     static_cast<std::uint8_t>(max_distance), distance_data + offsets.pairs[i]);
    });
  }
  return py::make_tuple(sizes_of(offsets.nodes), types, shapes, sizes_of(offsets.edges), ends,
                        distances, rows);
}

// Of networks of a split: the number of parameters, multiply-adds and the depth, each (B,) int64.
py::typing::Tuple<Int64s, Int64s, Int64s> measures(const std::string& split, std::uint64_t seed,
                                                   const std::vector<std::uint64_t>& indices,
                                                   int num_classes, bool large_images,
                                                   int num_threads) {
  validate_classes(num_classes);
  const auto count = static_cast<py::ssize_t>(indices.size());
  auto parameters = new_array<std::int64_t>({count});
  auto multiply_adds = new_array<std::int64_t>({count});
  auto depths = new_array<std::int64_t>({count});
  std::int64_t* const parameter_data = parameters.mutable_data();
  std::int64_t* const multiply_add_data = multiply_adds.mutable_data();
  std::int64_t* const depth_data = depths.mutable_data();
  {
    py::gil_scoped_release release;
    parallel_for(indices.size(), num_threads, [&](std::size_t i) {
      const Net net = sample(split, seed, indices[i], large_images);
      parameter_data[i] = count_parameters(net, num_classes, large_images);
      multiply_add_data[i] = count_multiply_adds(net, num_classes, large_images);
      depth_data[i] = depth(build_graph(net, num_classes, large_images));
    });
  }
  return py::make_tuple(parameters, multiply_adds, depths);
}

}  // namespace

void bind(py::module_& m) {
  m.def(
      "deepnets_sample",
      [](const std::string& split, std::uint64_t seed, std::uint64_t index, bool large_images) {
        return as_arguments(sample(split, seed, index, large_images));
      },
      py::arg("split"), py::arg("seed"), py::arg("index"), py::arg("large_images"));
  m.def(
      "deepnets_count_parameters",
      [](const Arguments& arguments, int num_classes, bool large_images) {
        validate_classes(num_classes);
        return count_parameters(as_net(arguments), num_classes, large_images);
      },
      py::arg("net_args"), py::arg("num_classes"), py::arg("large_images"));
  m.def("deepnets_graph", &graph, py::arg("net_args"), py::arg("num_classes"),
        py::arg("large_images"));
  m.def(
      "deepnets_count_multiply_adds",
      [](const Arguments& arguments, int num_classes, bool large_images) {
        validate_classes(num_classes);
        return count_multiply_adds(as_net(arguments), num_classes, large_images);
      },
      py::arg("net_args"), py::arg("num_classes"), py::arg("large_images"));
  m.def("deepnets_batch", &batch, py::arg("split"), py::arg("seed"), py::arg("indices"),
        py::arg("num_classes"), py::arg("large_images"), py::arg("max_distance"),
        py::arg("with_rows"), py::arg("num_threads"));
  m.def("deepnets_measures", &measures, py::arg("split"), py::arg("seed"), py::arg("indices"),
        py::arg("num_classes"), py::arg("large_images"), py::arg("num_threads"));
  m.def("deepnets_published_names", &published_names, py::arg("positions"));
}

}  // namespace ghn_fast::deepnets

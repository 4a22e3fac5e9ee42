// Tests of the core without Python, so that sanitizers see every byte it touches: arrays have
// exactly the size that the core is told, and what it must leave alone lies in memory of its own.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "checked.h"
#include "contract.h"
#include "cpu.h"
#include "deepnets.h"
#include "gated_gnn.h"
#include "shortest_paths.h"
#include "tile.h"

using namespace ghn_fast;

namespace {

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

using Edges = std::vector<std::int64_t>;

// Edges go to one of the next nodes, so that paths are long.
Edges random_edges(std::size_t nodes, std::mt19937& random) {
  Edges edges;
  for (std::size_t target = 1; target < nodes; ++target) {
    for (std::size_t source = target > 5 ? target - 5 : 0; source < target; ++source) {
      if (random() % 3 != 0) continue;
      edges.push_back(static_cast<std::int64_t>(source));
      edges.push_back(static_cast<std::int64_t>(target));
    }
  }
  return edges;
}

std::vector<std::uint8_t> distances_of(std::size_t nodes, const Edges& edges, int most = 50) {
  std::vector<std::uint8_t> distances(nodes * nodes, 77);
  shortest_paths({nodes, edges.data(), edges.size() / 2}, static_cast<std::uint8_t>(most),
                 distances.data());
  return distances;
}

// Floyd and Warshall's, of one graph.
std::vector<int> all_paths(std::size_t nodes, const Edges& edges) {
  std::vector<int> paths(nodes * nodes, 1000);
  for (std::size_t e = 0; e < edges.size(); e += 2) paths[edges[e] * nodes + edges[e + 1]] = 1;
  for (std::size_t k = 0; k < nodes; ++k) {
    for (std::size_t i = 0; i < nodes; ++i) {
      for (std::size_t j = 0; j < nodes; ++j) {
        paths[i * nodes + j] =
            std::min(paths[i * nodes + j], paths[i * nodes + k] + paths[k * nodes + j]);
      }
    }
  }
  return paths;
}

}  // namespace

TEST_CASE("products of sizes do not wrap around") {
  CHECK(checked_product({3, 0, kHuge}, "it") == 0);
  CHECK(checked_product({}, "it") == 1);
  CHECK(checked_product({1 << 30, 1 << 29}, "it") == std::int64_t{1} << 59);
  CHECK_THROWS_AS(checked_product({0, -1}, "it"), std::invalid_argument);
  CHECK_THROWS_AS(checked_product({kHuge, 4}, "it"), std::invalid_argument);
  CHECK_THROWS_AS(checked_product({kHuge, kHuge}, "it"), std::invalid_argument);
}

TEST_CASE("shortest paths of every number of nodes around a block") {
  std::mt19937 random(1);
  for (std::size_t nodes = 0; nodes < 100; ++nodes) {
    const Edges edges = random_edges(nodes, random);
    const auto expected = all_paths(nodes, edges);
    for (const int most : {1, 4, 254}) {
      const auto found = distances_of(nodes, edges, most);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        REQUIRE(found[i] == (expected[i] <= most ? expected[i] : 0));
      }
    }
  }
}

TEST_CASE("edges that are none") {
  CHECK_THROWS_AS(distances_of(2, {1, 0}), std::invalid_argument);
  CHECK_THROWS_AS(distances_of(2, {0, 2}), std::invalid_argument);
  CHECK_THROWS_AS(distances_of(2, {-1, 1}), std::invalid_argument);
  const Dag large{kMaxNodes + 1, nullptr, 0};
  CHECK_THROWS_AS(shortest_paths(large, 50, nullptr), std::invalid_argument);
}

TEST_CASE("tiles of every type repeat their block") {
  const std::vector<float> block{1, 2, 3, 4, 5, 6};  // (2, 3)
  for (std::int64_t rows = 0; rows < 6; ++rows) {
    for (std::int64_t columns = 0; columns < 9; ++columns) {
      std::vector<double> parameter(rows * columns);
      const TileJob<float> job{{block.data(), {2, 3, 1, 1, 1}, {3, 1, 0, 0, 0}},
                               {parameter.data(), {rows, columns, 1, 1, 1}, {columns, 1, 0, 0, 0}},
                               ElementType::kDouble,
                               TileRule::kScale,
                               2.0};
      tile(&job, 1, 2);
      for (std::int64_t i = 0; i < rows * columns; ++i) {
        REQUIRE(parameter[i] == 2 * block[i / columns % 2 * 3 + i % columns % 3]);
      }
    }
  }
}

TEST_CASE("gradients of tiles add up, over jobs too") {
  const std::vector<double> block{0.5, -1};
  std::vector<double> gradient(2, 77);
  const std::vector<double> ones(5, 1);
  const auto job = [&](bool add) {
    return TileGradientJob<double>{{block.data(), {1, 2, 1, 1, 1}, {2, 1, 0, 0, 0}},
                                   gradient.data(),
                                   {2, 1, 0, 0, 0},
                                   ones.data(),
                                   {1, 5, 1, 1, 1},
                                   TileRule::kBias,
                                   1.0,
                                   add};
  };
  const std::vector<TileGradientJob<double>> jobs{job(false), job(true)};
  tile_backward(jobs.data(), jobs.size(), 2);
  const auto slope = [](double p) { return 0.2 * (1 - std::pow(std::tanh(0.2 * p), 2)); };
  CHECK(gradient[0] == doctest::Approx(2 * 3 * slope(0.5)));
  CHECK(gradient[1] == doctest::Approx(2 * 2 * slope(-1)));
  CHECK_THROWS_AS(tile_backward(&jobs[1], 1, 1), std::invalid_argument);
}

TEST_CASE("tiles that cannot be") {
  float value = 1;
  const auto with = [&](const TileSizes& block, const TileSizes& parameter, int rule = 0,
                        int type = 0) {
    const TileJob<float> job{{&value, block, {}},
                             {&value, parameter, {}},
                             static_cast<ElementType>(type),
                             static_cast<TileRule>(rule),
                             1.0};
    tile(&job, 1, 1);
    const TileGradientJob<float> back{{&value, block, {}},         &value, {},   nullptr, parameter,
                                      static_cast<TileRule>(rule), 1.0,    false};
    tile_backward(&back, 1, 1);
  };
  const TileSizes one{1, 1, 1, 1, 1};
  CHECK_NOTHROW(with(one, one));
  CHECK_THROWS_AS(with(one, {kHuge, 4, 1, 1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(with({kHuge, kHuge, 1, 1, 1}, one), std::invalid_argument);
  CHECK_THROWS_AS(with(one, {1, -1, 1, 1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(with({1, 0, 1, 1, 1}, one), std::invalid_argument);
  CHECK_THROWS_AS(with(one, one, 3), std::invalid_argument);
  CHECK_THROWS_AS(with(one, one, 0, 4), std::invalid_argument);
}

// A batch of random graphs, and weights whose arrays end where the core may read last.
struct Gnn {
  std::size_t hid, width, width_ve;
  std::vector<std::int64_t> sizes;
  std::vector<std::uint8_t> distances;
  std::vector<std::vector<double>> weights;  // mlp, gru, mlp_ve
  std::vector<double> x;

  Gnn(std::vector<std::int64_t> counts, std::size_t hid, std::size_t width, std::size_t width_ve)
      : hid(hid), width(width), width_ve(width_ve), sizes(std::move(counts)) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    std::size_t nodes = 0;
    for (const std::int64_t size : sizes) {
      const auto n = static_cast<std::size_t>(size);
      const auto matrix = distances_of(n, random_edges(n, random));
      distances.insert(distances.end(), matrix.begin(), matrix.end());
      nodes += n;
    }
    const auto array = [&](std::size_t size) {
      std::vector<double> values(size);
      for (double& value : values) value = 0.3 * normal(random);
      return values;
    };
    for (const std::size_t size : shapes()) weights.push_back(array(size));
    x = array(nodes * hid);
  }

  std::vector<std::size_t> shapes() const {
    const std::size_t gates = 3 * hid;
    std::vector<std::size_t> sizes{width * hid, width,       hid * width, hid,
                                   gates * hid, gates * hid, gates,       gates};
    if (width_ve > 0) sizes.insert(sizes.end(), {width_ve * hid, width_ve, hid * width_ve, hid});
    return sizes;
  }

  DagBatch batch() const { return {sizes.data(), sizes.size(), distances.data()}; }

  template <class T, class Arrays>
  GatedGnnWeights<T> view(Arrays& w) const {
    const auto ve = [&](std::size_t i) -> T* { return width_ve > 0 ? w[8 + i].data() : nullptr; };
    return {hid,
            {w[0].data(), w[1].data(), w[2].data(), w[3].data(), width},
            {ve(0), ve(1), ve(2), ve(3), width_ve},
            {w[4].data(), w[5].data(), w[6].data(), w[7].data()}};
  }

  std::vector<double> forward(std::vector<double>* saved, int threads = 2) const {
    std::vector<double> out(x.size());
    gated_gnn_forward<double>(batch(), view<const double>(weights), 1, x.data(), out.data(),
                              saved == nullptr ? nullptr : saved->data(), threads);
    return out;
  }
};

TEST_CASE("gated message passing stays in its arrays, and its gradient is one") {
  for (const std::size_t hid : {1, 5, 16, 33}) {
    for (const std::size_t width_ve : {0, 7}) {
      Gnn gnn({9, 0, 1, 40}, hid, 3, width_ve);
      const std::size_t nodes = gnn.x.size() / hid;
      std::vector<double> saved(gated_gnn_saved_size(nodes, hid, 3, width_ve, 1));
      const auto out = gnn.forward(&saved);
      CHECK(out == gnn.forward(nullptr, 1));
      const std::vector<double> ones(out.size(), 1);
      std::vector<double> grad_x(out.size());
      std::vector<std::vector<double>> grads;
      for (const std::size_t size : gnn.shapes()) grads.emplace_back(size);
      gated_gnn_backward<double>(gnn.batch(), gnn.view<const double>(gnn.weights), 1, saved.data(),
                                 ones.data(), grad_x.data(), gnn.view<double>(grads), 2);
      const auto sum = [&] {
        double total = 0;
        for (const double value : gnn.forward(nullptr)) total += value;
        return total;
      };
      const auto slope = [&](double& value) {
        const double before = value, step = 1e-6;
        value = before + step;
        const double above = sum();
        value = before - step;
        const double below = sum();
        value = before;
        return (above - below) / (2 * step);
      };
      CHECK(grad_x[0] == doctest::Approx(slope(gnn.x[0])).epsilon(1e-4));
      for (std::size_t w = 0; w < grads.size(); ++w) {
        CHECK(grads[w].back() == doctest::Approx(slope(gnn.weights[w].back())).epsilon(1e-4));
      }
    }
  }
}

TEST_CASE("messages that cannot be passed") {
  Gnn gnn({3}, 4, 2, 0);
  gnn.distances[3] = 1;  // from the second node to the first
  CHECK_THROWS_AS(gnn.forward(nullptr), std::invalid_argument);
  CHECK_THROWS_AS(gated_gnn_saved_size(1 << 30, 32, 32, 32, kHuge), std::invalid_argument);
  CHECK_THROWS_AS(gated_gnn_saved_size(1, kHuge, 32, 32, 1), std::invalid_argument);
}

TEST_CASE("contraction keeps nodes and joins what is between") {
  // 0 (node) -> 1 (contracted) -> 2 (node); 3 is of no output.
  const std::vector<std::uint8_t> kinds{1, 0, 1, 1};
  const std::vector<std::int64_t> offsets{0, 0, 1, 2, 3}, operands{0, 1, 0};
  const std::vector<std::int64_t> outputs{2};
  const Records records{kinds.data(), kinds.size(), offsets.data(), operands.data()};
  const Contraction found = contract(records, outputs.data(), 1);
  CHECK(found.nodes == std::vector<std::int64_t>{0, 2});
  CHECK(found.edges == std::vector<std::int64_t>{0, 1});
  CHECK(found.live == std::vector<std::uint8_t>{1, 1, 1, 0});
  const std::int64_t none = 4;
  CHECK_THROWS_AS(contract(records, &none, 1), std::invalid_argument);
}

TEST_CASE("networks of every split are written and counted") {
  for (const char* split : {"train", "val", "test", "wide", "deep", "dense", "bnfree", "search"}) {
    for (std::uint64_t index = 0; index < 20; ++index) {
      const bool large = index % 2 == 1;
      const deepnets::Net net = deepnets::sample(split, 3, index, large);
      const deepnets::NetGraph graph = deepnets::build_graph(net, 10, large);
      CHECK(deepnets::depth(graph) < static_cast<std::int64_t>(graph.nodes.size()));
      CHECK(deepnets::count_parameters(net, 10, large) > 0);
      CHECK(deepnets::count_multiply_adds(net, 10, large) > 0);
      for (const deepnets::GraphNode& node : graph.nodes) {
        CHECK_NOTHROW(deepnets::published_row(node, net.cells));
      }
    }
  }
  CHECK_THROWS_AS(deepnets::sample("none", 0, 0, false), std::invalid_argument);
}

TEST_CASE("instructions are chosen by name") {
  const std::string before = isa_name(isa());
  use_isa("baseline");
  Gnn gnn({20}, 16, 8, 8);
  const auto narrow = gnn.forward(nullptr);
  use_isa(before);
  const auto wide = gnn.forward(nullptr);
  for (std::size_t i = 0; i < wide.size(); ++i) CHECK(wide[i] == doctest::Approx(narrow[i]));
  CHECK_THROWS_AS(use_isa("avx1024"), std::invalid_argument);
}

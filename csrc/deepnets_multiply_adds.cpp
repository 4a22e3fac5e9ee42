// The multiply-adds of a DeepNets-1M network; see multiply_adds.py, which explains the rules.
#include <algorithm>
#include <stdexcept>

#include "deepnets.h"

namespace ghn_fast::deepnets {
namespace {

std::int64_t halved(std::int64_t size) { return (size + 1) / 2; }

// The states between cells: sizes of their feature maps and their channels.
struct States {
  std::array<std::int64_t, 2> size;
  std::array<std::int64_t, 2> channels;
};

States stem(const Net& net, const NetPlan& plan, bool large, std::int64_t& total) {
  const std::int64_t width = net.width;
  const std::int64_t kernel = 3 * net.kernel * net.kernel;
  if (net.is_vit()) {
    const std::int64_t size = large ? 14 : 11;
    const std::int64_t patch = large ? 16 : 3;
    total += size * size * 3 * patch * patch * width;
    return {{size, size}, {width, width}};
  }
  if (net.stem_type == 0) {
    const std::int64_t size = large ? 56 : 32;
    const std::int64_t channels = width * (net.preproc && !large ? 3 : 1);
    total += size * size * kernel * channels;
    const std::int64_t after = net.stem_pool ? halved(size) : size;
    return {{after, after}, {channels, channels}};
  }
  const std::int64_t first = large ? 112 : 32;
  const std::int64_t second = large ? 56 : 32;
  const std::int64_t third = halved(second);
  total += first * first * kernel * (width / 2) + second * second * 9 * (width / 2) * width;
  if (plan.stem[1]) total += third * third * 9 * width * width;
  return {{second, third}, {width, width}};
}

std::int64_t operation(Op op, std::int64_t width, std::int64_t size, std::int64_t stride) {
  const std::int64_t square = width * width;
  const std::int64_t after = stride == 2 ? halved(size) : size;
  const std::int64_t pixels = after * after;
  const auto depthwise = [&](std::int64_t kernel) {
    return pixels * (kernel * kernel * width + square);
  };
  switch (op) {
    case Op::kNone:
    case Op::kMaxPool:
    case Op::kAvgPool:
      return 0;
    case Op::kSkip:
      return stride == 2 ? pixels * square : 0;
    case Op::kSepConv3:
      return 2 * depthwise(3);
    case Op::kSepConv5:
      return 2 * depthwise(5);
    case Op::kDilConv3:
      return depthwise(3);
    case Op::kDilConv5:
      return depthwise(5);
    case Op::kConv1:
      return pixels * square;
    case Op::kConv7x1:
      return 7 * square * (size * after + pixels);
    case Op::kConv3:
      return 9 * pixels * square;
    case Op::kConv5:
      return 25 * pixels * square;
    case Op::kConv7:
      return 49 * pixels * square;
    case Op::kMsa:
      return 6 * square * size * size + 2 * size * size * size * size * width;
    case Op::kCse:
      return 2 * width * (width / 2);
  }
  return 0;
}

}  // namespace

std::int64_t count_multiply_adds(const Net& net, int num_classes, bool large_images) {
  const NetPlan plan = plan_network(net.genotype, net.cells);
  if (!plan.connected) {
    throw std::invalid_argument("'none' operations cut every path from the input to the output");
  }
  const bool is_vit = net.is_vit();
  std::int64_t total = 0;
  States states = stem(net, plan, large_images, total);
  std::int64_t width = net.width;
  for (int c = 0; c < net.cells; ++c) {
    const CellPlan& cell_plan = plan.cells[static_cast<std::size_t>(c)];
    const bool reduction = is_reduction(c, net.cells);
    if (reduction) width *= net.multiplier;
    const std::int64_t size = states.size[1];
    const CellType& cell = net.cell(c);
    const std::int64_t after = reduction && !is_vit ? halved(size) : size;
    if (cell_plan.alive) {
      for (const std::size_t i : {0, 1}) {
        if (net.preproc && cell_plan.inputs[i]) total += size * size * states.channels[i] * width;
      }
      for (std::size_t i = 0; i < cell.edges.size(); ++i) {
        if (!cell_plan.operations[i]) continue;
        const CellEdge& edge = cell.edges[i];
        const bool outer = edge.source < 2;
        total += operation(edge.op, width, outer ? size : after, outer && after != size ? 2 : 1);
      }
    }
    states = {{size, after},
              {states.channels[1], static_cast<std::int64_t>(cell.concat.size()) * width}};
  }
  std::int64_t channels = states.channels[1];
  if (!net.glob_avg) channels *= states.size[1] * states.size[1];
  for (int layer = 1; layer < net.fc_layers; ++layer) {
    total += channels * net.fc_dim;
    channels = net.fc_dim;
  }
  return total + channels * num_classes;
}

}  // namespace ghn_fast::deepnets

// How the published files number the nodes of a graph.
#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "deepnets.h"

namespace ghn_fast::deepnets {
namespace {

// Indices into NODE_TYPES, and the number of the primitive that is no node type.
constexpr std::uint8_t kConv = 4;
constexpr std::uint8_t kGlobAvg = 14;
constexpr std::uint16_t kConv1x1 = 15;

constexpr std::array<const char*, 15> kTypes = {
    "max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa",     "cse",     "sum",
    "concat",   "input",    "bias",     "bn",       "ln",   "pos_enc", "glob_avg"};

// Names outside the operations of a cell.
constexpr std::array<const char*, 17> kOuter = {
    "stem.0.weight",
    "stem.1.weight",
    "stem0.weight",
    "stem0.0.weight",
    "stem0.1.weight",
    "stem0.3.weight",
    "stem0.4.weight",
    "stem1.1.weight",
    "stem1.2.weight",
    "pos_enc.weight",
    "preprocess0.op.1.weight",
    "preprocess0.op.2.weight",
    "preprocess0.conv_1.weight",
    "preprocess0.conv_2.weight",
    "preprocess0.bn.weight",
    "preprocess1.op.1.weight",
    "preprocess1.op.2.weight",
};

// Names within an operation.
constexpr std::array<const char*, 22> kInner = {
    "op.1.weight",   "op.2.weight",     "op.3.weight",   "op.5.weight", "op.6.weight",
    "op.7.weight",   "conv_1.weight",   "conv_2.weight", "bn.weight",   "ln1.weight",
    "to_qkv.weight", "to_out.0.weight", "to_out.0.bias", "ln2.weight",  "ff.net.0.weight",
    "ff.net.0.bias", "ff.net.3.weight", "ff.net.3.bias", "fc1.weight",  "fc1.bias",
    "fc2.weight",    "fc2.bias",
};

// The published networks have at most two linear layers in the classifier.
constexpr std::size_t kClassifierLayers = 2;
constexpr std::size_t kFirstOuter = kTypes.size();
constexpr std::size_t kFirstClassifier = kFirstOuter + kOuter.size();
constexpr std::size_t kFirstInner = kFirstClassifier + 2 * kClassifierLayers;

using Places = std::unordered_map<std::string_view, std::size_t>;

template <class Names>
Places places_of(const Names& names) {
  Places places;
  for (std::size_t i = 0; i < names.size(); ++i) places.emplace(names[i], i);
  return places;
}

std::size_t name_number(const GraphNode& node) {
  static const Places outer = places_of(kOuter);
  static const Places inner = places_of(kInner);
  const Name& name = node.name;
  if (name.suffix == nullptr) return node.type;
  const std::string_view suffix = name.suffix;
  if (name.position < 0) return kFirstOuter + outer.at(suffix);
  const auto position = static_cast<std::size_t>(name.position);
  if (name.cell >= 0) return kFirstInner + position * kInner.size() + inner.at(suffix);
  if (position >= kClassifierLayers) throw std::out_of_range("a classifier of many layers");
  return kFirstClassifier + 2 * position + (suffix == "bias" ? 1 : 0);
}

bool is_pointwise(const GraphNode& node) {
  return node.dims == 2 || (node.shape[2] == 1 && node.shape[3] == 1);
}

}  // namespace

std::array<std::uint16_t, 3> published_row(const GraphNode& node, int cells) {
  const bool pointwise = node.type == kConv && is_pointwise(node);
  const bool in_head = node.name.cell < 0 && (node.name.position >= 0 || node.type == kGlobAvg);
  const int cell = in_head ? cells - 1 : std::max<int>(node.name.cell, 0);
  const std::size_t name = name_number(node);
  if (name > 65535) throw std::out_of_range("a cell of too many operations");
  return {pointwise ? kConv1x1 : std::uint16_t{node.type}, static_cast<std::uint16_t>(cell),
          static_cast<std::uint16_t>(name)};
}

std::vector<std::string> published_names(int positions) {
  std::vector<std::string> names(kTypes.begin(), kTypes.end());
  names.insert(names.end(), kOuter.begin(), kOuter.end());
  for (std::size_t layer = 0; layer < kClassifierLayers; ++layer) {
    for (const char* part : {".weight", ".bias"}) {
      names.push_back("classifier." + std::to_string(3 * layer) + part);
    }
  }
  for (int position = 0; position < positions; ++position) {
    const std::string prefix = "_ops." + std::to_string(position) + ".";
    for (const char* suffix : kInner) names.push_back(prefix + suffix);
  }
  return names;
}

}  // namespace ghn_fast::deepnets

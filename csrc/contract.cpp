#include "contract.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ghn_fast {
namespace {

void validate(const Records& records, const std::int64_t* outputs, std::size_t num_outputs) {
  const auto num_records = static_cast<std::int64_t>(records.num_records);
  // First, so that no operand outside of the array is read below.
  for (std::int64_t r = 0; r < num_records; ++r) {
    if (records.offsets[r] > records.offsets[r + 1]) {
      throw std::invalid_argument("the offsets decrease at record " + std::to_string(r));
    }
  }
  for (std::int64_t r = 0; r < num_records; ++r) {
    if (records.kinds[r] > static_cast<std::uint8_t>(RecordKind::kJoin)) {
      throw std::invalid_argument("record " + std::to_string(r) + " has an unknown kind");
    }
    for (std::int64_t i = records.offsets[r]; i < records.offsets[r + 1]; ++i) {
      if (records.operands[i] < 0 || records.operands[i] >= r) {
        throw std::invalid_argument("operand " + std::to_string(records.operands[i]) +
                                    " does not come before its record " + std::to_string(r));
      }
    }
  }
  for (std::size_t i = 0; i < num_outputs; ++i) {
    if (outputs[i] < 0 || outputs[i] >= num_records) {
      throw std::invalid_argument("output " + std::to_string(outputs[i]) + " is not a record");
    }
  }
}

std::vector<std::uint8_t> find_live(const Records& records, const std::int64_t* outputs,
                                    std::size_t num_outputs) {
  std::vector<std::uint8_t> live(records.num_records, 0);
  for (std::size_t i = 0; i < num_outputs; ++i) live[static_cast<std::size_t>(outputs[i])] = 1;
  for (std::size_t r = records.num_records; r-- > 0;) {
    if (!live[r]) continue;
    for (std::int64_t i = records.offsets[r]; i < records.offsets[r + 1]; ++i) {
      live[static_cast<std::size_t>(records.operands[i])] = 1;
    }
  }
  return live;
}

// The nodes that a record's value comes from: a range of a common pool, so that records that hand
// on their only operand share its range.
struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool empty() const { return begin == end; }
};

class Contractor {
 public:
  explicit Contractor(const Records& records)
      : records_(records), sources_(records.num_records), seen_(records.num_records, 0) {}

  void run(Contraction& result) {
    for (std::size_t r = 0; r < records_.num_records; ++r) {
      if (!result.live[r]) continue;
      std::size_t num_operands = 0;
      const Range merged = merge(r, num_operands);
      const auto kind = static_cast<RecordKind>(records_.kinds[r]);
      const bool joins =
          kind == RecordKind::kJoin && num_operands > 1 && merged.end - merged.begin > 1;
      if (kind == RecordKind::kKeep || joins) {
        append_node(r, merged, result);
      } else {
        sources_[r] = merged;
      }
    }
  }

 private:
  // The nodes behind all operands, each once, and how many operands have any.
  Range merge(std::size_t r, std::size_t& num_operands) {
    Range only;
    const std::size_t begin = pool_.size();
    ++mark_;
    for (std::int64_t i = records_.offsets[r]; i < records_.offsets[r + 1]; ++i) {
      const Range range = sources_[static_cast<std::size_t>(records_.operands[i])];
      if (range.empty()) continue;
      ++num_operands;
      only = range;
      for (std::size_t k = range.begin; k < range.end; ++k) {
        const std::int64_t node = pool_[k];
        if (seen_[static_cast<std::size_t>(node)] == mark_) continue;
        seen_[static_cast<std::size_t>(node)] = mark_;
        pool_.push_back(node);
      }
    }
    if (num_operands == 1) {
      pool_.resize(begin);
      return only;
    }
    return {begin, pool_.size()};
  }

  void append_node(std::size_t r, Range merged, Contraction& result) {
    const auto node = static_cast<std::int64_t>(result.nodes.size());
    result.nodes.push_back(static_cast<std::int64_t>(r));
    for (std::size_t k = merged.begin; k < merged.end; ++k) {
      result.edges.push_back(pool_[k]);
      result.edges.push_back(node);
    }
    sources_[r] = {pool_.size(), pool_.size() + 1};
    pool_.push_back(node);
  }

  const Records& records_;
  std::vector<Range> sources_;
  std::vector<std::int64_t> pool_;
  std::vector<std::size_t> seen_;  // by node, the last record that met it
  std::size_t mark_ = 0;
};

void sort_edges(std::vector<std::int64_t>& edges) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  pairs.reserve(edges.size() / 2);
  for (std::size_t i = 0; i < edges.size(); i += 2) pairs.emplace_back(edges[i], edges[i + 1]);
  std::sort(pairs.begin(), pairs.end());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    edges[2 * i] = pairs[i].first;
    edges[2 * i + 1] = pairs[i].second;
  }
}

}  // namespace

Contraction contract(const Records& records, const std::int64_t* outputs, std::size_t num_outputs) {
  validate(records, outputs, num_outputs);
  Contraction result;
  result.live = find_live(records, outputs, num_outputs);
  Contractor(records).run(result);
  sort_edges(result.edges);
  return result;
}

}  // namespace ghn_fast

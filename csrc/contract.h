// Contraction of a recorded computation to the graph of its nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ghn_fast {

enum class RecordKind : std::uint8_t {
  kContract = 0,  // its inputs are joined to its outputs
  kKeep = 1,      // a node
  kJoin = 2,      // a node if two of its operands come from nodes, and from different ones
};

// What was computed, one record an operation, in an order in which operands come first.
struct Records {
  const std::uint8_t* kinds;
  std::size_t num_records;
  const std::int64_t* offsets;   // num_records + 1, where each record's operands begin
  const std::int64_t* operands;  // records, each before the one that it is an operand of
};

struct Contraction {
  std::vector<std::int64_t> nodes;  // the records that are nodes, in order
  std::vector<std::int64_t> edges;  // pairs (source, target) of positions in nodes, sorted
  std::vector<std::uint8_t> live;   // for each record, whether an output depends on it
};

// Leaves out what no output depends on.
// Throws std::invalid_argument for an operand that does not come before its record, an unknown
// kind, and an output that is no record.
Contraction contract(const Records& records, const std::int64_t* outputs, std::size_t num_outputs);

}  // namespace ghn_fast

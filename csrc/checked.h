// Products of sizes that come from outside, which must not wrap around.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace ghn_fast {

// A tensor of so many elements of 8 bytes fits into the address space.
constexpr std::int64_t kMostElements = std::numeric_limits<std::ptrdiff_t>::max() / 8;

// The product of sizes, each at least 0. Throws std::invalid_argument for one that is negative and
// for a product beyond kMostElements; `what` names what they are the sizes of.
inline std::int64_t checked_product(std::initializer_list<std::int64_t> sizes, const char* what) {
  std::int64_t product = 1;
  bool is_empty = false;
  for (const std::int64_t size : sizes) {
    if (size < 0) throw std::invalid_argument(std::string(what) + " has a negative size");
    is_empty |= size == 0;
  }
  if (is_empty) return 0;
  for (const std::int64_t size : sizes) {
    if (product > kMostElements / size) {
      throw std::invalid_argument(std::string(what) + " has more elements than memory can have");
    }
    product *= size;
  }
  return product;
}

}  // namespace ghn_fast

// A vector in loops over its lanes, for compilers without vector types.
#pragma once

#include <cstddef>

namespace ghn_fast {

template <class T, std::size_t N>
struct Lanes {
  T lane[N];

  Lanes() = default;
  Lanes(T value) {  // NOLINT: numbers stand for vectors, as with vector types
    for (T& x : lane) x = value;
  }

  Lanes& operator+=(const Lanes& y) { return *this = *this + y; }

  friend Lanes operator-(Lanes x) {
    for (T& value : x.lane) value = -value;
    return x;
  }
  friend Lanes operator+(Lanes x, const Lanes& y) {
    for (std::size_t i = 0; i < N; ++i) x.lane[i] += y.lane[i];
    return x;
  }
  friend Lanes operator-(Lanes x, const Lanes& y) {
    for (std::size_t i = 0; i < N; ++i) x.lane[i] -= y.lane[i];
    return x;
  }
  friend Lanes operator*(Lanes x, const Lanes& y) {
    for (std::size_t i = 0; i < N; ++i) x.lane[i] *= y.lane[i];
    return x;
  }
  friend Lanes operator/(Lanes x, const Lanes& y) {
    for (std::size_t i = 0; i < N; ++i) x.lane[i] /= y.lane[i];
    return x;
  }
};

}  // namespace ghn_fast

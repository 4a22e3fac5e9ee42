// Memory that begins at a cache line.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace ghn_fast {

constexpr std::size_t kCacheLine = 64;

// An array of trivial elements, uninitialised.
template <class T>
class AlignedArray {
 public:
  explicit AlignedArray(std::size_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kCacheLine)))) {}

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(kCacheLine)); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace ghn_fast

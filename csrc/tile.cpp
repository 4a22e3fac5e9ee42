#include "tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "aligned.h"
#include "checked.h"
#include "parallel.h"

namespace ghn_fast {
namespace {

// What a task keeps of a block, so that it is read from the first-level cache again and again.
constexpr std::int64_t kBufferBytes = 16 << 10;
// What a task writes, unless a single row is more.
constexpr std::int64_t kTaskBytes = 512 << 10;
// Less than this is not worth another thread.
constexpr std::int64_t kBytesPerThread = 4 << 20;
// From here on parameters do not fit in the caches anyway, and bypassing them saves reading the
// lines before they are overwritten.
constexpr std::int64_t kStreamBytes = 32 << 20;

std::int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return 4;
    case ElementType::kDouble:
      return 8;
    default:
      return 2;
  }
}

std::int64_t space(const TileSizes& sizes) { return sizes[2] * sizes[3] * sizes[4]; }

std::int64_t count(const TileSizes& sizes) { return sizes[0] * sizes[1] * space(sizes); }

// Where each position in space lies, positions beyond `period` being those of the repetition.
std::vector<std::int64_t> space_offsets(const TileSizes& sizes, const TileSizes& period,
                                        const TileSizes& strides) {
  std::vector<std::int64_t> offsets;
  offsets.reserve(static_cast<std::size_t>(space(sizes)));
  for (std::int64_t i = 0; i < sizes[2]; ++i) {
    for (std::int64_t j = 0; j < sizes[3]; ++j) {
      for (std::int64_t k = 0; k < sizes[4]; ++k) {
        offsets.push_back(i % period[2] * strides[2] + j % period[3] * strides[3] +
                          k % period[4] * strides[4]);
      }
    }
  }
  return offsets;
}

// Whether a row, all that belongs to one output channel, is contiguous.
bool has_contiguous_rows(const TileSizes& sizes, const TileSizes& strides) {
  std::int64_t expected = 1;
  for (std::size_t dim = kTileDims; dim-- > 1;) {
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

void validate(const TileSizes& block, const TileSizes& parameter, TileRule rule) {
  const auto count_of = [](const TileSizes& sizes, const char* what) {
    return checked_product({sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}, what);
  };
  if (count_of(parameter, "a parameter") > 0 && count_of(block, "a block") == 0) {
    throw std::invalid_argument("a parameter is made from an empty block");
  }
  if (rule < TileRule::kScale || rule > TileRule::kBias) {
    throw std::invalid_argument("unknown rule");
  }
}

template <class T>
T apply(TileRule rule, T scale, T p) {
  switch (rule) {
    case TileRule::kNormWeight:
      return T(2) / (T(1) + std::exp(T(-0.5) * p));
    case TileRule::kBias:
      return std::tanh(T(0.2) * p);
    default:
      return scale * p;
  }
}

template <class T>
T derivative(TileRule rule, T scale, T p) {
  const T value = apply(rule, scale, p);
  switch (rule) {
    case TileRule::kNormWeight:
      return T(0.25) * value * (T(2) - value);
    case TileRule::kBias:
      return T(0.2) * (T(1) - value * value);
    default:
      return scale;
  }
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// Both round to nearest, ties to even, as PyTorch does.
std::uint16_t to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7FC0;
  const std::uint32_t bits = bits_of(x);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

std::uint16_t to_half(float x) {
  const auto sign = static_cast<std::uint16_t>(bits_of(x) >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>(sign | 0x7E00);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (magnitude < 6.103515625e-05f) {
    // Subnormal: adding 0.5 leaves the value, rounded to a multiple of 2^-24, in the low bits.
    return static_cast<std::uint16_t>(sign | (bits_of(magnitude + 0.5f) - bits_of(0.5f)));
  }
  const std::uint32_t bits = bits_of(magnitude) - (112u << 23);
  return static_cast<std::uint16_t>(sign | (bits + 0xFFF + ((bits >> 13) & 1)) >> 13);
}

template <class T, class To, class Convert>
void convert(const T* from, std::byte* to, std::int64_t size, const Convert& change) {
  To* out = reinterpret_cast<To*>(to);
  for (std::int64_t i = 0; i < size; ++i) out[i] = change(from[i]);
}

template <class T>
void convert(const T* from, std::byte* to, std::int64_t size, ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return convert<T, float>(from, to, size, [](T x) { return static_cast<float>(x); });
    case ElementType::kDouble:
      return convert<T, double>(from, to, size, [](T x) { return static_cast<double>(x); });
    case ElementType::kHalf:
      return convert<T, std::uint16_t>(from, to, size,
                                       [](T x) { return to_half(static_cast<float>(x)); });
    case ElementType::kBFloat16:
      return convert<T, std::uint16_t>(from, to, size,
                                       [](T x) { return to_bfloat16(static_cast<float>(x)); });
  }
}

// memcpy past the caches.
void stream(std::byte* to, const std::byte* from, std::size_t size) {
#if defined(__SSE2__)
  const std::size_t head =
      std::min(size, (kCacheLine - reinterpret_cast<std::uintptr_t>(to) % kCacheLine) % kCacheLine);
  std::memcpy(to, from, head);
  std::size_t i = head;
  for (; i + kCacheLine <= size; i += kCacheLine) {
    for (std::size_t part = i; part < i + kCacheLine; part += sizeof(__m128i)) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part)));
    }
  }
  std::memcpy(to + i, from + i, size - i);
#else
  std::memcpy(to, from, size);
#endif
}

void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Rows [first, last) of the block, of output channels of the block, and where they are repeated.
struct Task {
  std::size_t job;
  std::int64_t first;
  std::int64_t last;
};

// How many of a block's rows are used at all.
std::int64_t used_rows(const TileSizes& block, const TileSizes& parameter) {
  return std::min(block[0], parameter[0]);
}

// Splits the rows [0, rows) of a block for tasks.
void push_tasks(std::vector<Task>& tasks, std::size_t job, std::int64_t rows,
                std::int64_t buffer_bytes_per_row, std::int64_t task_bytes_per_row) {
  const std::int64_t step = std::clamp<std::int64_t>(
      std::min(kBufferBytes / std::max<std::int64_t>(buffer_bytes_per_row, 1),
               kTaskBytes / std::max<std::int64_t>(task_bytes_per_row, 1)),
      1, std::max<std::int64_t>(rows, 1));
  for (std::int64_t first = 0; first < rows; first += step) {
    tasks.push_back({job, first, std::min(first + step, rows)});
  }
}

int useful_threads(std::int64_t bytes, int num_threads) {
  return static_cast<int>(
      std::clamp<std::int64_t>(bytes / kBytesPerThread, 1, std::max(num_threads, 1)));
}

// Calls visit(i, s) for all channels and positions in the order in which the block lies in memory.
template <class Visit>
void for_elements(std::int64_t channels, std::int64_t positions, bool channels_are_dense,
                  const Visit& visit) {
  if (channels_are_dense) {
    for (std::int64_t s = 0; s < positions; ++s) {
      for (std::int64_t i = 0; i < channels; ++i) visit(i, s);
    }
  } else {
    for (std::int64_t i = 0; i < channels; ++i) {
      for (std::int64_t s = 0; s < positions; ++s) visit(i, s);
    }
  }
}

// Normalised rows [first, last) of the block, as wide as they are used and repeated in space.
template <class T>
void read_rows(const TileJob<T>& job, std::int64_t first, std::int64_t last, std::int64_t channels,
               T* out) {
  const TileSizes& strides = job.block.strides;
  const std::vector<std::int64_t> offsets =
      space_offsets(job.parameter.sizes, job.block.sizes, strides);
  const auto positions = static_cast<std::int64_t>(offsets.size());
  const T scale = static_cast<T>(job.scale);
  for (std::int64_t o = first; o < last; ++o, out += channels * positions) {
    const T* row = job.block.data + o * strides[0];
    const auto write = [&](std::int64_t i, std::int64_t s) {
      const T p = row[i * strides[1] + offsets[static_cast<std::size_t>(s)]];
      out[i * positions + s] = job.rule == TileRule::kScale ? scale * p : apply(job.rule, scale, p);
    };
    for_elements(channels, positions, strides[1] == 1, write);
  }
}

// Repeats `period` bytes over `size` bytes.
void repeat(std::byte* to, std::int64_t size, const std::byte* from, std::int64_t period,
            bool streaming) {
  for (std::int64_t at = 0; at < size; at += period) {
    const auto length = static_cast<std::size_t>(std::min(period, size - at));
    if (streaming) {
      stream(to + at, from, length);
    } else {
      std::memcpy(to + at, from, length);
    }
  }
}

// The same where a row is not contiguous; elements are as wide as Element.
template <class Element>
void scatter(Element* to, const TileSizes& sizes, const TileSizes& strides,
             const std::vector<std::int64_t>& offsets, const Element* from, std::int64_t channels) {
  const auto positions = static_cast<std::int64_t>(offsets.size());
  for (std::int64_t i = 0; i < sizes[1]; ++i) {
    const Element* source = from + i % channels * positions;
    for (std::int64_t s = 0; s < positions; ++s) {
      to[i * strides[1] + offsets[static_cast<std::size_t>(s)]] = source[s];
    }
  }
}

template <class Element>
void scatter_row(const StridedArray<void>& parameter, std::int64_t row,
                 const std::vector<std::int64_t>& offsets, const std::byte* from,
                 std::int64_t channels) {
  Element* to = static_cast<Element*>(parameter.data) + row * parameter.strides[0];
  scatter(to, parameter.sizes, parameter.strides, offsets, reinterpret_cast<const Element*>(from),
          channels);
}

// Writes one row of the parameter from one period of it.
class RowWriter {
 public:
  RowWriter(const StridedArray<void>& parameter, ElementType type, std::int64_t channels,
            bool streaming)
      : parameter_(parameter),
        size_(element_size(type)),
        channels_(channels),
        contiguous_(has_contiguous_rows(parameter.sizes, parameter.strides)),
        streaming_(streaming) {
    if (!contiguous_) {
      offsets_ = space_offsets(parameter.sizes, parameter.sizes, parameter.strides);
    }
  }

  void write(std::int64_t row, const std::byte* from) const {
    if (contiguous_) {
      const std::int64_t positions = space(parameter_.sizes);
      std::byte* to =
          static_cast<std::byte*>(parameter_.data) + row * parameter_.strides[0] * size_;
      repeat(to, parameter_.sizes[1] * positions * size_, from, channels_ * positions * size_,
             streaming_);
    } else if (size_ == 2) {
      scatter_row<std::uint16_t>(parameter_, row, offsets_, from, channels_);
    } else if (size_ == 4) {
      scatter_row<std::uint32_t>(parameter_, row, offsets_, from, channels_);
    } else {
      scatter_row<std::uint64_t>(parameter_, row, offsets_, from, channels_);
    }
  }

 private:
  const StridedArray<void>& parameter_;
  std::int64_t size_;
  std::int64_t channels_;
  bool contiguous_;
  bool streaming_;
  std::vector<std::int64_t> offsets_;
};

template <class T>
void run(const TileJob<T>& job, const Task& task, bool streaming) {
  const TileSizes& sizes = job.parameter.sizes;
  const std::int64_t channels = std::min(job.block.sizes[1], sizes[1]);
  const std::int64_t row_size = channels * space(sizes);
  const std::int64_t rows = task.last - task.first;
  const auto total = static_cast<std::size_t>(rows * row_size);
  const AlignedArray<T> values(total);
  read_rows(job, task.first, task.last, channels, values.data());
  const std::int64_t bytes = element_size(job.type);
  const AlignedArray<std::byte> converted(total * static_cast<std::size_t>(bytes));
  convert(values.data(), converted.data(), rows * row_size, job.type);
  const RowWriter writer(job.parameter, job.type, channels, streaming);
  for (std::int64_t tile = 0; tile < sizes[0]; tile += job.block.sizes[0]) {
    const std::int64_t last = std::min(task.last, sizes[0] - tile);
    for (std::int64_t o = task.first; o < last; ++o) {
      writer.write(tile + o, converted.data() + (o - task.first) * row_size * bytes);
    }
  }
}

// The sums over repetitions along both channels of rows [first, last).
template <class T>
void sum_rows(const TileGradientJob<T>& job, std::int64_t first, std::int64_t last, T* sums) {
  const TileSizes& sizes = job.parameter_sizes;
  const std::int64_t width = sizes[1] * space(sizes);
  const std::int64_t period = job.block.sizes[1] * space(sizes);
  std::fill_n(sums, (last - first) * period, T(0));
  if (job.parameter_gradient == nullptr) return;
  for (std::int64_t tile = 0; tile < sizes[0]; tile += job.block.sizes[0]) {
    for (std::int64_t o = first; o < std::min(last, sizes[0] - tile); ++o) {
      const T* from = job.parameter_gradient + (tile + o) * width;
      T* __restrict sum = sums + (o - first) * period;
      for (std::int64_t at = 0; at < width; at += period) {
        const std::int64_t length = std::min(period, width - at);
        for (std::int64_t i = 0; i < length; ++i) sum[i] += from[at + i];
      }
    }
  }
}

template <class T>
void run(const TileGradientJob<T>& job, std::int64_t first, std::int64_t last) {
  const TileSizes& block = job.block.sizes;
  const TileSizes& strides = job.block_gradient_strides;
  const std::int64_t channels = block[1], positions = space(job.parameter_sizes);
  const AlignedArray<T> sums(static_cast<std::size_t>((last - first) * channels * positions));
  sum_rows(job, first, last, sums.data());
  const std::vector<std::int64_t> all = space_offsets(block, block, strides);
  const std::vector<std::int64_t> targets = space_offsets(job.parameter_sizes, block, strides);
  const std::vector<std::int64_t> sources =
      space_offsets(job.parameter_sizes, block, job.block.strides);
  const bool dense = strides[1] == 1;
  const T scale = static_cast<T>(job.scale);
  for (std::int64_t o = first; o < last; ++o) {
    T* gradient = job.block_gradient + o * strides[0];
    const T* values = job.block.data + o * job.block.strides[0];
    const T* sum = sums.data() + (o - first) * channels * positions;
    const auto place = [&](std::int64_t i, std::int64_t s) -> T& {
      return gradient[i * strides[1] + targets[static_cast<std::size_t>(s)]];
    };
    if (job.rule == TileRule::kScale && !job.add && targets == all) {
      for_elements(channels, positions, dense, [&](std::int64_t i, std::int64_t s) {
        place(i, s) = scale * sum[i * positions + s];
      });
      continue;
    }
    if (!job.add) {
      for_elements(channels, space(block), dense, [&](std::int64_t i, std::int64_t s) {
        gradient[i * strides[1] + all[static_cast<std::size_t>(s)]] = T(0);
      });
    }
    for_elements(channels, positions, dense, [&](std::int64_t i, std::int64_t s) {
      const std::int64_t at = i * job.block.strides[1] + sources[static_cast<std::size_t>(s)];
      const T slope =
          job.rule == TileRule::kScale ? scale : derivative(job.rule, scale, values[at]);
      place(i, s) += slope * sum[i * positions + s];
    });
  }
}

}  // namespace

template <class T>
void tile(const TileJob<T>* jobs, std::size_t num_jobs, int num_threads) {
  std::vector<Task> tasks;
  std::int64_t total = 0;
  for (std::size_t j = 0; j < num_jobs; ++j) {
    const TileSizes& block = jobs[j].block.sizes;
    const TileSizes& sizes = jobs[j].parameter.sizes;
    validate(block, sizes, jobs[j].rule);
    if (jobs[j].type < ElementType::kFloat || jobs[j].type > ElementType::kBFloat16) {
      throw std::invalid_argument("unknown type");
    }
    const std::int64_t bytes = count(sizes) * element_size(jobs[j].type);
    if (bytes == 0) continue;
    const std::int64_t rows = used_rows(block, sizes);
    const auto buffered = static_cast<std::int64_t>(sizeof(T)) * std::min(block[1], sizes[1]);
    push_tasks(tasks, j, rows, buffered * space(sizes), bytes / rows);
    total += bytes;
  }
  const bool streaming = total >= kStreamBytes;
  parallel_for(tasks.size(), useful_threads(total, num_threads), [&](std::size_t t) {
    run(jobs[tasks[t].job], tasks[t], streaming);
    if (streaming) finish_streaming();
  });
}

template <class T>
void tile_backward(const TileGradientJob<T>* jobs, std::size_t num_jobs, int num_threads) {
  std::vector<Task> tasks;
  std::int64_t total = 0;
  for (std::size_t j = 0; j < num_jobs; ++j) {
    const TileSizes& block = jobs[j].block.sizes;
    const TileSizes& sizes = jobs[j].parameter_sizes;
    validate(block, sizes, jobs[j].rule);
    if (jobs[j].add) {  // done with the job that it adds to
      const bool follows = j > 0 && jobs[j - 1].block.sizes == block &&
                           jobs[j - 1].block_gradient == jobs[j].block_gradient;
      if (!follows) throw std::invalid_argument("a job adds to none before it");
      continue;
    }
    const auto bytes = count(sizes) * static_cast<std::int64_t>(sizeof(T));
    if (count(block) == 0) continue;
    const std::int64_t buffered = static_cast<std::int64_t>(sizeof(T)) * block[1] * space(sizes);
    push_tasks(tasks, j, block[0], buffered, bytes / block[0]);
    total += bytes;
  }
  parallel_for(tasks.size(), useful_threads(total, num_threads), [&](std::size_t t) {
    const Task& task = tasks[t];
    std::size_t j = task.job;
    do {
      run(jobs[j], task.first, task.last);
    } while (++j < num_jobs && jobs[j].add);
  });
}

template void tile<float>(const TileJob<float>*, std::size_t, int);
template void tile<double>(const TileJob<double>*, std::size_t, int);
template void tile_backward<float>(const TileGradientJob<float>*, std::size_t, int);
template void tile_backward<double>(const TileGradientJob<double>*, std::size_t, int);

}  // namespace ghn_fast

#include "gated_gnn_kernels.h"

#include <cstring>

#include "cpu.h"

// The vector types of GCC and Clang, which take as many registers as a vector needs; for other
// compilers (and to test that path with these, -DGHN_FAST_PORTABLE_VECTORS) loops over lanes.
#if defined(__GNUC__) && !defined(GHN_FAST_PORTABLE_VECTORS)
#define GHN_FAST_VECTOR_TYPES
#endif

#if defined(__GNUC__)
#define GHN_FAST_INLINE inline __attribute__((always_inline))
#else
#define GHN_FAST_INLINE __forceinline
#endif

#if !defined(GHN_FAST_VECTOR_TYPES)
#include "lanes.h"
#endif

#define GHN_FAST_ISA baseline
#define GHN_FAST_VECTOR_BYTES 16
#include "gated_gnn_kernels.inc"
#undef GHN_FAST_ISA
#undef GHN_FAST_VECTOR_BYTES

// Copies for wider vectors, where the compiler makes one function for other instructions than the
// rest of the file.
#if defined(__x86_64__) && defined(GHN_FAST_VECTOR_TYPES)
#define GHN_FAST_WIDE

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define GHN_FAST_ISA avx2
#define GHN_FAST_VECTOR_BYTES 32
#include "gated_gnn_kernels.inc"
#undef GHN_FAST_ISA
#undef GHN_FAST_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif
#define GHN_FAST_ISA avx512
#define GHN_FAST_VECTOR_BYTES 64
#include "gated_gnn_kernels.inc"
#undef GHN_FAST_ISA
#undef GHN_FAST_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // GHN_FAST_WIDE

namespace ghn_fast {

template <class T>
const GatedGnnKernels<T>& gated_gnn_kernels() {
#if defined(GHN_FAST_WIDE)
  if (isa() == Isa::kAvx512) return avx512::kKernels<T>;
  if (isa() == Isa::kAvx2) return avx2::kKernels<T>;
#endif
  return baseline::kKernels<T>;
}

template const GatedGnnKernels<float>& gated_gnn_kernels<float>();
template const GatedGnnKernels<double>& gated_gnn_kernels<double>();

}  // namespace ghn_fast

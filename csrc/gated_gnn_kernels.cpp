#include "gated_gnn_kernels.h"

#include <cstring>

#include "cpu.h"

#if !defined(__GNUC__)
#error "the kernels are written with the vector types of GCC and Clang"
#endif

#define GHN_FAST_INLINE inline __attribute__((always_inline))

#define GHN_FAST_ISA baseline
#define GHN_FAST_VECTOR_BYTES 16
#include "gated_gnn_kernels.inc"
#undef GHN_FAST_ISA
#undef GHN_FAST_VECTOR_BYTES

#if defined(__x86_64__)

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

#endif  // __x86_64__

namespace ghn_fast {

template <class T>
const GatedGnnKernels<T>& gated_gnn_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return avx512::kKernels<T>;
  if (isa() == Isa::kAvx2) return avx2::kKernels<T>;
#endif
  return baseline::kKernels<T>;
}

template const GatedGnnKernels<float>& gated_gnn_kernels<float>();
template const GatedGnnKernels<double>& gated_gnn_kernels<double>();

}  // namespace ghn_fast

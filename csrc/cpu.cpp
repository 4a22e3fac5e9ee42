#include "cpu.h"

#include <atomic>
#include <stdexcept>

namespace ghn_fast {
namespace {

Isa widest_isa() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(GHN_FAST_PORTABLE_VECTORS)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> chosen{widest_isa()};
  return chosen;
}

}  // namespace

Isa isa() { return chosen_isa().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

void use_isa(const std::string& name) {
  for (const Isa candidate : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name != isa_name(candidate)) continue;
    if (candidate > widest_isa()) break;
    chosen_isa().store(candidate, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("this processor has no instructions \"" + name + "\"; it has up to " +
                              isa_name(widest_isa()));
}

}  // namespace ghn_fast

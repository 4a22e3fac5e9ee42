// Which vector instructions the machine has; kernels are compiled once for each.
#pragma once

#include <string>

namespace ghn_fast {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// What kernels are chosen by: the widest instructions that this processor has and that kernels
// exist for, or what use_isa set.
Isa isa();

const char* isa_name(Isa isa);

// Makes kernels be chosen for the instructions of that name (baseline, avx2, avx512), for tests
// and measurements. Throws std::invalid_argument for one that this processor lacks.
void use_isa(const std::string& name);

}  // namespace ghn_fast

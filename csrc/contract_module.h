// Binding of contract().
#pragma once

#include <pybind11/pybind11.h>

namespace ghn_fast {

void bind_contract(pybind11::module_& m);

}  // namespace ghn_fast

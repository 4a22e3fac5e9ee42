// Python bindings of the DeepNets-1M sources, called by module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace ghn_fast::deepnets {

void bind(pybind11::module_& m);

}  // namespace ghn_fast::deepnets

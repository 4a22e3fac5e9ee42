#include "contract_module.h"

#include <pybind11/numpy.h>
#include <pybind11/typing.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "contract.h"

namespace py = pybind11;

namespace ghn_fast {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

using Indices = py::array_t<std::int64_t>;

Indices as_array(const std::vector<std::int64_t>& values) {
  return Indices(static_cast<py::ssize_t>(values.size()), values.data());
}

// Returns (nodes, edges as a flat list of pairs, live).
py::typing::Tuple<Indices, Indices, py::array_t<std::uint8_t>> contract_arrays(
    const Array<std::uint8_t>& kinds, const Array<std::int64_t>& offsets,
    const Array<std::int64_t>& operands, const Array<std::int64_t>& outputs) {
  if (kinds.ndim() != 1 || offsets.ndim() != 1 || operands.ndim() != 1 || outputs.ndim() != 1) {
    throw std::invalid_argument("all arrays must have one dimension");
  }
  if (offsets.size() != kinds.size() + 1 || offsets.at(0) != 0 ||
      offsets.at(kinds.size()) != operands.size()) {
    throw std::invalid_argument("offsets must begin at 0 and end at the number of operands");
  }
  const Records records{kinds.data(), static_cast<std::size_t>(kinds.size()), offsets.data(),
                        operands.data()};
  const std::int64_t* output_data = outputs.data();
  const auto num_outputs = static_cast<std::size_t>(outputs.size());
  Contraction result;
  {
    py::gil_scoped_release release;
    result = contract(records, output_data, num_outputs);
  }
  const py::array_t<std::uint8_t> live(static_cast<py::ssize_t>(result.live.size()),
                                       result.live.data());
  return py::make_tuple(as_array(result.nodes), as_array(result.edges), live);
}

}  // namespace

void bind_contract(py::module_& m) {
  m.def("contract", &contract_arrays, py::arg("kinds"), py::arg("offsets"), py::arg("operands"),
        py::arg("outputs"));
}

}  // namespace ghn_fast

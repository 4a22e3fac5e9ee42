// Loops over independent tasks.
#pragma once

#include <cstddef>
#include <exception>

namespace ghn_fast {

// Calls task(i) for each i below count, on up to num_threads threads, and rethrows the first
// exception that a task threw, after all have ended (none may leave an OpenMP region).
template <class Task>
void parallel_for(std::size_t count, [[maybe_unused]] int num_threads, const Task& task) {
  std::exception_ptr error;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) \
    num_threads(num_threads) if (num_threads > 1 && count > 1)
#endif
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(count); ++i) {
    try {
      task(static_cast<std::size_t>(i));
    } catch (...) {
#ifdef _OPENMP
#pragma omp critical(ghn_fast_parallel_for)
#endif
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace ghn_fast

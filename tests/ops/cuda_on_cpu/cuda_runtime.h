// As much of CUDA as kernels without shared memory and barriers need, on the CPU: the threads of a
// grid run one after the other, in an order that no kernel may lean on (the last first).
#pragma once

#include <algorithm>
#include <cstddef>

#define __global__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

using std::min;

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  if (gridDim.x == 0 || gridDim.y == 0 || gridDim.y > 65535 || blockDim.x > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  for (blockIdx.y = gridDim.y; blockIdx.y-- > 0;) {
    for (blockIdx.x = gridDim.x; blockIdx.x-- > 0;) {
      for (threadIdx.x = blockDim.x; threadIdx.x-- > 0;) kernel(arguments...);
    }
  }
  return cudaSuccess;
}

// The launch of kernels, which compute nothing, and the registration of the code in torch's
// libraries. Mirrors the "Execution Control" and "Library Management" parts of the CUDA runtime, and
// the functions with two underscores that nvcc's host code calls.
#include <stdio.h>
#include <stdlib.h>

#include <atomic>

#include "runtime.h"

namespace sim {
namespace {

std::atomic<uint64_t> launches{0};

// The oldest compute capability in LABKIT_SIM_ARCHITECTURES ("sm_75 sm_80"), else in this build of
// torch: 75 for 7.5. The build script passes the latter in.
int find_oldest_architecture() {
  const char* listed = getenv("LABKIT_SIM_ARCHITECTURES");
  int oldest = OLDEST_ARCHITECTURE, number = 0;
  if (listed && sscanf(listed, "sm_%d", &number) == 1) oldest = number;
  return oldest;
}

bool has_code_for(const Gpu& gpu) {
  static const int oldest = find_oldest_architecture();
  return gpu.major * 10 + gpu.minor >= oldest;
}

}  // namespace

uint64_t kernel_nanoseconds() {
  static const uint64_t length = read_number("LABKIT_SIM_KERNEL_NS", 0);
  return length;
}

cudaError_t launch(cudaStream_t stream) {
  if (cudaError_t error = enter()) return error;
  if (!has_code_for(gpu_of(current_device()))) return note(cudaErrorNoKernelImageForDevice);
  launches++;
  submit(stream, kernel_nanoseconds());
  return cudaSuccess;
}

}  // namespace sim

using namespace sim;

// For tests: how many kernels this process has launched.
EXPORTED uint64_t labkit_sim_count_launches() { return launches; }

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch(stream);
}

EXPORTED cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t,
                                        cudaStream_t stream) {
  return launch(stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void*, void**) {
  return launch(configuration->stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t,
                                        cudaStream_t stream) {
  return launch(stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  if (cudaError_t error = enter()) return error;
  const Gpu& gpu = gpu_of(current_device());
  *found = {};
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = gpu.major * 10 + gpu.minor;
  found->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**,
                                unsigned, cudaLibraryOption*, void**, unsigned) {
  *library = reinterpret_cast<cudaLibrary_t>(new char);
  return cudaSuccess;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) {
  delete reinterpret_cast<char*>(library);
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char*) {
  *kernel = reinterpret_cast<cudaKernel_t>(new char);
  return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
  return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// What nvcc writes into the host code of each library with kernels.

EXPORTED cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

EXPORTED char __cudaInitModule(void**) { return 1; }

EXPORTED void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
EXPORTED void __cudaRegisterFatBinaryEnd(void**) {}
EXPORTED void __cudaUnregisterFatBinary(void** handle) { delete handle; }
EXPORTED void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*,
                                     void*, void*, int*) {}
EXPORTED void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

namespace {

struct LaunchConfiguration {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};

thread_local std::vector<LaunchConfiguration> configurations;

}  // namespace

EXPORTED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                              CUstream_st* stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

EXPORTED cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                                void* stream) {
  if (configurations.empty()) return note(cudaErrorInvalidValue);
  const LaunchConfiguration& last = configurations.back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *static_cast<void**>(stream) = last.stream;
  configurations.pop_back();
  return cudaSuccess;
}

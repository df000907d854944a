// What CUDA says of a device: properties and attributes. Mirrors cudaGetDeviceProperties,
// cudaDeviceGetAttribute and the queries around them. The limits are those of an A100 where they do
// not depend on the GPU.
#include <stdio.h>
#include <string.h>

#include "runtime.h"

namespace sim {
namespace {

constexpr int MOST_THREADS = 1024, WARP = 32, REGISTERS = 65536, SHARED_BYTES = 49152;
constexpr int GRID_X = 2147483647, GRID_YZ = 65535;
constexpr int MULTIPROCESSOR_THREADS = 2048, MULTIPROCESSOR_BLOCKS = 32;
constexpr int MULTIPROCESSOR_SHARED_BYTES = 167936, L2_BYTES = 40 << 20, BUS_BITS = 5120;
constexpr int CLOCK_KHZ = 1410000, MEMORY_CLOCK_KHZ = 1215000, COPY_ENGINES = 3;

int most_shared_bytes(const Gpu& gpu) { return gpu.major >= 8 ? 166912 : 65536; }
int pci_bus(int device) { return gpu_index(device) + 1; }

}  // namespace

int read_attribute(int attribute, int device) {
  const Gpu& gpu = gpu_of(device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return MOST_THREADS;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX:
    case cudaDevAttrMaxPitch: return GRID_X;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return GRID_YZ;
    case cudaDevAttrMaxSharedMemoryPerBlock: return SHARED_BYTES;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return WARP;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return REGISTERS;
    case cudaDevAttrClockRate: return CLOCK_KHZ;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrMultiProcessorCount: return gpu.multiprocessors;
    case cudaDevAttrIntegrated: return gpu.integrated;
    case cudaDevAttrPciBusId: return pci_bus(device);
    case cudaDevAttrMemoryClockRate: return MEMORY_CLOCK_KHZ;
    case cudaDevAttrGlobalMemoryBusWidth: return BUS_BITS;
    case cudaDevAttrL2CacheSize: return L2_BYTES;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return MULTIPROCESSOR_THREADS;
    case cudaDevAttrAsyncEngineCount: return COPY_ENGINES;
    case cudaDevAttrComputeCapabilityMajor: return gpu.major;
    case cudaDevAttrComputeCapabilityMinor: return gpu.minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return MULTIPROCESSOR_SHARED_BYTES;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return most_shared_bytes(gpu);
    case cudaDevAttrMaxBlocksPerMultiprocessor: return MULTIPROCESSOR_BLOCKS;
    case CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED:
    case cudaDevAttrPageableMemoryAccess: return 0;
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED: return 1;
  }
  return 0;
}

}  // namespace sim

using namespace sim;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (cudaError_t error = begin()) return error;
  if (!is_device(device)) return note(cudaErrorInvalidDevice);
  *value = read_attribute(attribute, device);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (cudaError_t error = begin()) return error;
  if (!is_device(device)) return note(cudaErrorInvalidDevice);
  const Gpu& gpu = gpu_of(device);
  *found = {};
  snprintf(found->name, sizeof found->name, "%s", gpu.name.c_str());
  write_uuid_bytes(gpu.uuid, reinterpret_cast<unsigned char*>(&found->uuid));
  found->major = gpu.major;
  found->minor = gpu.minor;
  found->totalGlobalMem = gpu.total_bytes - gpu.reserved_bytes;
  found->multiProcessorCount = gpu.multiprocessors;
  found->integrated = gpu.integrated;
  found->pciBusID = pci_bus(device);
  found->sharedMemPerBlock = SHARED_BYTES;
  found->sharedMemPerBlockOptin = most_shared_bytes(gpu);
  found->sharedMemPerMultiprocessor = MULTIPROCESSOR_SHARED_BYTES;
  found->regsPerBlock = found->regsPerMultiprocessor = REGISTERS;
  found->warpSize = WARP;
  found->memPitch = GRID_X;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = MOST_THREADS;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = GRID_X;
  found->maxGridSize[1] = found->maxGridSize[2] = GRID_YZ;
  found->maxThreadsPerMultiProcessor = MULTIPROCESSOR_THREADS;
  found->maxBlocksPerMultiProcessor = MULTIPROCESSOR_BLOCKS;
  found->totalConstMem = 65536;
  found->textureAlignment = 512;
  found->texturePitchAlignment = 32;
  found->memoryBusWidth = BUS_BITS;
  found->l2CacheSize = L2_BYTES;
  found->asyncEngineCount = COPY_ENGINES;
  found->canMapHostMemory = found->concurrentKernels = found->unifiedAddressing = 1;
  found->streamPrioritiesSupported = found->managedMemory = found->cooperativeLaunch = 1;
  found->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  if (!is_device(device)) return note(cudaErrorInvalidDevice);
  snprintf(text, length, "0000:%02x:00.0", pci_bus(device));
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (cudaError_t error = enter()) return error;
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit) {
  *value = 1024;
  return cudaSuccess;
}

// The driver's own pool of each device, which PYTORCH_ALLOC_CONF=backend:cudaMallocAsync uses.
// Mirrors the "Stream Ordered Memory Allocator" part of the CUDA runtime: a pool takes memory from
// the device in steps and keeps it until it is trimmed.
#include <string.h>
#include <sys/mman.h>

#include "runtime.h"

namespace {

constexpr size_t POOL_STEP = 32 * sim::MIB;
constexpr uintptr_t FIRST_HANDLE = 0x1000;

struct Pool {
  size_t used = 0, reserved = 0, most_used = 0, most_reserved = 0;
};

Pool pools[sim::MOST_GPUS];

int device_of(cudaMemPool_t handle) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(handle) - FIRST_HANDLE);
}

bool grow(Pool& pool, int device, size_t wanted) {
  if (wanted <= pool.reserved) return true;
  const size_t reserved = sim::round_up(wanted, POOL_STEP);
  if (wanted > sim::MOST_REQUEST ||
      !sim::charge(sim::gpu_index(device), reserved - pool.reserved))
    return false;
  pool.reserved = reserved;
  pool.most_reserved = std::max(pool.most_reserved, reserved);
  return true;
}

}  // namespace

using namespace sim;

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  if (cudaError_t error = enter_context(device)) return error;
  *pool = reinterpret_cast<cudaMemPool_t>(FIRST_HANDLE + device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
  return cudaDeviceGetDefaultMemPool(pool, device);
}

cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t) { return cudaSuccess; }

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) {
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
  Locked locked(process_lock());
  const Pool& pool = pools[device_of(handle)];
  uint64_t* bytes = static_cast<uint64_t*>(value);
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold: *bytes = UINT64_MAX; break;
    case cudaMemPoolAttrReservedMemCurrent: *bytes = pool.reserved; break;
    case cudaMemPoolAttrReservedMemHigh: *bytes = pool.most_reserved; break;
    case cudaMemPoolAttrUsedMemCurrent: *bytes = pool.used; break;
    case cudaMemPoolAttrUsedMemHigh: *bytes = pool.most_used; break;
    default: *static_cast<int*>(value) = 1;
  }
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void*) {
  Locked locked(process_lock());
  Pool& pool = pools[device_of(handle)];
  if (attribute == cudaMemPoolAttrReservedMemHigh) pool.most_reserved = pool.reserved;
  if (attribute == cudaMemPoolAttrUsedMemHigh) pool.most_used = pool.used;
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t handle, size_t keep) {
  Locked locked(process_lock());
  const int device = device_of(handle);
  Pool& pool = pools[device];
  const size_t kept = round_up(std::max(pool.used, keep), POOL_STEP);
  if (kept >= pool.reserved) return cudaSuccess;
  charge(gpu_index(device), -static_cast<int64_t>(pool.reserved - kept));
  pool.reserved = kept;
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t) {
  if (cudaError_t error = enter()) return error;
  *address = nullptr;
  if (!bytes) return cudaSuccess;
  Locked locked(process_lock());
  const int device = current_device();
  Pool& pool = pools[device];
  const size_t held = round_up(bytes, SMALL_GRAIN);
  if (!grow(pool, device, pool.used + held)) return note(cudaErrorMemoryAllocation);
  *address = map_pages(held, HOST_PAGE);
  if (!*address) return note(cudaErrorMemoryAllocation);
  add_range(*address, {held, device, Kind::pool});
  pool.used += held;
  pool.most_used = std::max(pool.most_used, pool.used);
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t) {
  Locked locked(process_lock());
  if (const std::optional<Range> range = drop_range(address)) {
    munmap(address, round_up(range->bytes, HOST_PAGE));
    pools[range->device].used -= range->bytes;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* value) {
  *static_cast<uint64_t*>(value) = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void*) {
  return cudaSuccess;
}

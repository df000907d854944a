// Virtual memory of the driver API, which PYTORCH_ALLOC_CONF=expandable_segments:True uses: reserve
// addresses, create memory, map it there. Mirrors the "Virtual Memory Management" part of cuda.h,
// and its plain allocations.
#include <sys/mman.h>

#include "runtime.h"

using namespace sim;

namespace {

struct Physical {
  size_t bytes;
  int device;
  int references;
};

std::map<uintptr_t, Physical*>& mappings() {
  static auto& all = *new std::map<uintptr_t, Physical*>;
  return all;
}

void* at(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

Physical* physical_of(CUmemGenericAllocationHandle handle) {
  return reinterpret_cast<Physical*>(static_cast<uintptr_t>(handle));
}

void release(Physical* physical) {
  if (--physical->references) return;
  charge(gpu_index(physical->device), -static_cast<int64_t>(physical->bytes));
  delete physical;
}

}  // namespace

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  *bytes = DEVICE_PAGE;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr,
                             unsigned long long) {
  void* mapped = map_pages(bytes, DEVICE_PAGE);
  if (!mapped || mprotect(mapped, bytes, PROT_NONE)) return CUDA_ERROR_OUT_OF_MEMORY;
  add_range(mapped, {bytes, current_device(), Kind::reserved});
  *address = reinterpret_cast<CUdeviceptr>(mapped);
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  drop_range(at(address));
  munmap(at(address), bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                     const CUmemAllocationProp* properties, unsigned long long) {
  const int device = properties->location.id;
  if (cudaError_t error = enter_context(device)) return static_cast<CUresult>(error);
  Locked locked(process_lock());
  if (!charge(gpu_index(device), bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = reinterpret_cast<uintptr_t>(new Physical{bytes, device, 1});
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  Locked locked(process_lock());
  release(physical_of(handle));
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  mprotect(at(address), bytes, PROT_READ | PROT_WRITE);
  Locked locked(process_lock());
  physical_of(handle)->references++;
  mappings()[address] = physical_of(handle);
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  // New pages in the place of the old ones: what was there is gone.
  mmap(at(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  Locked locked(process_lock());
  auto first = mappings().lower_bound(address), last = mappings().lower_bound(address + bytes);
  for (auto one = first; one != last; ++one) release(one->second);
  mappings().erase(first, last);
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return CUDA_SUCCESS; }

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr inside) {
  const std::optional<Found> found = find_range(at(inside));
  if (!found) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = found->base;
  if (bytes) *bytes = found->range.bytes;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  const std::optional<Found> found = find_range(at(address));
  if (!found) return CUDA_ERROR_INVALID_VALUE;
  const bool on_host = found->range.kind == Kind::pinned || found->range.kind == Kind::registered;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(value) = found->range.device; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(value) = address; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = on_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    default: *static_cast<int*>(value) = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  return static_cast<CUresult>(cudaMalloc(reinterpret_cast<void**>(address), bytes));
}

CUresult cuMemFree(CUdeviceptr address) { return static_cast<CUresult>(cudaFree(at(address))); }

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  return static_cast<CUresult>(cudaMemGetInfo(free, total));
}

CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream) {
  std::fill_n(static_cast<unsigned*>(at(address)), count, value);
  return CUDA_SUCCESS;
}

// Memory of devices and pinned memory of the host. Mirrors the "Memory Management" part of the CUDA
// runtime: device memory is memory of the host, given out in the driver's pages and charged to the
// GPU in the ledger.
#include <string.h>
#include <sys/mman.h>

#include "runtime.h"

namespace sim {
namespace {

constexpr uint64_t COPY_START_NS = 3000;
constexpr size_t SYMBOL_BYTES = 65536;

std::map<uintptr_t, Range>& ranges() {
  static auto& all = *new std::map<uintptr_t, Range>;
  return all;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t handle, bool waits) {
  if (cudaError_t error = enter()) return error;
  if (waits)
    if (cudaError_t error = refuse_in_capture("cudaMemcpy")) return error;
  Stream& stream = stream_of(handle);
  perform_late_copies();
  if (!waits && bytes && !stream.capture && stream.busy_until > now()) {
    const std::optional<Found> source = find_range(from);
    const bool pinned = source && (source->range.kind == Kind::pinned ||
                                   source->range.kind == Kind::registered);
    if (pinned) {
      add_late_copy(to, from, bytes);
      return cudaSuccess;
    }
  }
  const uint64_t rate = read_number("LABKIT_SIM_COPY_GBPS", 0);  // 0: copies take no time
  submit(handle, rate ? COPY_START_NS + bytes / rate : 0, [=] { memmove(to, from, bytes); });
  if (waits) sleep_until(stream.busy_until);
  return cudaSuccess;
}

}  // namespace

size_t round_up(size_t bytes, size_t grain) { return (bytes + grain - 1) / grain * grain; }

void* map_pages(size_t bytes, size_t grain) {
  const size_t whole = bytes + grain;
  void* mapped = mmap(nullptr, whole, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t base = round_up(start, grain), end = base + round_up(bytes, HOST_PAGE);
  if (base > start) munmap(mapped, base - start);
  if (start + whole > end) munmap(reinterpret_cast<void*>(end), start + whole - end);
  return reinterpret_cast<void*>(base);
}

void add_range(const void* base, Range range) {
  Locked locked(process_lock());
  ranges()[reinterpret_cast<uintptr_t>(base)] = range;
}

std::optional<Found> find_range(const void* inside) {
  Locked locked(process_lock());
  const uintptr_t address = reinterpret_cast<uintptr_t>(inside);
  auto after = ranges().upper_bound(address);
  if (after == ranges().begin()) return std::nullopt;
  const auto& [base, range] = *--after;
  if (address >= base + range.bytes) return std::nullopt;
  return Found{base, range};
}

std::optional<Range> drop_range(const void* base) {
  Locked locked(process_lock());
  auto found = ranges().find(reinterpret_cast<uintptr_t>(base));
  if (found == ranges().end()) return std::nullopt;
  const Range range = found->second;
  ranges().erase(found);
  return range;
}

}  // namespace sim

using namespace sim;

cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (cudaError_t error = enter()) return error;
  if (cudaError_t error = refuse_in_capture("cudaMalloc")) return error;
  *address = nullptr;
  if (!bytes) return cudaSuccess;
  Locked locked(process_lock());
  const int device = current_device();
  const size_t held = round_up(bytes, bytes >= MIB ? DEVICE_PAGE : SMALL_GRAIN);
  if (held < bytes || held > MOST_REQUEST || !charge(gpu_index(device), held)) {
    trace("cudaMalloc of %zu: out of memory", bytes);
    return note(cudaErrorMemoryAllocation);
  }
  *address = map_pages(held, bytes >= MIB ? DEVICE_PAGE : HOST_PAGE);
  if (!*address) {
    charge(gpu_index(device), -static_cast<int64_t>(held));
    return note(cudaErrorMemoryAllocation);
  }
  add_range(*address, {held, device, Kind::device});
  trace("cudaMalloc of %zu on device %d: %p", bytes, device, *address);
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (cudaError_t error = enter()) return error;
  if (!address) return cudaSuccess;
  if (cudaError_t error = refuse_in_capture("cudaFree")) return error;
  const std::optional<Range> range = drop_range(address);
  if (!range) return note(cudaErrorInvalidValue);
  munmap(address, round_up(range->bytes, HOST_PAGE));
  charge(gpu_index(range->device), -static_cast<int64_t>(range->bytes));
  trace("cudaFree of %p, %zu bytes", address, range->bytes);
  return cudaSuccess;
}

cudaError_t cudaMallocManaged(void** address, size_t bytes, unsigned) {
  return cudaMalloc(address, bytes);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (cudaError_t error = enter()) return error;
  const Gpu& gpu = gpu_of(current_device());
  const uint64_t used = used_bytes(gpu_index(current_device()));
  *total = gpu.total_bytes - gpu.reserved_bytes;
  *free = used > *total ? 0 : *total - used;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  if (cudaError_t error = enter()) return error;
  if (cudaError_t error = refuse_in_capture("cudaHostAlloc")) return error;
  const size_t held = round_up(bytes ? bytes : 1, HOST_PAGE);
  *address = map_pages(held, HOST_PAGE);
  if (!*address) return note(cudaErrorMemoryAllocation);
  add_range(*address, {held, current_device(), Kind::pinned});
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

cudaError_t cudaFreeHost(void* address) {
  if (is_forked()) return note(cudaErrorInitializationError);
  if (const std::optional<Range> range = drop_range(address)) munmap(address, range->bytes);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  add_range(address, {bytes, current_device(), Kind::registered});
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* address) {
  return drop_range(address) ? cudaSuccess : note(cudaErrorInvalidValue);
}

cudaError_t cudaHostGetDevicePointer(void** device_address, void* address, unsigned) {
  *device_address = address;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  if (cudaError_t error = begin()) return error;
  void* plain = const_cast<void*>(address);
  *found = {};
  const std::optional<Found> in = find_range(address);
  if (!in) {
    found->type = cudaMemoryTypeUnregistered;
    found->device = cudaInvalidDeviceId;
    found->hostPointer = plain;
    return cudaSuccess;
  }
  const bool on_host = in->range.kind == Kind::pinned || in->range.kind == Kind::registered;
  found->type = on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->device = in->range.device;
  found->devicePointer = plain;
  if (on_host) found->hostPointer = plain;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr, true);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return copy(to, from, bytes, stream, false);
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  return copy(to, from, bytes, stream, false);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; row++)
    memmove(static_cast<char*>(to) + row * to_pitch,
            static_cast<const char*>(from) + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  if (cudaError_t error = enter()) return error;
  memset(address, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  if (cudaError_t error = enter()) return error;
  submit(stream, kernel_nanoseconds(), [=] { memset(address, value, bytes); });
  return cudaSuccess;
}

// A symbol is a variable of a kernel; kernels compute nothing, so nobody reads it.
cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char room[SYMBOL_BYTES];
  *address = room;
  return cudaSuccess;
}

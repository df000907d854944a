// What the files of the simulated CUDA runtime and driver share: one process's devices, memory,
// streams and captures. Private to libcudart.so.13.
#pragma once
#include <pthread.h>

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "machine.h"

// The functions that CUDA's headers declare are the library's exports; nothing else is.
#pragma GCC visibility push(default)
#include "crt/host_defines.h"
// Types first.
#include "cuda.h"
#include "cuda_runtime_api.h"
#pragma GCC visibility pop

namespace sim {

constexpr size_t DEVICE_PAGE = 2 * MIB;   // what the driver gives out for large requests
constexpr size_t SMALL_GRAIN = 512;       // and for small ones
constexpr size_t HOST_PAGE = 4096;
constexpr size_t MOST_REQUEST = 1ull << 46;
constexpr int VERSION = CUDART_VERSION;

// ---- errors (process.cpp)
// Notes the error for cudaGetLastError and returns it.
cudaError_t note(cudaError_t error);
// Success if CUDA can be used at all: there is a device, this is no forked child, nothing broke it.
cudaError_t begin();
// Makes the context of a device if it has none.
cudaError_t enter_context(int device);
// Of the current device; what most calls do first.
cudaError_t enter();
bool is_forked();
bool has_context(int device);
int& current_device();
int count_devices();
// The machine's index of a device that CUDA_VISIBLE_DEVICES lets this process see.
int gpu_index(int device);
const Gpu& gpu_of(int device);
bool is_device(int device);
// One lock for everything that this process's threads share.
std::recursive_mutex& process_lock();
using Locked = std::lock_guard<std::recursive_mutex>;

// ---- devices (devices.cpp)
int read_attribute(int attribute, int device);

// ---- memory (memory.cpp)
enum class Kind { device, pool, pinned, registered, reserved };
struct Range {
  size_t bytes;
  int device;
  Kind kind;
};
struct Found {
  uintptr_t base;
  Range range;
};
size_t round_up(size_t bytes, size_t grain);
// Memory of the host that reads as zero, at a multiple of `grain`; nullptr if there is none.
void* map_pages(size_t bytes, size_t grain);
void add_range(const void* base, Range range);
std::optional<Found> find_range(const void* inside);
std::optional<Range> drop_range(const void* base);

// ---- streams and events (streams.cpp)
struct Capture;
struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  uint64_t busy_until = 0;  // ns of the monotonic clock
  Capture* capture = nullptr;
};
struct Event {
  uint64_t ready_at = 0;
  bool recorded = false;
  Capture* capture = nullptr;
};
// The default stream of the current device for the handles 0, 1 and 2.
Stream& stream_of(cudaStream_t handle);
// Does work in a stream, which is then busy for this long; a node if the stream is being captured.
void submit(cudaStream_t handle, uint64_t nanoseconds, const std::function<void()>& work = {});
uint64_t now();
void sleep_until(uint64_t time);
// Performs the copies from pinned memory that waited behind other work.
void perform_late_copies();
void add_late_copy(void* to, const void* from, size_t bytes);
void end_capture_of_streams(const Capture* capture);

// ---- capture of graphs (graphs.cpp)
using Work = std::function<void()>;
struct Graph {
  struct Owned {
    cudaHostFn_t destroy;
    void* object;
  };
  std::vector<Work> nodes;  // what a launch does; a kernel's is empty
  std::vector<Owned> owned;
};
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  Graph* graph;
};
// An error, and the capture is spoiled, if a call that waits or allocates comes during a capture.
cudaError_t refuse_in_capture(const char* call);

// ---- kernels (kernels.cpp)
cudaError_t launch(cudaStream_t stream);
uint64_t kernel_nanoseconds();

}  // namespace sim

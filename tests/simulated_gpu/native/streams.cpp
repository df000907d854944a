// Streams and events. Mirrors the "Stream Management" and "Event Management" parts of the CUDA
// runtime. A stream is only a time until which it is busy; work is done when it is submitted, except
// for copies from pinned memory behind other work, which read their source later, as on a GPU.
#include <time.h>

#include <algorithm>

#include "runtime.h"

namespace sim {
namespace {

constexpr uint64_t SECOND_NS = 1000000000;
constexpr uintptr_t LAST_DEFAULT_HANDLE = 2;  // 0 and 1: the legacy stream, 2: the thread's own

struct LateCopy {
  void* to;
  const void* from;
  size_t bytes;
};

Stream defaults[MOST_GPUS];

std::vector<Stream*>& streams() {
  static auto& all = *new std::vector<Stream*>;
  return all;
}

std::vector<LateCopy>& late_copies() {
  static auto& all = *new std::vector<LateCopy>;
  return all;
}

bool is_default(cudaStream_t handle) {
  return reinterpret_cast<uintptr_t>(handle) <= LAST_DEFAULT_HANDLE;
}

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

// To ask or wait for a stream spoils its capture.
cudaError_t refuse_if_captured(Stream& stream, const char* call) {
  if (stream.capture) {
    stream.capture->status = cudaStreamCaptureStatusInvalidated;
    return note(cudaErrorStreamCaptureUnsupported);
  }
  return refuse_in_capture(call);
}

}  // namespace

uint64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * SECOND_NS + time.tv_nsec;
}

void sleep_until(uint64_t time) {
  const uint64_t current = now();
  if (time <= current) return;
  const timespec left = {static_cast<time_t>((time - current) / SECOND_NS),
                         static_cast<long>((time - current) % SECOND_NS)};
  nanosleep(&left, nullptr);
}

Stream& stream_of(cudaStream_t handle) {
  return is_default(handle) ? defaults[current_device()] : *reinterpret_cast<Stream*>(handle);
}

void add_late_copy(void* to, const void* from, size_t bytes) {
  Locked locked(process_lock());
  late_copies().push_back({to, from, bytes});
}

void perform_late_copies() {
  Locked locked(process_lock());
  for (const LateCopy& copy : late_copies())
    std::copy_n(static_cast<const char*>(copy.from), copy.bytes, static_cast<char*>(copy.to));
  late_copies().clear();
}

void submit(cudaStream_t handle, uint64_t nanoseconds, const std::function<void()>& work) {
  perform_late_copies();
  Stream& stream = stream_of(handle);
  if (stream.capture) {
    stream.capture->graph->nodes.push_back(work);
    return;
  }
  if (work) work();
  stream.busy_until = std::max(stream.busy_until, now()) + nanoseconds;
}

void end_capture_of_streams(const Capture* capture) {
  Locked locked(process_lock());
  for (Stream* stream : streams())
    if (stream->capture == capture) stream->capture = nullptr;
  for (Stream& stream : defaults)
    if (stream.capture == capture) stream.capture = nullptr;
}

}  // namespace sim

using namespace sim;

// For the math libraries: their work goes into a stream as a kernel's does.
EXPORTED void labkit_sim_submit(void* stream, uint64_t nanoseconds) {
  submit(static_cast<cudaStream_t>(stream), nanoseconds);
}

cudaError_t cudaDeviceSynchronize() {
  if (cudaError_t error = enter()) return error;
  if (cudaError_t error = refuse_in_capture("cudaDeviceSynchronize")) return error;
  uint64_t latest = defaults[current_device()].busy_until;
  {
    Locked locked(process_lock());
    for (const Stream* stream : streams())
      if (stream->device == current_device()) latest = std::max(latest, stream->busy_until);
  }
  sleep_until(latest);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
  if (cudaError_t error = enter()) return error;
  Locked locked(process_lock());
  Stream* stream = new Stream{current_device(), flags, priority};
  streams().push_back(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  return cudaStreamCreateWithPriority(handle, 0, 0);
}

// Not freed: torch keeps its streams for the whole process.
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = stream_of(stream).priority;
  return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  *flags = stream_of(stream).flags;
  return cudaSuccess;
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  *device = is_default(stream) ? current_device() : stream_of(stream).device;
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  if (cudaError_t error = enter()) return error;
  Stream& stream = stream_of(handle);
  if (cudaError_t error = refuse_if_captured(stream, "cudaStreamQuery")) return error;
  return stream.busy_until > now() ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (cudaError_t error = enter()) return error;
  Stream& stream = stream_of(handle);
  if (cudaError_t error = refuse_if_captured(stream, "cudaStreamSynchronize")) return error;
  sleep_until(stream.busy_until);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  Stream& stream = stream_of(handle);
  const Event& awaited = event_of(event);
  if (awaited.capture) stream.capture = awaited.capture;  // the stream joins the capture
  else stream.busy_until = std::max(stream.busy_until, awaited.ready_at);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (cudaError_t error = enter()) return error;
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) {
  Event& event = event_of(handle);
  const Stream& stream = stream_of(on);
  event.capture = stream.capture;
  if (stream.capture) return cudaSuccess;
  event.ready_at = std::max(stream.busy_until, now());
  event.recorded = true;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  const Event& event = event_of(handle);
  if (event.capture) return note(cudaErrorStreamCaptureUnsupported);
  if (cudaError_t error = refuse_in_capture("cudaEventQuery")) return error;
  return event.recorded && event.ready_at > now() ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  const Event& event = event_of(handle);
  if (cudaError_t error = refuse_in_capture("cudaEventSynchronize")) return error;
  if (event.recorded) sleep_until(event.ready_at);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const Event &start = event_of(from), &end = event_of(to);
  if (!start.recorded || !end.recorded) return note(cudaErrorInvalidResourceHandle);
  if (std::max(start.ready_at, end.ready_at) > now()) return cudaErrorNotReady;
  *milliseconds = (static_cast<double>(end.ready_at) - static_cast<double>(start.ready_at)) / 1e6;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (!stream_of(stream).capture) function(data);
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data,
                                  unsigned) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

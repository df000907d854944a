// How a process starts CUDA: visible devices and their order, contexts, errors, and the end.
// Mirrors the "Device Management" and "Error Handling" parts of the CUDA runtime, and how
// CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <utility>

#include "runtime.h"

namespace sim {
namespace {

constexpr uint64_t CONTEXT_MIB = 400;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current = 0;
pid_t started_by = 0;
bool contexts[MOST_GPUS];
std::atomic<int> sticky_error{cudaSuccess};

// What CUDA counts: a lost GPU is left out, and a split one is its first MIG instance.
std::vector<int> list_candidates() {
  std::vector<int> found;
  for (int gpu = 0; gpu < static_cast<int>(gpus().size()); gpu++) {
    const Gpu& one = gpus()[gpu];
    if (one.lost || is_split(gpu)) continue;
    const bool another_instance = std::any_of(found.begin(), found.end(), [](int other) {
      return gpus()[other].is_instance();
    });
    if (one.is_instance() && another_instance) continue;
    found.push_back(gpu);
  }
  const char* order = getenv("CUDA_DEVICE_ORDER");
  if (!order || strcmp(order, "PCI_BUS_ID"))  // by default the fastest comes first
    std::stable_sort(found.begin(), found.end(), [](int left, int right) {
      return gpus()[left].multiprocessors > gpus()[right].multiprocessors;
    });
  return found;
}

// The GPU that one word of CUDA_VISIBLE_DEVICES names; -1 if it names none or several.
int find_named(const std::string& word, const std::vector<int>& candidates) {
  if (word.rfind("GPU-", 0) == 0 || word.rfind("MIG-", 0) == 0) {
    int found = -1, hits = 0;
    for (int gpu = 0; gpu < static_cast<int>(gpus().size()); gpu++)
      if (!gpus()[gpu].lost && !is_split(gpu) && gpus()[gpu].uuid.rfind(word, 0) == 0)
        found = gpu, hits++;
    return hits == 1 ? found : -1;
  }
  char* end;
  const long number = strtol(word.c_str(), &end, 10);
  const bool valid = end != word.c_str() && number >= 0 &&
                     number < static_cast<long>(candidates.size());
  return valid ? candidates[number] : -1;
}

// CUDA stops at the first word that names nothing, and sees nothing if a GPU is named twice.
std::vector<int> list_visible() {
  const std::vector<int> candidates = list_candidates();
  const char* listed = getenv("CUDA_VISIBLE_DEVICES");
  if (!listed) return candidates;
  std::vector<int> found;
  std::istringstream words(listed);
  for (std::string word; std::getline(words, word, ',');) {
    word.erase(0, word.find_first_not_of(' '));
    const int gpu = find_named(word, candidates);
    if (gpu < 0) break;
    if (std::count(found.begin(), found.end(), gpu)) return {};
    found.push_back(gpu);
  }
  return found;
}

const std::vector<int>& visible() {
  static const std::vector<int>& found = *new std::vector<int>(list_visible());
  return found;
}

__attribute__((destructor)) void leave_at_end() {
  if (started_by == getpid()) leave_ledger();
}

}  // namespace

std::recursive_mutex& process_lock() {
  static std::recursive_mutex& lock = *new std::recursive_mutex;
  return lock;
}

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

int& current_device() { return current; }
int count_devices() { return static_cast<int>(visible().size()); }
int gpu_index(int device) { return visible()[device]; }
const Gpu& gpu_of(int device) { return gpus()[gpu_index(device)]; }
bool is_device(int device) { return device >= 0 && device < count_devices(); }
bool is_forked() { return started_by && started_by != getpid(); }
bool has_context(int device) { return !is_forked() && is_device(device) && contexts[device]; }

cudaError_t begin() {
  if (sticky_error) return note(static_cast<cudaError_t>(sticky_error.load()));
  if (is_forked()) return note(cudaErrorInitializationError);
  if (!count_devices()) return note(cudaErrorNoDevice);
  // The real runtime loads the driver's library when it starts; labkit looks for that.
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  (void)driver;
  return cudaSuccess;
}

cudaError_t enter_context(int device) {
  if (cudaError_t error = begin()) return error;
  if (!is_device(device)) return note(cudaErrorInvalidDevice);
  Locked locked(process_lock());
  if (contexts[device]) return cudaSuccess;
  started_by = getpid();
  if (!charge(gpu_index(device), read_number("LABKIT_SIM_CONTEXT_MIB", CONTEXT_MIB) * MIB))
    return note(cudaErrorMemoryAllocation);
  contexts[device] = true;
  trace("context on device %d", device);
  return cudaSuccess;
}

cudaError_t enter() { return enter_context(current); }

}  // namespace sim

using namespace sim;

// For tests: from now on every call fails, as after an illegal access or a device-side assertion.
EXPORTED void labkit_sim_break(int error) { sticky_error = error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = count_devices();
  return begin();
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return begin();
}

cudaError_t cudaSetDevice(int device) {
  if (cudaError_t error = enter_context(device)) return error;
  current = device;
  return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return enter_context(device); }
cudaError_t cudaDeviceReset() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

namespace {

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};

// The texts are the runtime's own: labkit and torch look for them.
const ErrorText ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorSystemDriverMismatch, "cudaErrorSystemDriverMismatch",
     "system has unsupported display driver / cuda driver combination"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const ErrorText* find_text(cudaError_t error) {
  for (const ErrorText& one : ERRORS)
    if (one.error == error) return &one;
  return nullptr;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* found = find_text(error);
  return found ? found->text : "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* found = find_text(error);
  return found ? found->name : "cudaErrorUnknown";
}

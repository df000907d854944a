// libnvidia-ml.so.1: what nvidia-smi, nvidia-ml-py and torch ask of the machine. Mirrors nvml.h; the
// structures are written here, as no wheel has that header.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

using namespace sim;

namespace {

enum Result : int {
  SUCCESS = 0,
  INVALID_ARGUMENT = 2,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  GPU_IS_LOST = 15,
  ARGUMENT_VERSION_MISMATCH = 25,
};

constexpr int CUDA_VERSION_NUMBER = 13000;
constexpr const char* DRIVER_VERSION = "580.95.05";
constexpr unsigned MEMORY_V2 = 0x02000028, MOST_MIG_INSTANCES = 7, NO_INSTANCE = ~0u;
constexpr unsigned long long NOT_AVAILABLE = ~0ull;
constexpr int OLDEST_MIG_MAJOR = 8, UNCORRECTED = 1;
constexpr unsigned char FABRIC_NOT_SUPPORTED = 0;
constexpr unsigned SM_CLOCK_MHZ = 1410, MOST_SM_CLOCK_MHZ = 1410;

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};
struct Memory {
  unsigned long long total, free, used;
};
struct MemoryV2 {
  unsigned version;
  unsigned long long total, reserved, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};
struct FabricInfo {
  unsigned version;
  unsigned char cluster_uuid[16];
  int status;
  unsigned clique_id;
  unsigned char state;
};
struct ProcessV1 {
  unsigned pid;
  unsigned long long used;
};
struct Process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};

// A handle is the index in gpus() plus one: nullptr stays invalid.
using Handle = void*;
Handle handle_of(int gpu) { return reinterpret_cast<Handle>(static_cast<uintptr_t>(gpu) + 1); }
int index_of(Handle handle) { return static_cast<int>(reinterpret_cast<uintptr_t>(handle)) - 1; }
const Gpu& gpu_of(Handle handle) { return gpus()[index_of(handle)]; }

bool is_lost(Handle handle) {
  const Gpu& gpu = gpu_of(handle);
  return gpu.lost || (gpu.is_instance() && gpus()[gpu.parent].lost);
}

// NVML's indices count whole GPUs.
std::vector<int> list_whole() {
  std::vector<int> found;
  for (int gpu = 0; gpu < static_cast<int>(gpus().size()); gpu++)
    if (!gpus()[gpu].is_instance()) found.push_back(gpu);
  return found;
}

std::vector<int> list_instances(Handle parent) {
  std::vector<int> found;
  for (int gpu = 0; gpu < static_cast<int>(gpus().size()); gpu++)
    if (gpus()[gpu].parent == index_of(parent)) found.push_back(gpu);
  return found;
}

// WSL and some containers hide how much each process holds.
bool hides_processes_memory() { return getenv("LABKIT_SIM_HIDES_PROCESS_MEMORY") != nullptr; }

template <typename T>
int answer(Handle handle, T* value, T known) {
  if (is_lost(handle)) return GPU_IS_LOST;
  *value = known;
  return SUCCESS;
}

int answer_text(Handle handle, char* text, unsigned length, const std::string& known) {
  if (is_lost(handle)) return GPU_IS_LOST;
  snprintf(text, length, "%s", known.c_str());
  return SUCCESS;
}

}  // namespace

EXPORTED int nvmlInit_v2() { return static_cast<int>(read_number("LABKIT_SIM_NVML_ERROR", 0)); }
EXPORTED int nvmlInit() { return nvmlInit_v2(); }
EXPORTED int nvmlInitWithFlags(unsigned) { return nvmlInit_v2(); }
EXPORTED int nvmlShutdown() { return SUCCESS; }

EXPORTED const char* nvmlErrorString(int result) {
  switch (result) {
    case SUCCESS: return "Success";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case GPU_IS_LOST: return "GPU is lost";
  }
  return "Unknown Error";
}

EXPORTED int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  snprintf(text, length, "%s", DRIVER_VERSION);
  return SUCCESS;
}

EXPORTED int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = CUDA_VERSION_NUMBER;
  return SUCCESS;
}

EXPORTED int nvmlSystemGetCudaDriverVersion(int* version) {
  return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORTED int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = list_whole().size();
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle* handle) {
  const std::vector<int> whole = list_whole();
  if (index >= whole.size()) return INVALID_ARGUMENT;
  *handle = handle_of(whole[index]);
  return is_lost(*handle) ? GPU_IS_LOST : SUCCESS;
}

EXPORTED int nvmlDeviceGetHandleByUUID(const char* uuid, Handle* handle) {
  for (int gpu = 0; gpu < static_cast<int>(gpus().size()); gpu++)
    if (gpus()[gpu].uuid == uuid) {
      *handle = handle_of(gpu);
      return is_lost(*handle) ? GPU_IS_LOST : SUCCESS;
    }
  return NOT_FOUND;
}

EXPORTED int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, Handle* handle) {
  unsigned domain, bus;
  if (sscanf(bus_id, "%x:%x", &domain, &bus) != 2 || !bus || bus > gpus().size()) return NOT_FOUND;
  *handle = handle_of(bus - 1);
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetPciInfo_v3(Handle handle, PciInfo* found) {
  if (is_lost(handle)) return GPU_IS_LOST;
  *found = {};
  found->bus = index_of(handle) + 1;
  snprintf(found->bus_id, sizeof found->bus_id, "00000000:%02X:00.0", found->bus & 0xff);
  snprintf(found->legacy_bus_id, sizeof found->legacy_bus_id, "0000:%02X:00.0", found->bus & 0xff);
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetIndex(Handle handle, unsigned* index) {
  const std::vector<int> whole = list_whole();
  for (*index = 0; *index < whole.size(); ++*index)
    if (whole[*index] == index_of(handle)) return SUCCESS;
  return INVALID_ARGUMENT;
}

EXPORTED int nvmlDeviceGetUUID(Handle handle, char* text, unsigned length) {
  return answer_text(handle, text, length, gpu_of(handle).uuid);
}

EXPORTED int nvmlDeviceGetName(Handle handle, char* text, unsigned length) {
  return answer_text(handle, text, length, gpu_of(handle).name);
}

EXPORTED int nvmlDeviceGetCudaComputeCapability(Handle handle, int* major, int* minor) {
  *minor = gpu_of(handle).minor;
  return answer(handle, major, gpu_of(handle).major);
}

// ---- memory and processes

EXPORTED int nvmlDeviceGetMemoryInfo(Handle handle, Memory* found) {
  if (is_lost(handle)) return GPU_IS_LOST;
  const Gpu& gpu = gpu_of(handle);
  if (gpu.integrated) return NOT_SUPPORTED;
  found->total = gpu.total_bytes;
  found->used = used_bytes(index_of(handle)) + gpu.reserved_bytes;
  found->free = found->total - found->used;
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetMemoryInfo_v2(Handle handle, MemoryV2* found) {
  if (is_lost(handle)) return GPU_IS_LOST;
  const Gpu& gpu = gpu_of(handle);
  if (gpu.integrated) return NOT_SUPPORTED;
  if (found->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
  found->total = gpu.total_bytes;
  found->reserved = gpu.reserved_bytes;
  found->used = used_bytes(index_of(handle));
  found->free = found->total - found->reserved - found->used;
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned* count,
                                                     Process* listed) {
  if (is_lost(handle)) return GPU_IS_LOST;
  const std::vector<Holder> found = holders(index_of(handle));
  const unsigned room = *count;
  *count = found.size();
  if (found.size() > room) return INSUFFICIENT_SIZE;
  for (size_t at = 0; at < found.size(); at++) {
    const unsigned long long used = hides_processes_memory() ? NOT_AVAILABLE : found[at].bytes;
    listed[at] = {static_cast<unsigned>(found[at].pid), used, NO_INSTANCE, NO_INSTANCE};
  }
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetComputeRunningProcesses_v2(Handle handle, unsigned* count,
                                                     Process* listed) {
  return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, listed);
}

EXPORTED int nvmlDeviceGetComputeRunningProcesses(Handle handle, unsigned* count,
                                                  ProcessV1* listed) {
  std::vector<Process> found(MOST_PROCESSES);
  const unsigned room = *count;
  *count = found.size();
  if (int error = nvmlDeviceGetComputeRunningProcesses_v3(handle, count, found.data())) return error;
  if (*count > room) return INSUFFICIENT_SIZE;
  for (unsigned at = 0; at < *count; at++) listed[at] = {found[at].pid, found[at].used};
  return SUCCESS;
}

EXPORTED int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned* count, Process*) {
  return answer(handle, count, 0u);
}

EXPORTED int nvmlDeviceGetGraphicsRunningProcesses_v2(Handle handle, unsigned* count, Process*) {
  return answer(handle, count, 0u);
}

// ---- MIG

EXPORTED int nvmlDeviceGetMigMode(Handle handle, unsigned* current, unsigned* pending) {
  if (gpu_of(handle).major < OLDEST_MIG_MAJOR || gpu_of(handle).is_instance()) return NOT_SUPPORTED;
  *pending = is_split(index_of(handle));
  return answer(handle, current, *pending);
}

EXPORTED int nvmlDeviceGetMaxMigDeviceCount(Handle handle, unsigned* count) {
  return answer(handle, count, is_split(index_of(handle)) ? MOST_MIG_INSTANCES : 0u);
}

EXPORTED int nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, unsigned place, Handle* instance) {
  const std::vector<int> instances = list_instances(handle);
  if (place >= instances.size()) return NOT_FOUND;
  return answer(handle, instance, handle_of(instances[place]));
}

EXPORTED int nvmlDeviceIsMigDeviceHandle(Handle handle, unsigned* is_instance) {
  return answer(handle, is_instance, static_cast<unsigned>(gpu_of(handle).is_instance()));
}

EXPORTED int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle instance, Handle* parent) {
  if (!gpu_of(instance).is_instance()) return INVALID_ARGUMENT;
  return answer(instance, parent, handle_of(gpu_of(instance).parent));
}

// ---- health: what slows a GPU down, and what says that it is failing

EXPORTED int nvmlDeviceGetUtilizationRates(Handle handle, Utilization* rates) {
  return answer(handle, rates, Utilization{});
}

EXPORTED int nvmlDeviceGetCurrentClocksEventReasons(Handle handle, unsigned long long* reasons) {
  return answer(handle, reasons, gpu_of(handle).throttle_reasons);
}

EXPORTED int nvmlDeviceGetCurrentClocksThrottleReasons(Handle handle, unsigned long long* reasons) {
  return nvmlDeviceGetCurrentClocksEventReasons(handle, reasons);
}

EXPORTED int nvmlDeviceGetPowerManagementLimit(Handle handle, unsigned* milliwatts) {
  return answer(handle, milliwatts, gpu_of(handle).power_limit_mw);
}

EXPORTED int nvmlDeviceGetEnforcedPowerLimit(Handle handle, unsigned* milliwatts) {
  return nvmlDeviceGetPowerManagementLimit(handle, milliwatts);
}

EXPORTED int nvmlDeviceGetPowerManagementDefaultLimit(Handle handle, unsigned* milliwatts) {
  return answer(handle, milliwatts, gpu_of(handle).default_power_limit_mw);
}

EXPORTED int nvmlDeviceGetPowerUsage(Handle handle, unsigned* milliwatts) {
  return answer(handle, milliwatts, gpu_of(handle).power_draw_mw);
}

EXPORTED int nvmlDeviceGetTemperature(Handle handle, int, unsigned* celsius) {
  return answer(handle, celsius, gpu_of(handle).temperature);
}

EXPORTED int nvmlDeviceGetClockInfo(Handle handle, int, unsigned* megahertz) {
  return answer(handle, megahertz, SM_CLOCK_MHZ);
}

EXPORTED int nvmlDeviceGetMaxClockInfo(Handle handle, int, unsigned* megahertz) {
  return answer(handle, megahertz, MOST_SM_CLOCK_MHZ);
}

EXPORTED int nvmlDeviceGetCurrPcieLinkWidth(Handle handle, unsigned* lanes) {
  return answer(handle, lanes, gpu_of(handle).pcie_width);
}

EXPORTED int nvmlDeviceGetMaxPcieLinkWidth(Handle handle, unsigned* lanes) {
  return answer(handle, lanes, gpu_of(handle).most_pcie_width);
}

EXPORTED int nvmlDeviceGetCurrPcieLinkGeneration(Handle handle, unsigned* generation) {
  return answer(handle, generation, gpu_of(handle).pcie_generation);
}

EXPORTED int nvmlDeviceGetMaxPcieLinkGeneration(Handle handle, unsigned* generation) {
  return answer(handle, generation, gpu_of(handle).most_pcie_generation);
}

EXPORTED int nvmlDeviceGetEccMode(Handle handle, unsigned* current, unsigned* pending) {
  *pending = 1;
  return answer(handle, current, 1u);
}

EXPORTED int nvmlDeviceGetTotalEccErrors(Handle handle, int type, int, unsigned long long* count) {
  const Gpu& gpu = gpu_of(handle);
  return answer(handle, count, type == UNCORRECTED ? gpu.ecc_uncorrected : gpu.ecc_corrected);
}

// c10 looks these up at its first failed allocation.
EXPORTED int nvmlDeviceGetNvLinkRemoteDeviceType() { return NOT_SUPPORTED; }
EXPORTED int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return NOT_SUPPORTED; }
// Answered with expandable segments: there is no fabric of NVLink switches.
EXPORTED int nvmlDeviceGetGpuFabricInfoV(Handle handle, FabricInfo* found) {
  found->state = FABRIC_NOT_SUPPORTED;
  return answer(handle, &found->status, static_cast<int>(SUCCESS));
}

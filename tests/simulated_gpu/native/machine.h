// The simulated machine: its GPUs, as LABKIT_SIM_GPUS describes them, and the ledger of how much
// memory each process holds on each of them. The ledger is a file that all processes share, so that
// a process sees the others, as on a real GPU. Both the CUDA runtime and NVML are built on it.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace sim {

constexpr uint64_t MIB = 1ull << 20;
constexpr int MOST_GPUS = 16;
constexpr int MOST_PROCESSES = 512;

// One GPU, or one MIG instance of the GPU with the index `parent`.
struct Gpu {
  std::string name = "NVIDIA GPU";
  std::string uuid;
  int major = 8, minor = 0;
  uint64_t total_bytes = 0, reserved_bytes = 0;
  int multiprocessors = 64;
  int parent = -1;
  bool integrated = false;  // unified memory: NVML does not answer for it
  bool lost = false;        // fell off the bus
  // What NVML says of the GPU's health.
  unsigned long long throttle_reasons = 0;
  unsigned power_limit_mw = 400000, default_power_limit_mw = 400000, power_draw_mw = 60000;
  unsigned pcie_width = 16, most_pcie_width = 16, pcie_generation = 4, most_pcie_generation = 4;
  unsigned long long ecc_corrected = 0, ecc_uncorrected = 0;
  unsigned temperature = 35;

  bool is_instance() const { return parent >= 0; }
};

// The GPUs and then nothing else changes them: they are read once in a process.
const std::vector<Gpu>& gpus();
// True if the GPU is split into MIG instances.
bool is_split(int gpu);
// A UUID's 16 bytes; what is before the first hyphen (GPU, MIG) is left out.
void write_uuid_bytes(const std::string& uuid, unsigned char* bytes);

// The number in an environment variable, or `otherwise` if it is not set.
uint64_t read_number(const char* variable, uint64_t otherwise);
// Prints a line on stderr if LABKIT_SIM_TRACE is set.
void trace(const char* format, ...) __attribute__((format(printf, 1, 2)));

struct Holder {
  pid_t pid;
  uint64_t bytes;
};

// Adds `bytes` (negative: takes back) to what this process holds; false if it does not fit.
bool charge(int gpu, int64_t bytes);
// What all processes hold together; for a split GPU, on its instances.
uint64_t used_bytes(int gpu);
std::vector<Holder> holders(int gpu);
// Takes this process out of the ledger.
void leave_ledger();

}  // namespace sim

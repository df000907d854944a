// See machine.h. Mirrors what the kernel driver keeps for all processes: which GPUs there are, and
// who holds how much of their memory.
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sstream>

namespace sim {
namespace {

constexpr int EXIT_MISCONFIGURED = 97;
constexpr uint32_t LEDGER_VERSION = 0x51a10001;

[[noreturn]] void fail(const std::string& what) {
  fprintf(stderr, "[simulated gpu] %s\n", what.c_str());
  _exit(EXIT_MISCONFIGURED);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

void read_field(Gpu& gpu, const std::string& key, const std::string& value) {
  const unsigned long long number = strtoull(value.c_str(), nullptr, 0);
  if (key == "name") gpu.name = value;
  else if (key == "uuid") gpu.uuid = value;
  else if (key == "capability") sscanf(value.c_str(), "%d.%d", &gpu.major, &gpu.minor);
  else if (key == "total_mib") gpu.total_bytes = number * MIB;
  else if (key == "reserved_mib") gpu.reserved_bytes = number * MIB;
  else if (key == "multiprocessors") gpu.multiprocessors = static_cast<int>(number);
  else if (key == "parent") gpu.parent = static_cast<int>(number);
  else if (key == "integrated") gpu.integrated = number != 0;
  else if (key == "lost") gpu.lost = number != 0;
  else if (key == "throttle_reasons") gpu.throttle_reasons = number;
  else if (key == "power_limit_watts") gpu.power_limit_mw = number * 1000;
  else if (key == "default_power_limit_watts") gpu.default_power_limit_mw = number * 1000;
  else if (key == "power_draw_watts") gpu.power_draw_mw = number * 1000;
  else if (key == "pcie_width") gpu.pcie_width = number;
  else if (key == "most_pcie_width") gpu.most_pcie_width = number;
  else if (key == "pcie_generation") gpu.pcie_generation = number;
  else if (key == "most_pcie_generation") gpu.most_pcie_generation = number;
  else if (key == "ecc_corrected") gpu.ecc_corrected = number;
  else if (key == "ecc_uncorrected") gpu.ecc_uncorrected = number;
  else if (key == "temperature") gpu.temperature = number;
  else fail("LABKIT_SIM_GPUS has an unknown field: " + key);
}

std::vector<Gpu> read_gpus() {
  std::vector<Gpu> found;
  const char* described = getenv("LABKIT_SIM_GPUS");
  for (const std::string& text : split(described ? described : "", ';')) {
    Gpu gpu;
    for (const std::string& field : split(text, ',')) {
      const size_t at = field.find('=');
      if (at == std::string::npos) fail("LABKIT_SIM_GPUS has a field without '=': " + field);
      read_field(gpu, field.substr(0, at), field.substr(at + 1));
    }
    found.push_back(gpu);
  }
  if (found.size() > MOST_GPUS) fail("LABKIT_SIM_GPUS has more than 16 GPUs");
  return found;
}

struct Entry {
  pid_t pid;
  uint64_t bytes[MOST_GPUS];
};

struct LedgerFile {
  uint32_t version;
  Entry entries[MOST_PROCESSES];
};

// The shared file, locked while it is read or written. A lock on the open file is released by the
// kernel when a process dies.
class Ledger {
 public:
  Ledger() {
    const char* named = getenv("LABKIT_SIM_STATE");
    const std::string path = named ? named : "/tmp/labkit-simulated-gpu-" + std::to_string(getuid());
    file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file_ < 0 || ftruncate(file_, sizeof(LedgerFile))) fail("cannot open " + path);
    void* mapped = mmap(nullptr, sizeof(LedgerFile), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (mapped == MAP_FAILED) fail("cannot map " + path);
    content_ = static_cast<LedgerFile*>(mapped);
  }

  // Never destroyed: torch frees memory while the process ends, after static objects are gone.
  static Ledger& open_once() {
    static Ledger& ledger = *new Ledger;
    return ledger;
  }

  void lock() {
    struct flock request = {};
    request.l_type = F_WRLCK;
    while (fcntl(file_, F_OFD_SETLKW, &request) && errno == EINTR) {
    }
    if (content_->version != LEDGER_VERSION) {
      memset(content_, 0, sizeof *content_);
      content_->version = LEDGER_VERSION;
    }
    for (Entry& entry : content_->entries)
      if (entry.pid && !is_alive(entry.pid)) entry = {};
  }

  void unlock() {
    struct flock request = {};
    request.l_type = F_UNLCK;
    fcntl(file_, F_OFD_SETLK, &request);
  }

  Entry* find(pid_t pid) {
    for (Entry& entry : content_->entries)
      if (entry.pid == pid) return &entry;
    return nullptr;
  }

  Entry* find_or_add(pid_t pid) {
    Entry* entry = find(pid);
    if (!entry && (entry = find(0))) entry->pid = pid;
    return entry;
  }

  const Entry* begin() const { return content_->entries; }
  const Entry* end() const { return content_->entries + MOST_PROCESSES; }

 private:
  // A process that ended but was not waited for holds nothing any more.
  static bool is_alive(pid_t pid) {
    if (pid == getpid()) return true;
    if (kill(pid, 0) && errno == ESRCH) return false;
    char path[64], state = '?';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE* file = fopen(path, "r");
    if (!file) return true;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = '?';
    fclose(file);
    return state != 'Z' && state != 'X';
  }

  int file_;
  LedgerFile* content_;
};

class LedgerLock {
 public:
  LedgerLock() : ledger(Ledger::open_once()) { ledger.lock(); }
  ~LedgerLock() { ledger.unlock(); }
  Ledger& ledger;
};

uint64_t sum_used(const Ledger& ledger, int gpu) {
  uint64_t sum = 0;
  for (const Entry& entry : ledger)
    for (int place = 0; place < static_cast<int>(gpus().size()); place++)
      if (place == gpu || gpus()[place].parent == gpu) sum += entry.bytes[place];
  return sum;
}

}  // namespace

const std::vector<Gpu>& gpus() {
  static const std::vector<Gpu>& found = *new std::vector<Gpu>(read_gpus());
  return found;
}

bool is_split(int gpu) {
  for (const Gpu& one : gpus())
    if (one.parent == gpu) return true;
  return false;
}

void write_uuid_bytes(const std::string& uuid, unsigned char* bytes) {
  int digits = 0;
  for (const char* at = uuid.c_str() + uuid.find('-') + 1; *at && digits < 32; at++) {
    const char text[2] = {*at, 0};
    char* end;
    const long digit = strtol(text, &end, 16);
    if (end == text) continue;
    bytes[digits / 2] = digits % 2 ? bytes[digits / 2] | digit : digit << 4;
    digits++;
  }
}

uint64_t read_number(const char* variable, uint64_t otherwise) {
  const char* value = getenv(variable);
  return value && *value ? strtoull(value, nullptr, 0) : otherwise;
}

void trace(const char* format, ...) {
  static const bool wanted = getenv("LABKIT_SIM_TRACE") != nullptr;
  if (!wanted) return;
  va_list arguments;
  va_start(arguments, format);
  fputs("[simulated gpu] ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

bool charge(int gpu, int64_t bytes) {
  LedgerLock locked;
  Entry* entry = locked.ledger.find_or_add(getpid());
  if (!entry) fail("the ledger has no room for another process");
  const uint64_t room = gpus()[gpu].total_bytes - gpus()[gpu].reserved_bytes;
  if (bytes > 0 && sum_used(locked.ledger, gpu) + bytes > room) return false;
  entry->bytes[gpu] += bytes;
  return true;
}

uint64_t used_bytes(int gpu) {
  LedgerLock locked;
  return sum_used(locked.ledger, gpu);
}

std::vector<Holder> holders(int gpu) {
  LedgerLock locked;
  std::vector<Holder> found;
  for (const Entry& entry : locked.ledger)
    if (entry.pid && entry.bytes[gpu]) found.push_back({entry.pid, entry.bytes[gpu]});
  return found;
}

void leave_ledger() {
  LedgerLock locked;
  if (Entry* entry = locked.ledger.find(getpid())) *entry = {};
}

}  // namespace sim

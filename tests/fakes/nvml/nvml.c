/* A driver that is played: what nvidia-ml-py asks of libnvidia-ml.so.1, answered from a script.
 *
 * The script is the file that FAKE_NVML_SCRIPT names, read at the first nvmlInit, and again at one
 * that finds another file named. A line each:
 *   driver TEXT | cuda NUMBER          what the system is told
 *   fail QUERY CODE [AFTER [TIMES]]    QUERY answers CODE, from the call after the AFTERth on,
 *                                      as often as TIMES says, or for good
 *   gpu | slice                        begins a GPU; begins a MIG slice of the last GPU
 *   here FIRST LAST                    the GPU is there from one nvmlInit to another, from 1
 *   name TEXT | uuid TEXT | capability MAJOR MINOR
 *   memory TOTAL RESERVED FREE         in bytes; used is the rest
 *   grow BYTES                         every reading of the memory finds that much more used
 *   mig 0|1
 *   process PID BYTES|unknown [graphics]
 *   figure NAME NUMBER                 a figure of the GPU's state; others are not supported
 *   nvlink ADDRESS|switch              an active NVLink to this GPU or to a switch
 * Below "gpu" or "slice", fail is that device's own. Queries are named as in ask() below; "any" is
 * each of them, and above the first "gpu" each of every device, but not nvmlInit and nvmlShutdown.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 64, MAX_FAILS = 16, MAX_PROCESSES = 16, TEXT = 96 };
enum { MAX_FIGURES = 24, MAX_LINKS = 8, NOT_SUPPORTED = 3 };
enum { OK = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LIBRARY_NOT_FOUND = 12 };

typedef struct { char query[32]; int code, after, times, calls; } Fail;
typedef struct { Fail entries[MAX_FAILS]; int count; } Fails;
typedef struct { unsigned pid; unsigned long long used; int graphics; } Process;
typedef struct {
    int parent; /* the GPU that this is a slice of, -1 for a GPU */
    char name[TEXT], uuid[TEXT];
    int major, minor;
    unsigned mig;
    int first, last; /* the nvmlInits between which it is there; 0 is without end */
    unsigned long long total, reserved, free, grow;
    Process processes[MAX_PROCESSES];
    unsigned process_count;
    struct { char name[24]; unsigned long long value; } figures[MAX_FIGURES];
    int figure_count, link_count;
    char links[MAX_LINKS][32];
    Fails fails;
} Device;

static Device devices[MAX_DEVICES];
static int device_count, cuda, init_count;
static char driver[TEXT];
static Fails system_fails;

static int find_failure(Fails *fails, const char *query) {
    for (int i = 0; i < fails->count; i++) {
        Fail *fail = &fails->entries[i];
        if (strcmp(fail->query, query) || ++fail->calls <= fail->after) continue;
        if (!fail->times || fail->calls <= fail->after + fail->times) return fail->code;
    }
    return OK;
}

static int ask(Fails *fails, const char *query) {
    int code = find_failure(fails, query);
    if (!strcmp(query, "init") || !strcmp(query, "shutdown")) return code;
    if (code == OK) code = find_failure(&system_fails, "any");
    if (code == OK && fails != &system_fails) code = find_failure(fails, "any");
    return code;
}

static void read_process(Device *device, const char *words) {
    char used[32] = "", kind[16] = "";
    Process *process = &device->processes[device->process_count++];
    sscanf(words, "%u %31s %15s", &process->pid, used, kind);
    process->used = !strcmp(used, "unknown") ? UINT64_MAX : strtoull(used, NULL, 10);
    process->graphics = !strcmp(kind, "graphics");
}

static Device *begin_device(int parent) {
    Device *device = &devices[device_count++];
    memset(device, 0, sizeof *device);
    device->parent = parent;
    return device;
}

static int find_last_gpu(void) {
    int last = device_count - 1;
    while (last > 0 && devices[last].parent >= 0) last--;
    return last;
}

static void read_line(char *line) {
    static Device *device;
    if (!device_count) device = NULL;
    char *words = line + strcspn(line, " ");
    if (*words) *words++ = 0;
    if (!strcmp(line, "driver")) snprintf(driver, TEXT, "%s", words);
    else if (!strcmp(line, "cuda")) cuda = atoi(words);
    else if (!strcmp(line, "gpu")) device = begin_device(-1);
    else if (!strcmp(line, "slice")) device = begin_device(find_last_gpu());
    else if (!strcmp(line, "fail")) {
        Fails *fails = device ? &device->fails : &system_fails;
        Fail *fail = &fails->entries[fails->count++];
        memset(fail, 0, sizeof *fail);
        sscanf(words, "%31s %d %d %d", fail->query, &fail->code, &fail->after, &fail->times);
    } else if (!device) return;
    else if (!strcmp(line, "name")) snprintf(device->name, TEXT, "%s", words);
    else if (!strcmp(line, "uuid")) snprintf(device->uuid, TEXT, "%s", words);
    else if (!strcmp(line, "capability")) sscanf(words, "%d %d", &device->major, &device->minor);
    else if (!strcmp(line, "here")) sscanf(words, "%d %d", &device->first, &device->last);
    else if (!strcmp(line, "mig")) device->mig = (unsigned)atoi(words);
    else if (!strcmp(line, "grow")) device->grow = strtoull(words, NULL, 10);
    else if (!strcmp(line, "memory"))
        sscanf(words, "%llu %llu %llu", &device->total, &device->reserved, &device->free);
    else if (!strcmp(line, "process")) read_process(device, words);
    else if (!strcmp(line, "nvlink")) snprintf(device->links[device->link_count++], 32, "%s", words);
    else if (!strcmp(line, "figure")) {
        int place = device->figure_count++;
        sscanf(words, "%23s %llu", device->figures[place].name, &device->figures[place].value);
    }
}

/* Reading the same script again would forget how often each query was asked. */
int nvmlInitWithFlags(unsigned flags) {
    static char last[512];
    const char *path = getenv("FAKE_NVML_SCRIPT");
    (void)flags;
    if (!path || strcmp(path, last)) {
        FILE *script = path ? fopen(path, "r") : NULL;
        char line[256];
        if (!script) return LIBRARY_NOT_FOUND;
        device_count = init_count = system_fails.count = 0;
        while (fgets(line, sizeof line, script)) {
            line[strcspn(line, "\n")] = 0;
            read_line(line);
        }
        fclose(script);
        snprintf(last, sizeof last, "%s", path);
    }
    init_count++;
    return ask(&system_fails, "init");
}

int nvmlShutdown(void) { return ask(&system_fails, "shutdown"); }

const char *nvmlErrorString(int code) {
    static char text[TEXT];
    snprintf(text, TEXT, "fake error %d", code);
    return code == 999 ? "Unknown Error" : text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "%s", driver);
    return ask(&system_fails, "driver");
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = cuda;
    return ask(&system_fails, "cuda");
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = cuda;
    return ask(&system_fails, "cuda_v2");
}

static Device *find_part(int parent, unsigned index) {
    for (int i = 0; i < device_count; i++) {
        Device *device = &devices[i];
        int gone = init_count < device->first || (device->last && init_count > device->last);
        if (device->parent == parent && !gone && index-- == 0) return device;
    }
    return NULL;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 0;
    while (find_part(-1, *count)) ++*count;
    return ask(&system_fails, "count");
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    *device = find_part(-1, index);
    return *device ? ask(&(*device)->fails, "handle") : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) {
            *device = &devices[i];
            return ask(&devices[i].fails, "handle");
        }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(Device *device, unsigned *index) {
    for (*index = 0; find_part(device->parent, *index) != device; ++*index) {}
    return ask(&device->fails, "index");
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    snprintf(name, length, "%s", device->name);
    return ask(&device->fails, "name");
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "%s", device->uuid);
    return ask(&device->fails, "uuid");
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    *major = device->major;
    *minor = device->minor;
    return ask(&device->fails, "capability");
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    *current = *pending = device->mig;
    return ask(&device->fails, "mig");
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    *count = device->mig ? 7 : 0;
    return ask(&device->fails, "slices");
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **slice) {
    *slice = find_part((int)(device - devices), index);
    return *slice ? ask(&(*slice)->fails, "handle") : NOT_FOUND;
}

static void use_more(Device *device) {
    device->free -= device->grow < device->free ? device->grow : device->free;
}

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    use_more(device);
    *memory = (Memory){device->total, device->free, device->total - device->free};
    return ask(&device->fails, "memory");
}

#ifndef OLD_DRIVER /* its library has neither symbol */
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    int code = ask(&device->fails, "memory_v2");
    if (code != OK) return code;
    use_more(device);
    unsigned long long used = device->total - device->reserved - device->free;
    *memory = (MemoryV2){memory->version, device->total, device->reserved, device->free, used};
    return OK;
}
#endif

typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } ProcessInfo;

static int list_processes(Device *device, int graphics, unsigned *count, ProcessInfo *found) {
    unsigned room = *count;
    *count = 0;
    for (unsigned i = 0; i < device->process_count; i++) {
        Process *process = &device->processes[i];
        if (process->graphics != graphics) continue;
        if (*count < room) found[*count] = (ProcessInfo){process->pid, process->used, 0, 0};
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : OK;
}

static int answer_processes(Device *device, int graphics, unsigned *count, ProcessInfo *found) {
    int code = ask(&device->fails, graphics ? "graphics" : "compute");
    return code != OK ? code : list_processes(device, graphics, count, found);
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, ProcessInfo *found) {
    return answer_processes(device, 0, count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(Device *device, unsigned *count, ProcessInfo *found) {
    return answer_processes(device, 1, count, found);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, ProcessInfo *found) {
    return answer_processes(device, 0, count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, ProcessInfo *found) {
    return answer_processes(device, 1, count, found);
}
#endif

/* The GPU's state: each figure is one that the script names, or not supported. */
static int tell(Device *device, const char *name, unsigned long long *value) {
    int code = ask(&device->fails, name);
    for (int i = 0; code == OK && i < device->figure_count; i++)
        if (!strcmp(device->figures[i].name, name)) return *value = device->figures[i].value, OK;
    return code != OK ? code : NOT_SUPPORTED;
}

static int tell_small(Device *device, const char *name, unsigned *value) {
    unsigned long long wide = 0;
    int code = tell(device, name, &wide);
    *value = (unsigned)wide;
    return code;
}

#define FIGURE(query, name) \
    int nvmlDeviceGet##query(Device *device, unsigned *value) { return tell_small(device, name, value); }
FIGURE(PowerUsage, "power")
FIGURE(EnforcedPowerLimit, "power_limit")
FIGURE(PowerManagementDefaultLimit, "default_power_limit")
FIGURE(FanSpeed, "fan")
FIGURE(PerformanceState, "pstate")
FIGURE(CurrPcieLinkGeneration, "link_generation")
FIGURE(MaxPcieLinkGeneration, "max_link_generation")
FIGURE(CurrPcieLinkWidth, "link_width")
FIGURE(MaxPcieLinkWidth, "max_link_width")
FIGURE(PersistenceMode, "persistence")

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *value) {
    return sensor ? NOT_SUPPORTED : tell_small(device, "temperature", value);
}

static const char *CLOCKS[] = {"graphics", "sm", "memory_clock", "video"};
static const char *MAX_CLOCKS[] = {"max_graphics", "max_sm", "max_memory_clock", "max_video"};

int nvmlDeviceGetClockInfo(Device *device, unsigned kind, unsigned *value) {
    return tell_small(device, CLOCKS[kind & 3], value);
}

int nvmlDeviceGetMaxClockInfo(Device *device, unsigned kind, unsigned *value) {
    return tell_small(device, MAX_CLOCKS[kind & 3], value);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *value) {
    return tell(device, "reasons", value);
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned rates[2]) {
    int code = tell_small(device, "load", &rates[0]);
    return code != OK ? code : tell_small(device, "memory_load", &rates[1]);
}

int nvmlDeviceGetEccMode(Device *device, unsigned *current, unsigned *pending) {
    int code = tell_small(device, "ecc", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *value) {
    return kind == 1 && counter == 0 ? tell(device, "ecc_errors", value) : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = 0;
    int code = tell_small(device, "remap_pending", pending);
    return code != OK ? code : tell_small(device, "remap_failed", failed);
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, slot, device, subsystem;
    char address[32];
} PciInfo;

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *info) {
    unsigned bus;
    int code = tell_small(device, "bus", &bus);
    memset(info, 0, sizeof *info);
    snprintf(info->address, sizeof info->address, "00000000:%02X:00.0", bus & 255);
    return code;
}

int nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *active) {
    *active = 1;
    return (int)link < device->link_count ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(Device *device, unsigned link, unsigned *kind) {
    *kind = strcmp(device->links[link], "switch") ? 0 : 2;
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned link, PciInfo *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->address, sizeof info->address, "%s", device->links[link]);
    return OK;
}

int nvmlDeviceGetTopologyCommonAncestor(Device *first, Device *second, unsigned *level) {
    (void)second;
    return tell_small(first, "level", level);
}

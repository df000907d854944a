/* Functions of the driver that are here by name only: c10 looks up all of its list at the first
 * failed allocation and stops with an internal assertion if one is missing; Triton's libraries are
 * linked against others. Written in C, without CUDA's headers, as their parameters do not matter. */
enum { NOT_SUPPORTED = 801 };
#define ABSENT(name) \
    __attribute__((visibility("default"))) int name(void) { return NOT_SUPPORTED; }

ABSENT(cuCtxCreate_v4)
ABSENT(cuCtxFromGreenCtx)
ABSENT(cuCtxGetLimit)
ABSENT(cuDevResourceGenerateDesc)
ABSENT(cuDevSmResourceSplitByCount)
ABSENT(cuDeviceGetDevResource)
ABSENT(cuGreenCtxCreate)
ABSENT(cuGreenCtxDestroy)
ABSENT(cuGreenCtxStreamCreate)
ABSENT(cuLinkAddData)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate)
ABSENT(cuLinkDestroy)
ABSENT(cuLogsRegisterCallback)
ABSENT(cuLogsUnregisterCallback)
ABSENT(cuMemExportToShareableHandle)
ABSENT(cuMemGetAllocationPropertiesFromHandle)
ABSENT(cuMemImportFromShareableHandle)
ABSENT(cuMemRetainAllocationHandle)
ABSENT(cuModuleGetGlobal_v2)
ABSENT(cuModuleLoadFatBinary)
ABSENT(cuMulticastAddDevice)
ABSENT(cuMulticastBindMem)
ABSENT(cuMulticastCreate)
ABSENT(cuMulticastUnbind)
ABSENT(cuOccupancyMaxPotentialClusterSize)
ABSENT(cuStreamWriteValue32)

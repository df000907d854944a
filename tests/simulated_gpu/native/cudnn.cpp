// libcudnn.so.9: its version, which torch compares with the one it was built for, and handles. Its
// graphs of operations are not simulated: the arithmetic turns cuDNN off. Mirrors cudnn_graph.h.
#include <stddef.h>

#include "math_libraries.h"

EXPORTED size_t cudnnGetVersion() { return CUDNN_VERSION_NUMBER; }
EXPORTED size_t cudnnGetMaxDeviceVersion() { return CUDNN_VERSION_NUMBER; }
EXPORTED size_t cudnnGetCudartVersion() { return CUDART_VERSION_NUMBER; }
EXPORTED int cudnnCreate(void** handle) { return *handle = malloc(64), 0; }
EXPORTED const char* cudnnGetErrorString(int) { return "simulated cuDNN"; }

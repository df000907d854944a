// libcublasLt.so.13: descriptors, and one algorithm without a workspace for every product: torch
// needs at least one. Mirrors cublasLt.h.
#include <stddef.h>

#include "math_libraries.h"

namespace {

constexpr size_t VERSION = 130101;
struct Descriptor {
  char room[256];
};
struct HeuristicResult {
  char algorithm[64];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

}  // namespace

EXPORTED int cublasLtCreate(void** handle) { return *handle = new Descriptor{}, 0; }
EXPORTED int cublasLtMatmulDescCreate(void** description, int, int) {
  return *description = new Descriptor{}, 0;
}
EXPORTED int cublasLtMatrixLayoutCreate(void** layout, int, uint64_t, uint64_t, int64_t) {
  return *layout = new Descriptor{}, 0;
}
EXPORTED int cublasLtMatmulPreferenceCreate(void** preference) {
  return *preference = new Descriptor{}, 0;
}
EXPORTED int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                            HeuristicResult* result, int* found) {
  *result = {};
  *found = 1;
  return 0;
}
EXPORTED size_t cublasLtGetVersion() { return VERSION; }

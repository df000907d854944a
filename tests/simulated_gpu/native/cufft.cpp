// libcufft.so.12: plans without a work area. Mirrors cufft.h and cufftXt.h.
#include <stddef.h>

#include "math_libraries.h"

namespace {
constexpr int VERSION = 12000;
}

EXPORTED int cufftCreate(int* plan) {
  static int plans = 0;
  return *plan = ++plans, 0;
}
EXPORTED int cufftXtMakePlanMany(int, int, void*, void*, long, long, int, void*, long, long, int,
                                 long, size_t* work_bytes, int) {
  return *work_bytes = 0, 0;
}
EXPORTED int cufftMakePlanMany64(int, int, void*, void*, long, long, void*, long, long, int, long,
                                 size_t* work_bytes) {
  return *work_bytes = 0, 0;
}
EXPORTED int cufftGetVersion(int* version) { return *version = VERSION, 0; }

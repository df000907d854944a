// libcublas.so.13: handles, their settings, and the products of matrices, which only take time.
// Mirrors cublas_api.h.
#include "math_libraries.h"

namespace {

constexpr int VERSION = 130101;
struct Handle {
  void* stream = nullptr;
  int pointer_mode = 0, math_mode = 0;
};

}  // namespace

EXPORTED int cublasCreate_v2(Handle** handle) { return *handle = new Handle, 0; }
EXPORTED int cublasDestroy_v2(Handle* handle) { return delete handle, 0; }
EXPORTED int cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, 0; }
EXPORTED int cublasGetStream_v2(Handle* handle, void** stream) { return *stream = handle->stream, 0; }
EXPORTED int cublasGetVersion_v2(Handle*, int* version) { return *version = VERSION, 0; }
EXPORTED int cublasSetPointerMode_v2(Handle* handle, int mode) {
  return handle->pointer_mode = mode, 0;
}
EXPORTED int cublasGetPointerMode_v2(Handle* handle, int* mode) {
  return *mode = handle->pointer_mode, 0;
}
EXPORTED int cublasSetMathMode(Handle* handle, int mode) { return handle->math_mode = mode, 0; }
EXPORTED int cublasGetMathMode(Handle* handle, int* mode) { return *mode = handle->math_mode, 0; }

// The parameters behind the sizes are not read.
EXPORTED int cublasSgemm_v2(Handle* handle, int, int, int m, int n, int k) {
  sim::submit_product(handle->stream, m, n, k);
  return 0;
}
EXPORTED int cublasDgemm_v2(Handle* handle, int a, int b, int m, int n, int k) {
  return cublasSgemm_v2(handle, a, b, m, n, k);
}
EXPORTED int cublasGemmEx(Handle* handle, int a, int b, int m, int n, int k) {
  return cublasSgemm_v2(handle, a, b, m, n, k);
}
EXPORTED const char* cublasGetStatusString(int) { return "simulated cuBLAS"; }

// What the simulated math libraries share: their products take time in a stream of the runtime.
// Every function that is not written in one of these files is a stub that returns success.
#pragma once
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace sim {

// Puts the product of an m x k and a k x n matrix into a stream, at LABKIT_SIM_GFLOPS (0: no time).
inline void submit_product(void* stream, double m, double n, double k) {
  using Submit = void (*)(void*, uint64_t);
  static const Submit submit = [] {
    void* runtime = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
    return runtime ? reinterpret_cast<Submit>(dlsym(runtime, "labkit_sim_submit")) : nullptr;
  }();
  const char* set = getenv("LABKIT_SIM_GFLOPS");
  const double rate = set ? atof(set) : 0;
  if (submit) submit(stream, rate ? static_cast<uint64_t>(2 * m * n * k / rate) : 0);
}

}  // namespace sim

// The macros that CUDA's headers expect of the compiler. The wheels have no crt/ folder; these
// definitions let an ordinary C++ compiler read cuda.h and cuda_runtime_api.h.
#pragma once
#define __host__
#define __device__
#define __global__
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __dv_unused
#define __annotate__(a) __attribute__((a))
#define __location__(a)
#define __inline__ inline
#define __specialization_static static

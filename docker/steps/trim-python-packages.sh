#!/bin/sh
# Takes out of the lab's environment what no lab needs: the test programs that torch's wheel
# carries (135 MB), other packages' test suites and source maps. Runs after each lock's install, so
# that no layer holds what the next one would only hide.
set -eu
site=$(/opt/lab/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site"/torch/test "$site"/torch/bin/*Test "$site"/torch/bin/test_* \
    "$site"/torch/bin/protoc* "$site"/torch/lib/libtorchbind_test.so \
    "$site"/torch/lib/libjitbackend_test.so
# Of CUDA's wheels, 290 MB that nothing in them or in torch loads (by the libraries' own lists of
# what they need, and by their texts): the second build of NVRTC, the solver for several GPUs that
# torch has no call for, and static libraries, which nvcc alone would link.
rm -f "$site"/nvidia/*/lib/libnvrtc.alt.so.* "$site"/nvidia/*/lib/libnvrtc-builtins.alt.so.* \
    "$site"/nvidia/*/lib/libcusolverMg.so.* "$site"/nvidia/*/lib/libcudart_static.a \
    "$site"/nvidia/nvshmem/lib/libnvshmem_device.a "$site"/triton/backends/nvidia/lib/cupti/*.a
for package in matplotlib networkx numpy sympy mpmath fontTools; do
    [ ! -d "$site/$package" ] || find "$site/$package" -depth -type d -name tests -exec rm -rf {} +
done
find /opt/lab -name '*.js.map' -delete

// The capture of streams into graphs, and graphs. Mirrors the "Stream Management" (capture) and
// "Graph Management" parts of the CUDA runtime: the modes of a capture, and which calls spoil it. A
// launch does the copies of the graph, and the arithmetic that arithmetic.cpp added to it.
#include <algorithm>
#include <memory>

#include "runtime.h"

namespace sim {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
unsigned long long next_capture = 1;

std::vector<Capture*>& captures() {
  static auto& all = *new std::vector<Capture*>;
  return all;
}

// The thread's own mode can only relax what a capture of another thread forbids.
bool forbids(const Capture& capture) {
  const bool mine = pthread_equal(capture.thread, pthread_self());
  if (capture.status != cudaStreamCaptureStatusActive) return false;
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  if (thread_mode == cudaStreamCaptureModeThreadLocal && !mine) return false;
  return capture.mode == cudaStreamCaptureModeGlobal ||
         (capture.mode == cudaStreamCaptureModeThreadLocal && mine);
}

Capture* find_own_capture() {
  Locked locked(process_lock());
  for (Capture* capture : captures())
    if (pthread_equal(capture->thread, pthread_self())) return capture;
  return nullptr;
}

Graph& graph_of(cudaGraph_t handle) { return *reinterpret_cast<Graph*>(handle); }

cudaError_t begin_capture(cudaStream_t handle, cudaStreamCaptureMode mode, Graph* graph) {
  if (cudaError_t error = enter()) return error;
  if (!handle) return note(cudaErrorStreamCaptureUnsupported);  // the legacy stream
  Stream& stream = stream_of(handle);
  if (stream.capture) return note(cudaErrorIllegalState);
  Locked locked(process_lock());
  stream.capture = new Capture{next_capture++, mode, pthread_self(),
                               cudaStreamCaptureStatusActive, graph};
  captures().push_back(stream.capture);
  return cudaSuccess;
}

}  // namespace

cudaError_t refuse_in_capture(const char* call) {
  perform_late_copies();
  Locked locked(process_lock());
  for (Capture* capture : captures()) {
    if (!forbids(*capture)) continue;
    trace("%s spoils a capture", call);
    capture->status = cudaStreamCaptureStatusInvalidated;
    return note(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

}  // namespace sim

using namespace sim;

// For arithmetic.cpp: whether this thread captures, and work for the launches of what it captures.
EXPORTED int labkit_sim_is_capturing() { return find_own_capture() != nullptr; }

EXPORTED void labkit_sim_add_to_capture(void (*run)(void*), void* data, void (*destroy)(void*)) {
  const std::shared_ptr<void> owned(data, destroy);
  find_own_capture()->graph->nodes.push_back([run, owned] { run(owned.get()); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return begin_capture(stream, mode, new Graph);
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                          const cudaGraphNode_t*, const cudaGraphEdgeData*, size_t,
                                          cudaStreamCaptureMode mode) {
  return begin_capture(stream, mode, &graph_of(graph));
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Capture* capture = stream_of(stream).capture;
  if (!capture) return note(cudaErrorIllegalState);
  Locked locked(process_lock());
  captures().erase(std::find(captures().begin(), captures().end(), capture));
  end_capture_of_streams(capture);
  const bool spoiled = capture->status == cudaStreamCaptureStatusInvalidated;
  *graph = spoiled ? nullptr : reinterpret_cast<cudaGraph_t>(capture->graph);
  return spoiled ? note(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Capture* capture = stream_of(stream).capture;
  *status = capture ? capture->status : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  const Capture* capture = stream_of(stream).capture;
  *status = capture ? capture->status : cudaStreamCaptureStatusNone;
  if (capture && id) *id = capture->id;
  if (capture && graph) *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t*,
                                                const cudaGraphEdgeData*, size_t, unsigned) {
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = reinterpret_cast<cudaGraph_t>(new Graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  if (!handle) return cudaSuccess;
  for (const Graph::Owned& owned : graph_of(handle).owned) owned.destroy(owned.object);
  delete &graph_of(handle);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph ? graph_of(graph).nodes.size() : 0;
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*,
                                         size_t* count) {
  *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new std::vector<Work>(graph_of(graph).nodes));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (cudaError_t error = enter()) return error;
  const auto& nodes = *reinterpret_cast<std::vector<Work>*>(executable);
  submit(stream, kernel_nanoseconds() * nodes.size(), [&nodes] {
    for (const Work& work : nodes)
      if (work) work();
  });
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<std::vector<Work>*>(executable);
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* handle, void* object, cudaHostFn_t destroy,
                                 unsigned, unsigned) {
  *handle = reinterpret_cast<cudaUserObject_t>(new Graph::Owned{destroy, object});
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned,
                                      unsigned) {
  if (graph) graph_of(graph).owned.push_back(*reinterpret_cast<Graph::Owned*>(object));
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }

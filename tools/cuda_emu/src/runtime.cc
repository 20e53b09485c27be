// CUDA runtime API over host memory. Every signature comes from the real cuda_runtime_api.h.
#include "cuda_runtime.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <fcntl.h>
#include <unistd.h>
#include <chrono>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(a, b) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(a, b) (void)0
#endif
struct CUstream_st { unsigned flags; uint64_t pushed = 0, done = 0; std::deque<std::function<void()>> q; };
struct CUevent_st { CUstream_st* s = nullptr; uint64_t seq = 0; std::chrono::steady_clock::time_point t; };
#include "tools/cuda_emu/src/grid.h"
namespace {
struct Alloc { size_t size, map_len; char* map; int fd; bool ipc; int refs; std::string key; };
std::recursive_mutex mu; std::map<char*, Alloc> allocs; std::map<char*, size_t> pinned; std::set<CUstream_st*> streams;
CUstream_st null_stream{0}; thread_local cudaError_t last = cudaSuccess; thread_local int dev;
int lazy = [] { const char* e = getenv("CUDAEMU_STREAMS"); return e && !strcmp(e, "lazy"); }();
const size_t PG = 4096;
cudaError_t err(cudaError_t e) { if (e) last = e; return e; }
void drain(CUstream_st* s, uint64_t upto) { while (s->done < upto && !s->q.empty()) { auto f = std::move(s->q.front()); s->q.pop_front(); f(); s->done++; } }
void drain_all() { for (auto* s : streams) drain(s, ~0ull); }
CUstream_st* S(cudaStream_t s) { return s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread ? &null_stream : s; }
void push(cudaStream_t st, std::function<void()> f) {
  std::lock_guard<std::recursive_mutex> l(mu); auto* s = S(st);
  if (s == &null_stream) for (auto* o : streams) if (!(o->flags & cudaStreamNonBlocking)) drain(o, ~0ull);
  s->pushed++; s->q.push_back(std::move(f)); if (!lazy || s == &null_stream) drain(s, ~0ull); }
// data end is placed against a PROT_NONE page (256-byte alignment kept); both sides guarded
char* map_fd(int fd, size_t size, Alloc& a) {
  size_t body = (size + PG - 1) / PG * PG, total = body + 2 * PG;
  char* m = (char*)mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED || mmap(m + PG, body, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) return nullptr;
  char* p = m + PG + (body - (size + 255) / 256 * 256);
  a = Alloc{size, total, m, fd, false, 1, {}};
  ASAN_POISON_MEMORY_REGION(m + PG, p - (m + PG)); ASAN_POISON_MEMORY_REGION(p + size, m + PG + body - (p + size));
  return p; }
struct Handle { char magic[8]; pid_t pid; int fd; size_t size; };
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t), "");
std::map<char*, Alloc>::iterator find(const void* q) { auto it = allocs.upper_bound((char*)q); if (it == allocs.begin()) return allocs.end(); --it; return (char*)q < it->first + it->second.size ? it : allocs.end(); }
void unmap(std::map<char*, Alloc>::iterator it) { ASAN_UNPOISON_MEMORY_REGION(it->second.map + PG, it->second.map_len - 2 * PG); munmap(it->second.map, it->second.map_len); close(it->second.fd); allocs.erase(it); }
} // namespace
namespace cudaemu {
cudaError_t launch(const cudaLaunchConfig_t& c, const void* fn, std::function<void()> body) {
  if (cudaError_t e = check_launch(c, fn)) return err(e);
  cudaLaunchConfig_t k = c; push(c.stream, [k, fn, body] { run_grid(k, fn, body); }); return cudaSuccess; }
}
namespace cudaemu { cudaError_t copy_symbol(void* to, void const* from, std::size_t n, cudaStream_t s) { push(s, [=] { std::memcpy(to, from, n); }); return cudaSuccess; } }
#define API extern "C" cudaError_t CUDARTAPI
#define LOCK std::lock_guard<std::recursive_mutex> l_(mu)
API cudaMalloc(void** p, size_t n) { LOCK; if (!n) { *p = nullptr; return cudaSuccess; }
  int fd = (int)syscall(SYS_memfd_create, "cudaemu", 1u); if (fd < 0 || ftruncate(fd, (off_t)((n + PG - 1) / PG * PG))) return err(cudaErrorMemoryAllocation);
  Alloc a; char* q = map_fd(fd, n, a); if (!q) return err(cudaErrorMemoryAllocation);
  std::memset(q, 0xFF, n); allocs[q] = a; *p = q; return cudaSuccess; }
API cudaFree(void* p) { LOCK; if (!p) return cudaSuccess; drain_all(); auto it = allocs.find((char*)p); if (it == allocs.end() || it->second.ipc) return err(cudaErrorInvalidValue); unmap(it); return cudaSuccess; }
API cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API cudaFreeAsync(void* p, cudaStream_t s) { push(s, [p] { auto it = allocs.find((char*)p); if (it != allocs.end()) unmap(it); }); return cudaSuccess; }
API cudaMallocHost(void** p, size_t n) { LOCK; *p = aligned_alloc(256, (n + 255) / 256 * 256); pinned[(char*)*p] = n; return cudaSuccess; }
API cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
API cudaFreeHost(void* p) { LOCK; drain_all(); pinned.erase((char*)p); free(p); return cudaSuccess; }
API cudaIpcGetMemHandle(cudaIpcMemHandle_t* h, void* p) { LOCK; auto it = find(p); if (it == allocs.end() || it->second.ipc) return err(cudaErrorInvalidValue);
  Handle k{{'c', 'u', 'd', 'a', 'e', 'm', 'u', 0}, getpid(), it->second.fd, it->second.size}; std::memset(h, 0, sizeof *h); std::memcpy(h, &k, sizeof k); return cudaSuccess; }
API cudaIpcOpenMemHandle(void** p, cudaIpcMemHandle_t h, unsigned flags) { LOCK; Handle k; std::memcpy(&k, &h, sizeof k);
  if (flags != cudaIpcMemLazyEnablePeerAccess || std::memcmp(k.magic, "cudaemu", 8)) return err(cudaErrorInvalidValue);
  if (k.pid == getpid()) return err(cudaErrorDeviceUninitialized);           // CUDA: a handle cannot be opened by its own process
  std::string key((char*)&h, sizeof h); for (auto& a : allocs) if (a.second.ipc && a.second.key == key) { a.second.refs++; *p = a.first; return cudaSuccess; }
  char path[64]; snprintf(path, sizeof path, "/proc/%d/fd/%d", k.pid, k.fd); int fd = open(path, O_RDWR | O_CLOEXEC); if (fd < 0) return err(cudaErrorInvalidResourceHandle);
  Alloc a; char* q = map_fd(fd, k.size, a); if (!q) return err(cudaErrorMapBufferObjectFailed); a.ipc = true; a.key = key; allocs[q] = a; *p = q; return cudaSuccess; }
API cudaIpcCloseMemHandle(void* p) { LOCK; auto it = allocs.find((char*)p); if (it == allocs.end() || !it->second.ipc) return err(cudaErrorInvalidValue); drain_all(); if (!--it->second.refs) unmap(it); return cudaSuccess; }
API cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t st) {
  auto cp = [=] { std::memcpy(d, s, n); };
  { LOCK; auto it = pinned.upper_bound((char*)s); bool pin = it != pinned.begin() && (--it, (char*)s < it->first + it->second);
    if (!pin && find(s) == allocs.end()) { std::string tmp((const char*)s, n); push(st, [d, tmp] { std::memcpy(d, tmp.data(), tmp.size()); }); return cudaSuccess; } } // pageable source: staged now
  push(st, cp); return cudaSuccess; }
API cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) { push(nullptr, [=] { std::memcpy(d, s, n); }); return cudaSuccess; }
API cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t st) { push(st, [=] { std::memset(d, v, n); }); return cudaSuccess; }
API cudaMemset(void* d, int v, size_t n) { push(nullptr, [=] { std::memset(d, v, n); }); return cudaSuccess; }
API cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) { LOCK; *s = new CUstream_st{f}; streams.insert(*s); return cudaSuccess; }
API cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API cudaStreamDestroy(cudaStream_t s) { LOCK; drain(s, ~0ull); streams.erase(s); delete s; return cudaSuccess; }
API cudaStreamSynchronize(cudaStream_t s) { LOCK; drain(S(s), ~0ull); return cudaSuccess; }
API cudaStreamQuery(cudaStream_t s) { LOCK; drain(S(s), S(s)->done + 1); return S(s)->q.empty() ? cudaSuccess : cudaErrorNotReady; }
API cudaDeviceSynchronize() { LOCK; drain_all(); return cudaSuccess; }
API cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* u) { push(s, [=] { f(u); }); return cudaSuccess; }
API cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = new CUevent_st; return cudaSuccess; }
API cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API cudaEventDestroy(cudaEvent_t e) { LOCK; if (e->s) drain(e->s, e->seq); delete e; return cudaSuccess; }
API cudaEventRecord(cudaEvent_t e, cudaStream_t s) { LOCK; e->s = S(s); e->seq = S(s)->pushed + 1; push(s, [e] { e->t = std::chrono::steady_clock::now(); }); return cudaSuccess; }
API cudaEventSynchronize(cudaEvent_t e) { LOCK; if (e->s) drain(e->s, e->seq); return cudaSuccess; }
API cudaEventQuery(cudaEvent_t e) { LOCK; if (!e->s) return cudaSuccess; if (e->s->done < e->seq) drain(e->s, e->s->done + 1); return e->s->done >= e->seq ? cudaSuccess : cudaErrorNotReady; }
API cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { LOCK; auto* t = e->s; uint64_t q = e->seq; if (t) push(s, [t, q] { drain(t, q); }); return cudaSuccess; }
API cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { *ms = std::chrono::duration<float, std::milli>(b->t - a->t).count(); return cudaSuccess; }
API cudaGetLastError() { auto e = last; last = cudaSuccess; return e; }
API cudaPeekAtLastError() { return last; }
API cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
API cudaSetDevice(int d) { return d == 0 ? (dev = d, cudaSuccess) : err(cudaErrorInvalidDevice); }
API cudaGetDevice(int* d) { *d = dev; return cudaSuccess; }
API cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) { switch (a) { case cudaDevAttrComputeCapabilityMajor: *v = 8; break; case cudaDevAttrComputeCapabilityMinor: *v = 0; break; case cudaDevAttrMultiProcessorCount: *v = 4; break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 166912; break; case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break; case cudaDevAttrWarpSize: *v = 32; break; case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break; default: *v = 0; } return cudaSuccess; }
API cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) { LOCK; std::memset(a, 0, sizeof *a); auto it = find(p); a->type = it == allocs.end() ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice; a->devicePointer = it == allocs.end() ? nullptr : (void*)p; return cudaSuccess; }
extern "C" const char* CUDARTAPI cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : e == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "cudaemu error"; }
extern "C" const char* CUDARTAPI cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }
API cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
API cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int) { return cudaStreamCreateWithFlags(s, f); }
API cudaGetDeviceProperties(cudaDeviceProp* p, int d) { if (d != 0) return err(cudaErrorInvalidDevice); std::memset(p, 0, sizeof *p); std::strcpy(p->name, "emulated device");
  for (int i = 0; i < 16; i++) p->uuid.bytes[i] = (char)i; p->major = 8; p->minor = 0; p->totalGlobalMem = size_t{8} << 30; p->multiProcessorCount = 4; return cudaSuccess; }

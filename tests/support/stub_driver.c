/* A libcuda.so.1 without a GPU, as containers and half-installed machines have one: every call is
 * refused with STATUS (34: a stub library, 100: no device), or, when that is 0, there are no
 * devices. Just as much of the driver as the CUDA runtime asks for. */
#define _GNU_SOURCE
#include <dlfcn.h>

static int refused(void) {
    return STATUS;
}
int cuInit(unsigned flags) {
    (void)flags;
    return STATUS;
}
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cuDeviceGetCount(int* count) {
    *count = 0;
    return STATUS;
}
int cuGetErrorString(int status, char const** text) {
    (void)status;
    *text = "said by the stub";
    return 0;
}
int cuGetExportTable(void const** table, void const* id) {
    (void)id;
    *table = 0;
    return STATUS;
}
int cuGetProcAddress_v2(
    char const* name, void** function, int version, unsigned long long flags, int* found) {
    (void)version;
    (void)flags;
    *function = dlsym(RTLD_DEFAULT, name);
    if (*function == 0) *function = (void*)refused;
    if (found != 0) *found = 0;
    return 0;
}
int cuGetProcAddress(char const* name, void** function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}

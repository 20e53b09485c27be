/* A libcuda.so.1 that has no GPU to show: what a container without one may still have. */
int cuInit(unsigned flags) {
    (void)flags;
    return STATUS;
}
int cuGetErrorString(int status, const char** text) {
    (void)status;
    *text = "said by the stub";
    return 0;
}
int cuDeviceGetCount(int* count) {
    *count = 0;
    return 0;
}

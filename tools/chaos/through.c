/* Preloaded into an engine: leads its connection to a sidecar through the runner's proxy. The
 * engine itself connects to the sidecar, so that the kernel names the engine there, and sends that
 * socket to the proxy. In any program, SIGUSR1 interrupts what it waits for (EINTR). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/socket.h>
#include <sys/un.h>

typedef int (*Connect)(int, struct sockaddr const*, socklen_t);

static void do_nothing(int number) {
    (void)number;
}

__attribute__((constructor)) static void be_interruptible(void) {
    struct sigaction action = {.sa_handler = do_nothing}; /* Without SA_RESTART. */
    sigaction(SIGUSR1, &action, NULL);
}

static int is_sidecar(struct sockaddr const* address, socklen_t bytes) {
    char const* const path = getenv("DKV_CHAOS_SIDECAR");
    struct sockaddr_un const* const local = (struct sockaddr_un const*)address;
    return path != NULL && address->sa_family == AF_UNIX && bytes > sizeof local->sun_family &&
           strncmp(local->sun_path, path, sizeof local->sun_path) == 0;
}

static int send_socket(int through, int sent) {
    char word = 'S';
    struct iovec part = {&word, 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof sent);
    memcpy(CMSG_DATA(header), &sent, sizeof sent);
    return sendmsg(through, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

/* The linker's name alone: glibc declares connect() with a union. */
int lead(int socket_, struct sockaddr const* address, socklen_t bytes) __asm__("connect");

int lead(int socket_, struct sockaddr const* address, socklen_t bytes) {
    Connect next = NULL;
    *(void**)&next = dlsym(RTLD_NEXT, "connect");
    if (!is_sidecar(address, bytes)) return next(socket_, address, bytes);
    int const sidecar = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sidecar < 0) return -1;
    struct sockaddr_un proxy = {.sun_family = AF_UNIX};
    strncpy(proxy.sun_path, getenv("DKV_CHAOS_PROXY"), sizeof proxy.sun_path - 1);
    int const connected = next(sidecar, address, bytes) == 0 &&
                          next(socket_, (struct sockaddr*)&proxy, sizeof proxy) == 0 &&
                          send_socket(socket_, sidecar) == 0;
    int const why = errno;
    close(sidecar);
    errno = why;
    return connected ? 0 : -1;
}

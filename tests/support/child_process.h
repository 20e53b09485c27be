// A process that lives until it is killed: an engine that may die.
#pragma once

#include <csignal>
#include <cstdint>
#include <unistd.h>

#include <sys/wait.h>

namespace dkv::test {

class ChildProcess {
public:
    ChildProcess() : pid_(::fork()) {
        if (pid_ == 0) {
            ::execlp("sleep", "sleep", "600", nullptr);
            ::_exit(127);
        }
    }
    ChildProcess(ChildProcess const&) = delete;
    ChildProcess& operator=(ChildProcess const&) = delete;
    ~ChildProcess() { kill(); }

    std::uint32_t pid() const noexcept { return static_cast<std::uint32_t>(pid_); }
    /// Afterwards the pid names no process.
    void kill() {
        if (killed_) return;
        killed_ = true;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

private:
    pid_t pid_;
    bool killed_ = false;
};

}  // namespace dkv::test

// The other end of exporter.cc: a real second process.
#pragma once

#include <array>
#include <csignal>
#include <sstream>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "protocol/base/fd_message.h"
#include "protocol/device/events.h"
#include "protocol/device/memory.h"

namespace dkv::test {

class Exporter {
public:
    explicit Exporter(char const* streams = nullptr, char const* visible = nullptr) {
        std::array<int, 2> lines{};
        std::array<int, 2> answers{};
        std::array<int, 2> files{};
        REQUIRE(::pipe(lines.data()) == 0);
        REQUIRE(::pipe(answers.data()) == 0);
        REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, files.data()) == 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::dup2(lines[0], STDIN_FILENO);
            ::dup2(answers[1], STDOUT_FILENO);
            ::dup2(files[1], 9);
            ::dup2(9, 3);
            for (int other = 4; other < 64; ++other)
                ::close(other);
            if (streams != nullptr) ::setenv("CUDAEMU_STREAMS", streams, 1);
            if (visible != nullptr) ::setenv("CUDA_VISIBLE_DEVICES", visible, 1);
            ::execl(DKV_MEMORY_EXPORTER, DKV_MEMORY_EXPORTER, nullptr);
            ::_exit(127);
        }
        ::close(lines[0]);
        ::close(answers[1]);
        ::close(files[1]);
        files_ = UniqueFd(files[0]);
        to_ = ::fdopen(lines[1], "w");
        from_ = ::fdopen(answers[0], "r");
    }
    Exporter(Exporter const&) = delete;
    Exporter& operator=(Exporter const&) = delete;
    ~Exporter() {
        std::fclose(to_);
        std::fclose(from_);
        ::waitpid(pid_, nullptr, 0);
    }

    std::string ask(std::string const& command) {
        std::fprintf(to_, "%s\n", command.c_str());
        std::fflush(to_);
        std::array<char, 512> line{};
        if (std::fgets(line.data(), line.size(), from_) == nullptr) return "nothing: it died";
        std::string text(line.data());
        return text.substr(0, text.find('\n'));
    }
    void pause() {
        ::kill(pid_, SIGSTOP);
        ::waitpid(pid_, nullptr, WUNTRACED);
    }
    void go_on() { ::kill(pid_, SIGCONT); }
    void kill() { ::kill(pid_, SIGKILL); }
    std::uint32_t pid() const { return static_cast<std::uint32_t>(pid_); }

    cuda::IpcMemory ipc(std::size_t bytes, int fill, char const* how = "ipc") {
        return memory<cuda::IpcMemory>(
            how, bytes, fill, [](auto& memory) -> auto& { return memory.handle; });
    }
    cuda::VmmMemory vmm(std::size_t bytes, int fill) {
        std::array<std::byte, 64> none{};
        auto memory = this->memory<cuda::VmmMemory>(
            "vmm", bytes, fill, [&](auto&) -> auto& { return none; });
        memory.file = receive();
        return memory;
    }
    cuda::PoolMemory pool(std::size_t bytes, int fill) {
        auto memory = this->memory<cuda::PoolMemory>(
            "pool", bytes, fill, [](auto& one) -> auto& { return one.pointer; });
        memory.pool = receive();
        return memory;
    }
    cuda::EventHandle event() {
        cuda::EventHandle handle{};
        read_hex(ask("event"), handle);
        return handle;
    }

private:
    static void read_hex(std::string const& text, std::array<std::byte, 64>& bytes) {
        REQUIRE(text.size() == 2 * bytes.size());
        for (std::size_t at = 0; at < bytes.size(); ++at)
            bytes[at] = static_cast<std::byte>(std::stoi(text.substr(2 * at, 2), nullptr, 16));
    }
    template <class Memory, class Handle>
    Memory memory(char const* kind, std::size_t bytes, int fill, Handle const& handle) {
        auto const answer =
            ask(std::string(kind) + " " + std::to_string(bytes) + " " + std::to_string(fill));
        INFO(answer);
        std::istringstream words(answer);
        std::string named;
        Memory memory;
        REQUIRE((words >> named >> memory.allocation_bytes >> memory.offset >> memory.bytes));
        if (named != "-") read_hex(named, handle(memory));
        return memory;
    }
    UniqueFd receive() {
        std::array<std::byte, 1> nothing{};
        auto message = receive_fds(files_.get(), nothing);
        REQUIRE(message.size == 1);
        REQUIRE(message.fds.size() == 1);
        return std::move(message.fds.front());
    }

    pid_t pid_ = 0;
    UniqueFd files_;
    std::FILE* to_ = nullptr;
    std::FILE* from_ = nullptr;
};

}  // namespace dkv::test

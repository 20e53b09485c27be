// A real second process (peer.cc), started with an environment of its own.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/wait.h>

namespace dkv::test {

using Environment = std::map<std::string, std::string>;

class Peer {
public:
    explicit Peer(Environment const& environment = {}) {
        int to[2];
        int from[2];
        REQUIRE(::pipe(to) == 0);
        REQUIRE(::pipe(from) == 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::dup2(to[0], STDIN_FILENO);
            ::dup2(from[1], STDOUT_FILENO);
            for (int const end : {to[0], to[1], from[0], from[1]})
                ::close(end);
            for (auto const& [name, value] : environment)
                ::setenv(name.c_str(), value.c_str(), 1);
            ::execl(CUDAEMU_PEER, CUDAEMU_PEER, nullptr);
            ::_exit(127);
        }
        ::close(to[0]);
        ::close(from[1]);
        static_cast<void>(std::signal(SIGPIPE, SIG_IGN));  // A dead peer is an answer, too.
        to_ = ::fdopen(to[1], "w");
        from_ = ::fdopen(from[0], "r");
    }
    Peer(Peer const&) = delete;
    Peer& operator=(Peer const&) = delete;
    ~Peer() {
        std::fclose(to_);  // It ends with its input.
        std::fclose(from_);
        ::waitpid(pid_, nullptr, 0);
    }

    void tell(std::string const& command) {
        std::fprintf(to_, "%s\n", command.c_str());
        std::fflush(to_);
    }
    std::string answer() {
        char line[256] = {};
        if (std::fgets(line, sizeof line, from_) == nullptr) return "nothing: it died";
        std::string text(line);
        return text.substr(0, text.find('\n'));
    }
    std::string ask(std::string const& command) {
        tell(command);
        return answer();
    }
    void kill() { ::kill(pid_, SIGKILL); }

private:
    pid_t pid_ = 0;
    std::FILE* to_ = nullptr;
    std::FILE* from_ = nullptr;
};

}  // namespace dkv::test

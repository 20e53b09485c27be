// Whose line of the log it is: the ids that an engine's own log and `dkv` show, too.
#pragma once

#include <cstdint>

namespace dkv {

/// While it lives, this thread's lines are of that engine, and of that session; 0: of none.
class LogScope {
public:
    struct Ids {
        std::uint64_t instance = 0;
        std::uint64_t session = 0;
    };
    explicit LogScope(std::uint64_t instance, std::uint64_t session = 0) noexcept : before_(ids()) {
        ids() = {instance, session};
    }
    ~LogScope() { ids() = before_; }
    LogScope(LogScope const&) = delete;
    LogScope& operator=(LogScope const&) = delete;

    static Ids current() noexcept { return ids(); }

private:
    static Ids& ids() noexcept {
        thread_local Ids ids;
        return ids;
    }

    Ids before_;
};

}  // namespace dkv

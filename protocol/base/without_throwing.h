// Where exceptions end. dkv's own code returns Results; the standard library and others throw when
// memory, threads or mappings run out. Then one request fails, and not the process.
#pragma once

#include <exception>
#include <new>
#include <utility>

#include <system_error>

#include "protocol/base/result.h"

namespace dkv {

/// What `work` returns, a Result. Errors besides its own: LimitExceeded when it ran out of memory
/// or threads; Internal for any other exception.
template <class Work>
auto without_throwing(Work&& work) noexcept -> decltype(work()) {
    // Messages short enough to need no memory.
    try {
        return std::forward<Work>(work)();
    } catch (std::bad_alloc const&) {
        return Error{ErrorCode::LimitExceeded, "out of memory"};
    } catch (std::system_error const& error) {
        if (error.code() == std::errc::resource_unavailable_try_again)
            return Error{
                ErrorCode::LimitExceeded,
                "the system gives no more threads: see RLIMIT_NPROC and the cgroup's pids.max"};
        return Error{ErrorCode::Internal, error.what()};
    } catch (std::exception const& error) {
        return Error{ErrorCode::Internal, error.what()};
    }
}

}  // namespace dkv

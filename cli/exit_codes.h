// What dkv's exit status says. --help and docs/man/dkv.1 list the same numbers.
#pragma once

#include "protocol/base/error.h"

namespace dkv::cli {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;         ///< The request failed, or doctor found something broken.
constexpr int kExitUsage = 2;          ///< The command line makes no sense.
constexpr int kExitNoSidecar = 3;      ///< No sidecar listens there, or none answers in time.
constexpr int kExitVersion = 4;        ///< The sidecar speaks another version of the protocol.
constexpr int kExitInterrupted = 130;  ///< Ctrl-C, as shells have it: 128 + SIGINT.
constexpr int kExitInternal = 70;      ///< A bug in dkv: EX_SOFTWARE.

constexpr char const* kExitCodesHelp =
    "Exit status:\n"
    "  0   done\n"
    "  1   the request failed; one line on stderr says why\n"
    "  2   wrong usage\n"
    "  3   no sidecar answers at the endpoint\n"
    "  4   the sidecar speaks another version of the protocol\n"
    "  70  internal error: a bug in dkv\n"
    "  130 interrupted";

constexpr int exit_code_of(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::Unavailable:
        case ErrorCode::DeadlineExceeded: return kExitNoSidecar;
        case ErrorCode::VersionMismatch: return kExitVersion;
        case ErrorCode::Internal: return kExitInternal;
        case ErrorCode::Cancelled: return kExitInterrupted;
        default: return kExitFailed;
    }
}

}  // namespace dkv::cli

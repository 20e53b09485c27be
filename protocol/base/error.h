// The words for what can go wrong. One list for C++, the wire, the C ABI and Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace dkv {

/// Numbers are part of the wire protocol and of the C ABI: add at the end, never renumber.
enum class ErrorCode : std::uint16_t {
    InvalidArgument = 1,    ///< The request is malformed or out of range; retrying cannot help.
    NotFound = 2,           ///< No such session, region, policy or file.
    AlreadyExists = 3,      ///< The name or id is taken.
    BadState = 4,           ///< The session is not in a state that allows this request.
    LimitExceeded = 5,      ///< A configured limit was hit; retry after freeing something.
    Unsupported = 6,        ///< A valid request that this build or device cannot serve.
    CorruptData = 7,        ///< Bytes on disk or on the wire do not parse.
    Io = 8,                 ///< The operating system said no; the message holds errno's text.
    Device = 9,             ///< The CUDA runtime said no; the message holds its name for it.
    Unavailable = 10,       ///< No sidecar answers, or it went away; retry when one is there.
    DeadlineExceeded = 11,  ///< No answer in time; the work may or may not have been done.
    VersionMismatch = 12,   ///< The two sides speak different versions of the protocol.
    UnknownInstance = 13,   ///< The sidecar does not know this engine (any more): hello again.
    Internal = 14,          ///< A bug on our side, caught at a boundary.
    Cancelled = 15,         ///< The caller told it to stop.
    PermissionDenied = 16,  ///< Not for this user or process, or not over this connection.
};

/// "invalid_argument" and so on: the name used in JSON, in logs and in docs/PROTOCOL.md.
std::string_view name_of(ErrorCode code) noexcept;

/// Whether the same request may succeed later, unchanged.
bool is_retryable(ErrorCode code) noexcept;

/// An operating error: expected, to be handled. Bugs are not Errors; they abort (see assert.h).
struct Error {
    ErrorCode code;
    std::string message;  ///< For people: a lower-case phrase that names the value at fault.
};

inline Error invalid(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}
inline Error unsupported(std::string message) {
    return {ErrorCode::Unsupported, std::move(message)};
}
inline Error corrupt(std::string message) {
    return {ErrorCode::CorruptData, std::move(message)};
}

}  // namespace dkv

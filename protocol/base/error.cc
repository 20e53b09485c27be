#include "protocol/base/error.h"

namespace dkv {

std::string_view name_of(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::InvalidArgument: return "invalid_argument";
        case ErrorCode::NotFound: return "not_found";
        case ErrorCode::AlreadyExists: return "already_exists";
        case ErrorCode::BadState: return "bad_state";
        case ErrorCode::LimitExceeded: return "limit_exceeded";
        case ErrorCode::Unsupported: return "unsupported";
        case ErrorCode::CorruptData: return "corrupt_data";
        case ErrorCode::Io: return "io";
        case ErrorCode::Device: return "device";
        case ErrorCode::Unavailable: return "unavailable";
        case ErrorCode::DeadlineExceeded: return "deadline_exceeded";
        case ErrorCode::VersionMismatch: return "version_mismatch";
        case ErrorCode::UnknownInstance: return "unknown_instance";
        case ErrorCode::Internal: return "internal";
        case ErrorCode::Cancelled: return "cancelled";
        case ErrorCode::PermissionDenied: return "permission_denied";
    }
    return "unknown";
}

bool is_retryable(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::LimitExceeded:
        case ErrorCode::Unavailable:
        case ErrorCode::DeadlineExceeded:
        case ErrorCode::UnknownInstance: return true;
        default: return false;
    }
}

}  // namespace dkv

// Reads little-endian numbers from bytes of another program, never past their end.
#pragma once

#include <cstring>
#include <span>

#include <fmt/format.h>

#include "protocol/base/result.h"

namespace dkv {

class ByteCursor {
public:
    explicit ByteCursor(std::span<std::byte const> bytes, std::uint64_t offset = 0)
        : bytes_(bytes), offset_(offset) {
        DKV_ASSERT(offset <= bytes.size());
    }

    std::uint64_t offset() const noexcept { return offset_; }
    std::uint64_t left() const noexcept { return bytes_.size() - offset_; }

    /// Errors: CorruptData, naming the field, when there is less.
    template <class T>
    Result<T> take(char const* field) {
        auto const bytes = DKV_TRY(take_bytes(field, sizeof(T)));
        T value;
        std::memcpy(&value, bytes.data(), sizeof(T));
        return value;
    }

    /// Likewise.
    Result<std::span<std::byte const>> take_bytes(char const* field, std::uint64_t count) {
        if (count > left())
            return Error{ErrorCode::CorruptData,
                         fmt::format("{} at byte {} has {} bytes, but the file ends at {}", field,
                                     offset_, count, bytes_.size())};
        auto const taken = bytes_.subspan(offset_, count);
        offset_ += count;
        return taken;
    }

private:
    std::span<std::byte const> bytes_;
    std::uint64_t offset_ = 0;
};

}  // namespace dkv

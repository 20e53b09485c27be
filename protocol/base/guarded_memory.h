// Mapped memory whose pages may not be there when they are touched: a file that was cut, or a file
// system without room for one more page. A touch then is a SIGBUS, which ends a process.
#pragma once

#include <cstddef>

#include "protocol/base/result.h"

namespace dkv {

/// From now on a page of guarded memory that cannot be had reads as zeros, and what is written to
/// it is lost: is_whole() tells. Everywhere else a SIGBUS ends the process as before. For main().
void survive_missing_pages();

/// Guards a mapping while it lives; ends before the mapping does.
class GuardedMemory {
public:
    GuardedMemory() = default;
    /// Errors: LimitExceeded when this process guards as much as it can.
    static Result<GuardedMemory> over(void const* begin, std::size_t bytes);

    GuardedMemory(GuardedMemory&& other) noexcept;
    GuardedMemory& operator=(GuardedMemory&& other) noexcept;
    ~GuardedMemory();

    /// False: a page could not be had. It stays so.
    bool is_whole() const noexcept;

private:
    std::size_t place_ = 0;  ///< In the table that the signal handler reads, plus one; 0: none.
};

}  // namespace dkv

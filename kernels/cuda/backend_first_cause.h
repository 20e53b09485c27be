// A device that is lost fails every call, each in its own words: only the first says why.
#pragma once

#include <optional>
#include <utility>

#include "protocol/base/result.h"

namespace dkv::cuda {

class FirstCause {
public:
    /// op(), unless an op before was failed by the device and `lost()` after it: then its error.
    template <class Op, class Lost>
    Result<void> run(Op const& op, Lost const& lost) {
        if (cause_) return *cause_;
        Result<void> result = op();
        if (!result && result.error().code == ErrorCode::Device && lost()) cause_ = result.error();
        return result;
    }

private:
    std::optional<Error> cause_;
};

}  // namespace dkv::cuda

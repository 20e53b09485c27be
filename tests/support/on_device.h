// A backend whose arguments lie in the host's memory, whatever the memory of the backend beneath:
// each op's operands are put into the backend's own memory, at addresses just as (mis)aligned, and
// what it wrote is fetched back. One test body then serves every backend.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace dkv::test {

/// Every call synchronizes, so that a late error is this call's.
std::unique_ptr<Backend> on_device(std::unique_ptr<Backend> device);

}  // namespace dkv::test

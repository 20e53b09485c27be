#include "protocol/base/version.h"

namespace dkv {

constinit char const* const kVersion = DKV_VERSION;

}  // namespace dkv

#include "protocol/base/version.h"

namespace dkv {

constinit char const* const kVersion = DKV_THIS_VERSION;

}  // namespace dkv

#include "tests/kernels/primitives/warp_kernels.h"

namespace dkv::test {
namespace {

Error absent() {
    return {ErrorCode::Unsupported, "this was built without CUDA"};
}

}  // namespace

Result<std::vector<float>> product(Dtype /*dtype*/,
                                   Bits const& /*a*/,
                                   Bits const& /*b*/,
                                   std::vector<float> const& /*c*/) {
    return absent();
}
Result<std::vector<float>> product_of_rows(Dtype /*dtype*/,
                                           Bits const& /*a*/,
                                           Bits const& /*b_transposed*/) {
    return absent();
}
Result<Bits> loaded(Bits const& /*matrices*/) {
    return absent();
}
Result<Copied> copied(std::vector<std::uint32_t> const& /*words*/,
                      std::vector<std::uint32_t> const& /*present*/) {
    return absent();
}
Result<std::vector<float>> powers(std::vector<float> const& /*exponents*/) {
    return absent();
}

}  // namespace dkv::test

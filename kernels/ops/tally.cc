#include "kernels/ops/tally.h"

#include <string>

#include "kernels/tensor_view.h"

namespace dkv {

Result<void> check(TallyArgs const& args) {
    for (std::size_t layer = 0; layer < args.layers.size(); ++layer) {
        std::string const name = "layers[" + std::to_string(layer) + "]";
        DKV_TRY(check_elements(name.c_str(), args.layers[layer].size(), {args.heads, args.tokens}));
    }
    if (!args.scales.empty())
        DKV_TRY(check_elements("scales", args.scales.size(), {args.layers.size()}));
    return check_elements("counts", args.counts.size(), {args.layers.size(), args.heads});
}

}  // namespace dkv

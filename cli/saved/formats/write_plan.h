// What the header of a file to come says, for the formats that are safetensors.
#pragma once

#include "cli/saved/formats/write_cache.h"
#include "protocol/container/dkv_plan.h"

namespace dkv {

struct FilePlan {
    std::vector<TensorPlan> tensors;
    std::map<std::string, std::string> metadata;
    bool with_crcs = false;
    bool with_positions = false;  ///< Of layers that are not whole.
    bool with_queries = false;
    bool from_zero = false;  ///< Keys are turned to 0, 1, 2 …
    std::optional<QuantisedRows> quantised = {};
    bool with_counts = false;  ///< Behind a layer's values, its number of rows: I32 [].
};

/// Errors: Unsupported, as write_cache() says.
Result<FilePlan> file_plan(WriteRequest const& request);

}  // namespace dkv

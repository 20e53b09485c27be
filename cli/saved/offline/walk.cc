#include "cli/saved/offline/walk.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cli/saved/offline/pages.h"
#include "cli/saved/offline/source.h"
#include "cli/saved/offline/verifier.h"

namespace dkv::offline {
namespace {

void report(WalkOptions const& options, std::uint32_t layers_done, std::uint32_t layers) {
    if (options.progress == nullptr || options.bytes_total == 0) return;
    std::uint64_t const bytes = options.bytes_end - options.bytes_begin;
    options.progress->report(
        options.file,
        options.bytes_begin + bytes / layers * layers_done + bytes % layers * layers_done / layers,
        options.bytes_total);
}

}  // namespace

Result<void> walk(SavedCache const& file, WalkOptions const& options, OnLayer const& each) {
    std::uint32_t const layers = file.geometry().layers;
    std::vector<SavedLayer> read;  // Those whose pages may still be here.
    std::uint32_t dropped = 0;
    auto const drop_before = [&](std::uint32_t layer) {
        for (; dropped < layer; ++dropped) {
            drop_pages(file, read[dropped]);
            read[dropped] = {};
        }
    };
    Verifier verifier(file, options.verify_threads);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
        if (options.progress != nullptr && options.progress->stopped()) return interrupted();
        drop_before(std::min(layer, verifier.begin(layer)));
        DKV_TRY(verifier.so_far());
        read.push_back(DKV_TRY(file.layer(layer)));
        DKV_TRY(each(layer, read.back()));
        report(options, layer + 1, layers);
    }
    DKV_TRY(verifier.finish());
    drop_before(layers);
    return file.check_unchanged();
}

Result<void> walk(SavedCache const& file,
                  WalkOptions const& options,
                  Ranker& ranker,
                  std::span<Plan> plans,
                  OnLayer const& also) {
    return walk(file, options, [&](std::uint32_t index, SavedLayer const& layer) -> Result<void> {
        ranker.take(source_of(file.facts(), layer));
        for (Plan& plan : plans)
            plan.take(DKV_TRY(plan.weigh(index, ranker)));
        return also ? also(index, layer) : Result<void>();
    });
}

}  // namespace dkv::offline

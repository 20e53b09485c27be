#include "cli/saved/offline/conversion_notes.h"

#include <fmt/format.h>

namespace dkv::offline {

std::vector<std::string> conversion_notes(WriteRequest const& request, FileFormat from, bool cut) {
    CacheFacts const& facts = request.facts;
    std::vector<std::string> notes;
    bool const other = from != request.format;
    if (cut && !other && facts.sliding_checkpoint)
        notes.push_back(fmt::format(
            "of the checkpoints ({}) the newest was kept, {} bytes: it is of the sliding layers",
            facts.checkpoints, facts.sliding_checkpoint->bytes));
    else if (!facts.checkpoints.empty() && (cut || other))
        notes.push_back(fmt::format(
            "the checkpoints were left out: {}; {}", facts.checkpoints,
            cut ? "they are states of the whole cache" : "the format has no place for them"));
    if (!facts.media.empty() && other)
        notes.push_back(fmt::format("the media were left out: {}; the format has no place for them",
                                    facts.media));
    bool const moved = is_llama(request.format) && is_llama(from);
    if (facts.stored && request.bits != RowBits::Own)
        notes.push_back(
            fmt::format("rows were {} already: what that lost stays lost", facts.stored->type));
    if (facts.stored && request.bits == RowBits::Own && !moved)
        notes.push_back(fmt::format(
            "rows were {}: they are {} now, dequantised, of {} bytes a "
            "token and head instead of {}{}",
            facts.stored->type, name_of(facts.geometry.dtype), 2 * facts.geometry.row_bytes(),
            facts.stored_bytes(),
            facts.stored->rest_bytes.empty() ? ""
                                             : fmt::format(" or {}", 2 * facts.stored_bytes())));
    if (request.format == FileFormat::MlxLm && !is_mlx_lm(from))
        notes.emplace_back("mlx-lm 0.32 and later read it: --format mlx-lm@0.31 is for older ones");
    auto const order = written_key_order(request);
    if (order && facts.rope.interleaved != (order.value() == KeyOrder::Pairs))
        notes.push_back(
            fmt::format("the dims of the keys were brought into {}", name_of(order.value())));
    return notes;
}

}  // namespace dkv::offline

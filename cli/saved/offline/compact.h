// A saved cache in, a smaller one out: the sidecar's own plan over a file, streamed.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/saved/formats/key_order.h"
#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/progress.h"
#include "kernels/backend.h"
#include "protocol/container/links.h"
#include "protocol/container/quantised_rows.h"
#include "sidecar/policy/params.h"

namespace dkv::offline {

/// What a size was certified for: requests like these, of one model.
struct Certified {
    std::string name;
    std::string weights;  ///< Fingerprint of the model's.
    std::uint32_t tokens_min = 0;
    std::uint32_t tokens_max = 0;
};

struct CompactRequest {
    std::filesystem::path input;
    std::filesystem::path output;
    Links links = Links::Follow;  ///< Of the output's name.
    PolicyRequest policy;
    OpenOptions open = {};
    std::optional<FileFormat> format =
        {};  ///< Nothing: the input's, or dkv where that is read only.
    std::optional<KeyOrder> key_order = {};  ///< Of the output, as WriteRequest has it.
    /// dkv's format: of an element of the output's K and V. The policy's capacity and ratio are
    /// then the bytes that so many tokens have in the input.
    RowBits bits = RowBits::Own;
    bool verify = true;         ///< Every byte read is checked before an output is committed.
    bool keep_queries = false;  ///< dkv's format: the window's queries go along.
    /// Where the format has no room for unequal budgets, the smaller ones are filled up to the
    /// largest with their next best tokens, instead of a refusal: llama.cpp in all layers and
    /// heads, hf and mlx-lm in the heads of a layer.
    bool fill = false;
    bool dry_run = false;  ///< Everything but the output.
    /// Set when the size comes from a certificate: a file outside its scope is refused.
    std::optional<Certified> certified = {};
    bool force = false;  ///< Also when the output is there and says it was made of this request.
};

struct CompactOutcome {
    std::filesystem::path input;
    std::filesystem::path output;
    bool already_there = false;  ///< A finished output of the same request: nothing was done.
    bool kept_whole = false;     ///< The prompt is no longer than the capacity.
    FileFormat from = FileFormat::Dkv;
    FileFormat to = FileFormat::Dkv;
    Geometry geometry;
    std::string model;
    std::uint32_t prompt_tokens = 0;
    PolicyParams params;                 ///< As used.
    RowBits bits = RowBits::Own;         ///< As asked for.
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads]
    /// [layers]; empty: unknown, as it is where the policy ranks by anything but attention.
    std::vector<float> mass_kept;
    std::uint64_t rows_bytes_before = 0;  ///< K and V.
    std::uint64_t rows_bytes_after = 0;
    std::uint64_t file_bytes_before = 0;
    std::uint64_t file_bytes_after = 0;  ///< Of the finished file; under dry_run what it would be.
    double seconds = 0;
    std::vector<std::string> notes;  ///< What a reader should know: "keys were turned to 0 … 511".
};

/// One file. `bytes` of the policy is the size of the output *file* at most.
///
/// Errors: those of open_cache(), resolve(), write_cache(); InvalidArgument when the policy needs
/// queries and the file has none (the message says what to do: dkv capture, or knorm, keydiff,
/// streamingllm); Unsupported for a cache that is compacted already, for output = input;
/// AlreadyExists for another output under that name without force.
Result<CompactOutcome> compact(Backend& backend,
                               CompactRequest const& request,
                               Progress const& progress = {},
                               std::size_t file = 0);

/// What became of one file of several.
using Ended = std::function<void(std::size_t file, Result<CompactOutcome> const& outcome)>;

/// Several files on `jobs` threads (0: every core), each with one backend thread when there are
/// more files than one. One file's failure does not stop the others. In the requests' order.
/// `ended` is called as each file ends, never twice at once.
std::vector<Result<CompactOutcome>> compact_all(std::span<CompactRequest const> requests,
                                                unsigned jobs,
                                                Progress const& progress,
                                                Ended const& ended = {});

}  // namespace dkv::offline

// What `dkv verify` found in a folder: a line for each cache, in the hidden file
// .dkv-verified.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "cli/saved/paths.h"
#include "protocol/base/result.h"

namespace dkv::cli {

struct Verdict {
    SeenFile seen = {};
    std::string fingerprint = {};  ///< Of the bytes that were good; empty: none ever were.
    bool good = false;
    std::int64_t at_ns = 0;
};

enum class Verified : std::uint8_t { Never, Good, Bad, Changed };

class VerifiedRecord {
public:
    /// Empty where there is none; lines that are not understood are passed over.
    static VerifiedRecord read(std::filesystem::path const& folder);

    /// nullptr: never verified.
    Verdict const* of(std::string const& name) const;
    /// Changed: the file has another size or time than when it was verified.
    Verified state(std::string const& name, SeenFile const& now) const;

    void set(std::string const& name, Verdict verdict) { verdicts_[name] = std::move(verdict); }

    /// Of the names that are still there. Errors: those of NewFile, which refuses a link.
    Result<void> write() const;

private:
    explicit VerifiedRecord(std::filesystem::path folder) : folder_(std::move(folder)) {}

    std::filesystem::path folder_;
    std::map<std::string, Verdict> verdicts_;
};

}  // namespace dkv::cli

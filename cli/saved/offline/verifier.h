// Checks a file's bytes on its own threads, while the caller works on the same layers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "cli/saved/formats/saved_cache.h"

namespace dkv::offline {

/// Stays near the layer that the other works on, so that both find the same bytes in the caches.
class Verifier {
public:
    /// `file` outlives the verifier. No threads: everything is right.
    Verifier(SavedCache const& file, unsigned threads);
    Verifier(Verifier const&) = delete;
    Verifier& operator=(Verifier const&) = delete;
    ~Verifier();

    /// The other begins with this layer. Returns the layers up to which all is verified.
    std::uint32_t begin(std::uint32_t layer);

    /// Waits until every layer is verified, or one is not right.
    ///
    /// Errors: of the lowest layer that is not right.
    Result<void> finish();

    /// What is known so far.
    Result<void> so_far();

private:
    void work();
    Result<void> verify(std::uint32_t layer) const;
    std::uint32_t verified_up_to() const;

    SavedCache const& file_;
    unsigned const ahead_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint32_t next_ = 0;      // First layer that is not taken yet.
    std::uint32_t allowed_ = 0;   // Layers below may be taken.
    std::vector<bool> verified_;  // [layers]
    std::optional<Error> error_;
    std::uint32_t error_layer_ = 0;
    bool stop_ = false;
    std::vector<std::jthread> threads_;
};

}  // namespace dkv::offline

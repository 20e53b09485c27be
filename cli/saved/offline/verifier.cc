#include "cli/saved/offline/verifier.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "kernels/host.h"

namespace dkv::offline {
namespace {

/// The few queries that score everything else.
Result<void> check_queries_finite(SavedCache const& file, std::uint32_t layer) {
    SavedLayer const saved = DKV_TRY(file.layer(layer));  // Rows may live as long as it does.
    RowsView const& queries = saved.queries;
    if (queries.data == nullptr) return {};
    for (std::uint32_t head = 0; head < queries.heads; ++head)
        for (std::uint32_t token = 0; token < queries.tokens; ++token)
            for (std::uint32_t dim = 0; dim < queries.head_dim; ++dim) {
                std::byte const* const element =
                    queries.row(head, token) + dim * queries.dim_stride * bytes_of(queries.dtype);
                if (!std::isfinite(load_f32(element, queries.dtype)))
                    return Error{ErrorCode::CorruptData,
                                 "the queries of layer " + std::to_string(layer) +
                                     " are not finite: head " + std::to_string(head) + ", row " +
                                     std::to_string(token) + ", dim " + std::to_string(dim)};
            }
    return {};
}

}  // namespace

Verifier::Verifier(SavedCache const& file, unsigned threads)
    : file_(file), ahead_(threads + 1), verified_(file.geometry().layers, threads == 0) {
    for (unsigned thread = 0; thread < threads; ++thread)
        threads_.emplace_back([this] { work(); });
}

Verifier::~Verifier() {
    {
        std::lock_guard const lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
}

Result<void> Verifier::verify(std::uint32_t layer) const {
    try {
        DKV_TRY(file_.verify(layer));
        return check_queries_finite(file_, layer);
    } catch (std::bad_alloc const&) {  // Nothing would catch it on this thread.
        return Error{ErrorCode::LimitExceeded, "not enough memory to verify a layer"};
    }
}

void Verifier::work() {
    std::unique_lock lock(mutex_);
    std::uint32_t const layers = file_.geometry().layers;
    for (;;) {
        changed_.wait(lock, [&] { return stop_ || next_ >= layers || next_ < allowed_; });
        if (stop_ || error_ || next_ >= layers) return;
        std::uint32_t const layer = next_++;
        lock.unlock();
        auto const verified = verify(layer);
        lock.lock();
        verified_[layer] = true;
        // Which thread is first must not decide what is said.
        if (!verified && (!error_ || layer < error_layer_)) {
            error_ = verified.error();
            error_layer_ = layer;
        }
        changed_.notify_all();
    }
}

std::uint32_t Verifier::verified_up_to() const {
    return static_cast<std::uint32_t>(std::ranges::find(verified_, false) - verified_.begin());
}

std::uint32_t Verifier::begin(std::uint32_t layer) {
    std::lock_guard const lock(mutex_);
    allowed_ = layer + ahead_;
    changed_.notify_all();
    return verified_up_to();
}

Result<void> Verifier::so_far() {
    std::lock_guard const lock(mutex_);
    // A lower layer may be wrong as well: that is known once it has been looked at.
    if (error_ && verified_up_to() >= error_layer_) return *error_;
    return {};
}

Result<void> Verifier::finish() {
    std::unique_lock lock(mutex_);
    allowed_ = file_.geometry().layers;
    changed_.notify_all();
    changed_.wait(lock, [&] {
        return error_ ? verified_up_to() >= error_layer_ : verified_up_to() >= allowed_;
    });
    if (error_) return *error_;
    return {};
}

}  // namespace dkv::offline

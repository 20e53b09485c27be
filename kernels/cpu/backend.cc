#include "kernels/backend.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <string>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/score_tiles.h"

namespace dkv {
namespace {

constexpr std::align_val_t kAlignment{64};

class HostBuffer final : public BackendBuffer {
public:
    HostBuffer(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}
    ~HostBuffer() override { ::operator delete(data_, kAlignment); }
    HostBuffer(HostBuffer const&) = delete;
    HostBuffer& operator=(HostBuffer const&) = delete;

    std::span<std::byte> bytes() noexcept override { return {data_, bytes_}; }

private:
    std::byte* data_;
    std::size_t bytes_;
};

class CpuBackend final : public Backend {
public:
    explicit CpuBackend(unsigned threads)
        : workers_(threads),
          name_("cpu (" + std::string(cpu::simd().name) + ", " + std::to_string(workers_.count()) +
                (workers_.count() == 1 ? " thread)" : " threads)")) {}

    std::string_view name() const noexcept override { return name_; }

    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) override {
        void* const data =
            bytes <= PTRDIFF_MAX ? ::operator new(bytes, kAlignment, std::nothrow) : nullptr;
        if (data == nullptr)
            return Error{ErrorCode::LimitExceeded,
                         "not enough memory for " + std::to_string(bytes) + " bytes"};
        std::memset(data, 0, bytes);
        return std::unique_ptr<BackendBuffer>(
            std::make_unique<HostBuffer>(static_cast<std::byte*>(data), bytes));
    }

    Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) override {
        return copy(source, target);
    }
    Result<void> download(std::span<std::byte const> source, std::span<std::byte> target) override {
        return copy(source, target);
    }

    Result<void> score(ScoreArgs const& args) override {
        DKV_TRY(check_table(args.keys));
        return ended(cpu::score(args, workers_));
    }
    Result<void> accumulate(AccumulateArgs const& args) override {
        DKV_TRY(check_table(args.keys));
        return ended(cpu::accumulate(args, workers_));
    }
    Result<void> key_score(KeyScoreArgs const& args) override {
        DKV_TRY(check_table(args.keys));
        return ended(cpu::key_score(args, workers_));
    }
    Result<void> pool(PoolArgs const& args) override { return ended(cpu::pool(args, workers_)); }
    Result<void> select(SelectArgs const& args) override {
        return ended(cpu::select(args, workers_));
    }
    Result<void> sum(SumArgs const& args) override { return ended(cpu::sum(args, workers_)); }
    Result<void> surrogate(SurrogateArgs const& args) override {
        DKV_TRY(check_table(args.keys));
        DKV_TRY(check_table(args.values));
        return ended(cpu::surrogate(args, workers_));
    }
    Result<void> tally(TallyArgs const& args) override { return ended(cpu::tally(args, workers_)); }
    Result<void> gather(GatherArgs const& args) override {
        DKV_TRY(check_table(args.source));
        return ended(cpu::gather(args, workers_));
    }
    Result<void> synchronize() override { return {}; }
    void cancel_by(std::atomic<bool> const* cancelled) noexcept override {
        workers_.cancel_by(cancelled);
    }

private:
    /// What an op that was cancelled has written is a part, and must not be read.
    Result<void> ended(Result<void> result) const {
        if (workers_.cancelled()) return Error{ErrorCode::Cancelled, "the work was cancelled"};
        return result;
    }
    /// Behind this, every block of paged rows exists; a device's table is refused with its rows.
    static Result<void> check_table(RowsView const& rows) {
        return rows.place == Place::Host ? check_blocks(rows) : Result<void>();
    }
    static Result<void> copy(std::span<std::byte const> source, std::span<std::byte> target) {
        if (source.size() != target.size())
            return Error{ErrorCode::InvalidArgument, "target has " + std::to_string(target.size()) +
                                                         " bytes, source " +
                                                         std::to_string(source.size())};
        if (!source.empty()) std::memmove(target.data(), source.data(), source.size());
        return {};
    }

    cpu::Workers workers_;
    std::string name_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(unsigned threads) {
    return std::make_unique<CpuBackend>(threads);
}

}  // namespace dkv

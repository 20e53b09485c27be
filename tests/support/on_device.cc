#include "tests/support/on_device.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace dkv::test {
namespace {

constexpr std::size_t kAlignment = 256;

/// Bytes of the host, and where they are on the device: at the same distance from a multiple of
/// 256.
class Mirror {
public:
    static Result<Mirror> of(Backend& device, std::byte const* host, std::size_t bytes) {
        Mirror mirror;
        std::size_t const skew = reinterpret_cast<std::uintptr_t>(host) % kAlignment;
        // Its last byte is the buffer's: whoever reads or writes beyond it meets nobody's memory.
        mirror.buffer_ = DKV_TRY(device.allocate(skew + bytes));
        auto const begin = reinterpret_cast<std::uintptr_t>(mirror.buffer_->bytes().data());
        DKV_ASSERT(begin % kAlignment == 0);
        mirror.device_ = mirror.buffer_->bytes().subspan(skew, bytes);
        mirror.host_ = {const_cast<std::byte*>(host), bytes};
        DKV_TRY(device.upload(mirror.host_, mirror.device_));
        return mirror;
    }
    std::byte* data() const noexcept { return device_.data(); }
    Result<void> fetch(Backend& device) const { return device.download(device_, host_); }

    template <class T>
    std::span<T> as() const noexcept {
        return {reinterpret_cast<T*>(device_.data()), device_.size() / sizeof(T)};
    }

private:
    std::unique_ptr<BackendBuffer> buffer_;
    std::span<std::byte> device_;
    std::span<std::byte> host_;
};

template <class T>
Result<Mirror> mirror_of(Backend& device, std::span<T> host) {
    return Mirror::of(device, reinterpret_cast<std::byte const*>(host.data()), host.size_bytes());
}

/// Puts the view's table of blocks on the device, and the view with it.
Result<Mirror> mirror_table(Backend& device, RowsView& view) {
    view.place = Place::Device;
    std::size_t const entries = view.paged() ? view.table_size() : 0;
    auto mirror = DKV_TRY(mirror_of(device, std::span(view.blocks, entries)));
    if (view.paged()) view.blocks = mirror.as<std::int32_t const>().data();
    return mirror;
}

struct RowsMirror {
    Mirror data;
    Mirror table;
};

Result<RowsMirror> mirror_of(Backend& device, RowsView& view) {
    std::uint64_t const bytes = DKV_TRY(extent_bytes(view));
    auto table = DKV_TRY(mirror_table(device, view));
    auto data = DKV_TRY(Mirror::of(device, view.data, view.data == nullptr ? 0 : bytes));
    view.data = view.data == nullptr ? nullptr : data.data();
    return RowsMirror{std::move(data), std::move(table)};
}

class OnDevice final : public Backend {
public:
    explicit OnDevice(std::unique_ptr<Backend> device)
        : device_(std::move(device)), name_(std::string(device_->name()) + ", from the host") {}

    std::string_view name() const noexcept override { return name_; }
    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) override {
        return make_cpu_backend(1)->allocate(bytes);
    }
    Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) override {
        return make_cpu_backend(1)->upload(source, target);
    }
    Result<void> download(std::span<std::byte const> source, std::span<std::byte> target) override {
        return make_cpu_backend(1)->download(source, target);
    }
    Result<void> synchronize() override { return device_->synchronize(); }

    Result<void> score(ScoreArgs const& host) override {
        DKV_TRY(check(host));  // The operands' extents are to be trusted from here on.
        ScoreArgs args = host;
        auto const queries = DKV_TRY(mirror_of(*device_, args.queries));
        auto const keys = DKV_TRY(mirror_of(*device_, args.keys));
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        auto const mass = DKV_TRY(mirror_of(*device_, host.mass));
        args.scores = scores.as<float>();
        args.mass = mass.as<float>();
        DKV_TRY(device_->score(args));
        DKV_TRY(scores.fetch(*device_));
        return mass.fetch(*device_);
    }
    Result<void> accumulate(AccumulateArgs const& host) override {
        DKV_TRY(check(host));
        AccumulateArgs args = host;
        auto const queries = DKV_TRY(mirror_of(*device_, args.queries));
        auto const keys = DKV_TRY(mirror_of(*device_, args.keys));
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        args.scores = scores.as<float>();
        DKV_TRY(device_->accumulate(args));
        return scores.fetch(*device_);
    }
    Result<void> key_score(KeyScoreArgs const& host) override {
        DKV_TRY(check(host));
        KeyScoreArgs args = host;
        auto const keys = DKV_TRY(mirror_of(*device_, args.keys));
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        args.scores = scores.as<float>();
        DKV_TRY(device_->key_score(args));
        return scores.fetch(*device_);
    }
    Result<void> surrogate(SurrogateArgs const& host) override {
        DKV_TRY(check(host));
        SurrogateArgs args = host;
        auto const keys = DKV_TRY(mirror_of(*device_, args.keys));
        auto const values = DKV_TRY(mirror_of(*device_, args.values));
        auto const weights = DKV_TRY(mirror_of(*device_, host.weights));
        auto const turns = DKV_TRY(mirror_of(*device_, host.turns));
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        args.weights = weights.as<float const>();
        args.turns = turns.as<float const>();
        args.scores = scores.as<float>();
        DKV_TRY(device_->surrogate(args));
        return scores.fetch(*device_);
    }
    Result<void> pool(PoolArgs const& host) override {
        DKV_TRY(check(host));
        PoolArgs args = host;
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        auto const out = DKV_TRY(mirror_of(*device_, host.out));
        args.scores = scores.as<float const>();
        args.out = out.as<float>();
        DKV_TRY(device_->pool(args));
        return out.fetch(*device_);
    }
    Result<void> select(SelectArgs const& host) override {
        DKV_TRY(check(host));
        SelectArgs args = host;
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        auto const ids = DKV_TRY(mirror_of(*device_, host.ids));
        args.scores = scores.as<float const>();
        args.ids = ids.as<std::int32_t>();
        DKV_TRY(device_->select(args));
        return ids.fetch(*device_);
    }
    Result<void> sum(SumArgs const& host) override {
        DKV_TRY(check(host));
        SumArgs args = host;
        auto const scores = DKV_TRY(mirror_of(*device_, host.scores));
        args.scores = scores.as<float const>();
        DKV_TRY(device_->sum(args));
        return device_->synchronize();
    }
    Result<void> tally(TallyArgs const& host) override {
        DKV_TRY(check(host));
        TallyArgs args = host;
        std::vector<Mirror> mirrors;
        std::vector<std::span<float const>> layers;
        for (auto const layer : host.layers) {
            mirrors.push_back(DKV_TRY(mirror_of(*device_, layer)));
            layers.push_back(mirrors.back().as<float const>());
        }
        args.layers = layers;
        DKV_TRY(device_->tally(args));
        return device_->synchronize();
    }
    Result<void> gather(GatherArgs const& host) override {
        DKV_TRY(check(host));
        GatherArgs args = host;
        auto const ids = DKV_TRY(mirror_of(*device_, host.ids));
        args.ids = ids.as<std::int32_t const>();
        if (inside(host)) return gather_inside(host, args);
        auto const source = DKV_TRY(mirror_of(*device_, args.source));
        auto const out = DKV_TRY(mirror_of(*device_, host.out));
        args.out = out.as<std::byte>();
        DKV_TRY(device_->gather(args));
        return out.fetch(*device_);
    }

private:
    /// Whether source and out share memory: between the heads of a source there may be a target.
    static bool inside(GatherArgs const& host) {
        auto const extent = extent_bytes(host.source);
        if (!extent || host.source.data == nullptr || host.out.empty()) return false;
        return host.out.data() < host.source.data + extent.value() &&
               host.source.data < host.out.data() + host.out.size();
    }
    Result<void> gather_inside(GatherArgs const& host, GatherArgs args) {
        std::uint64_t const extent = DKV_TRY(extent_bytes(host.source));
        std::byte* const begin = std::min(host.source.data, host.out.data());
        std::byte* const end =
            std::max(host.source.data + extent, host.out.data() + host.out.size());
        auto const both =
            DKV_TRY(Mirror::of(*device_, begin, static_cast<std::size_t>(end - begin)));
        args.source.data = both.data() + (host.source.data - begin);
        auto const table = DKV_TRY(mirror_table(*device_, args.source));
        args.out = {both.data() + (host.out.data() - begin), host.out.size()};
        DKV_TRY(device_->gather(args));
        return both.fetch(*device_);
    }

    std::unique_ptr<Backend> device_;
    std::string name_;
};

}  // namespace

std::unique_ptr<Backend> on_device(std::unique_ptr<Backend> device) {
    return std::make_unique<OnDevice>(std::move(device));
}

}  // namespace dkv::test

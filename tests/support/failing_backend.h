// A backend that fails when told to, to see that errors come through and break nothing.
#pragma once

#include <string>

#include "kernels/backend.h"

namespace dkv {

/// Passes every call on, but for one: call number `fail_at`, counted from 0 over all functions.
class FailingBackend final : public Backend {
public:
    FailingBackend(Backend& inner, int fail_at) : inner_(inner), fail_at_(fail_at) {}

    /// Whether the call that fails has been made.
    bool failed() const noexcept { return calls_ > fail_at_; }

    std::string_view name() const noexcept override { return "failing"; }
    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) override {
        DKV_TRY(count("allocate"));
        return inner_.allocate(bytes);
    }
    Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(count("upload"));
        return inner_.upload(source, target);
    }
    Result<void> download(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(count("download"));
        return inner_.download(source, target);
    }
    Result<void> score(ScoreArgs const& args) override {
        DKV_TRY(count("score"));
        return inner_.score(args);
    }
    Result<void> accumulate(AccumulateArgs const& args) override {
        DKV_TRY(count("accumulate"));
        return inner_.accumulate(args);
    }
    Result<void> key_score(KeyScoreArgs const& args) override {
        DKV_TRY(count("key_score"));
        return inner_.key_score(args);
    }
    Result<void> pool(PoolArgs const& args) override {
        DKV_TRY(count("pool"));
        return inner_.pool(args);
    }
    Result<void> select(SelectArgs const& args) override {
        DKV_TRY(count("select"));
        return inner_.select(args);
    }
    Result<void> sum(SumArgs const& args) override {
        DKV_TRY(count("sum"));
        return inner_.sum(args);
    }
    Result<void> surrogate(SurrogateArgs const& args) override {
        DKV_TRY(count("surrogate"));
        return inner_.surrogate(args);
    }
    Result<void> tally(TallyArgs const& args) override {
        DKV_TRY(count("tally"));
        return inner_.tally(args);
    }
    Result<void> gather(GatherArgs const& args) override {
        DKV_TRY(count("gather"));
        return inner_.gather(args);
    }
    Result<void> synchronize() override {
        DKV_TRY(count("synchronize"));
        return inner_.synchronize();
    }

private:
    Result<void> count(char const* function) {
        if (calls_++ != fail_at_) return {};
        return Error{ErrorCode::Device, std::string(function) + " was made to fail"};
    }

    Backend& inner_;
    int const fail_at_;
    int calls_ = 0;
};

}  // namespace dkv

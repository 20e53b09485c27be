#include "protocol/sdk/controller.h"

#include <algorithm>
#include <deque>
#include <utility>

#include <zmq.hpp>

#include "protocol/base/endpoint.h"
#include "protocol/schema/envelope.h"
#include "protocol/sdk/convert.h"
#include "protocol/sdk/link.h"

namespace dkv::sdk {
namespace {

/// "gpu1" of tcp://gpu1:9465, "::1" of tcp://[::1]:9465.
std::string host_of(std::string const& endpoint) {
    auto host = endpoint.substr(6, endpoint.rfind(':') - 6);
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    return host;
}

Result<LinkKeys> read_keys(std::string const& endpoint, KeyFiles const& files) {
    auto const where = [](std::string const& given,
                          std::string const& name) -> Result<std::filesystem::path> {
        if (!given.empty()) return std::filesystem::path(given);
        return DKV_TRY(keys::folder()) / name;
    };
    DKV_TRY(keys::require_curve());
    LinkKeys keys;
    auto const secret = DKV_TRY(where(files.secret, keys::kSecretFile));
    auto pair = keys::read_pair(secret);
    if (!pair && pair.error().code == ErrorCode::NotFound)
        return Error{ErrorCode::NotFound, endpoint + " takes a key of yours, and '" +
                                              secret.string() +
                                              "' is not there: dkv keys makes it"};
    keys.own = DKV_TRY(std::move(pair));
    keys.sidecar_file = DKV_TRY(where(files.sidecar, "sidecars/" + host_of(endpoint) + ".key"));
    auto sidecar = keys::read_public_key(keys.sidecar_file);
    if (!sidecar && sidecar.error().code == ErrorCode::NotFound)
        return Error{ErrorCode::NotFound, "the public key of the sidecar at " + endpoint +
                                              " is not known: copy its "
                                              "dkv.key to '" +
                                              keys.sidecar_file.string() +
                                              "', or name the file with --sidecar-key"};
    keys.sidecar = DKV_TRY(std::move(sidecar));
    return keys;
}

class DealerController : public Controller {
public:
    DealerController(std::string endpoint, milliseconds timeout, KeyFiles keys)
        : endpoint_(std::move(endpoint)), timeout_(timeout), key_files_(std::move(keys)) {}

    Result<wire::StatusInfoT> status() override {
        return ask<wire::StatusInfoT>(wire::GetStatusT{});
    }
    Result<wire::InstanceListT> instances() override {
        return ask<wire::InstanceListT>(wire::ListInstancesT{});
    }
    Result<wire::SessionListT> sessions(std::uint64_t instance) override {
        wire::ListSessionsT message;
        message.instance = instance;
        return ask<wire::SessionListT>(message);
    }
    Result<wire::SessionListT> spans(std::uint64_t session) override {
        wire::ListSessionsT message;
        message.session = session;
        message.spans = true;
        return ask<wire::SessionListT>(message);
    }
    Result<wire::SavingsInfoT> savings() override {
        return ask<wire::SavingsInfoT>(wire::GetSavingsT{});
    }
    Result<wire::PolicyListT> policies() override {
        return ask<wire::PolicyListT>(wire::ListPoliciesT{});
    }
    Result<void> set_policy(std::uint64_t instance, wire::PolicyT const* policy) override {
        wire::SetPolicyT message;
        message.instance = instance;
        if (policy != nullptr) message.policy = std::make_unique<wire::PolicyT>(*policy);
        DKV_TRY(ask<wire::DoneT>(std::move(message)));
        return {};
    }
    Result<void> stop() override {
        if (boot_id_ == 0) DKV_TRY(status());
        wire::StopT message;
        message.boot_id = boot_id_;
        DKV_TRY(reach(Clock::now() + timeout_));
        auto const done = ask<wire::DoneT>(message);
        // A sidecar that ends at once may take its answer with it: libzmq drops what is not read
        // when a connection ends. That it went away is what was asked for.
        if (!done && !(done.error().code == ErrorCode::Unavailable && !link_)) return done.error();
        return {};
    }
    Result<void> detach(std::uint64_t instance) override {
        wire::DetachT message;
        message.instance = instance;
        DKV_TRY(ask<wire::DoneT>(message));
        return {};
    }
    Result<void> subscribe() override {
        wire::SubscribeT message;
        message.on = true;
        DKV_TRY(ask<wire::DoneT>(message));
        subscribed_ = true;
        return {};
    }

    Result<std::optional<wire::NoticeT>> next_notice(milliseconds wait) override {
        if (!subscribed_)
            return Error{ErrorCode::BadState, "nothing was subscribed to, so no notice comes"};
        auto const deadline = Clock::now() + wait;
        while (notices_.empty()) {
            if (!link_) return went_away();
            auto const now = Clock::now();
            DKV_TRY(listen(std::max(Clock::duration::zero(), deadline - now), 0));
            if (notices_.empty() && now >= deadline) return std::optional<wire::NoticeT>{};
        }
        std::optional<wire::NoticeT> first(std::move(notices_.front()));
        notices_.pop_front();
        return first;
    }

private:
    static constexpr std::size_t kNoticesMax = 65'536;  // Older ones give way to newer ones.

    Error went_away() const {
        return Error{ErrorCode::Unavailable, "the sidecar at " + endpoint_ + " went away"};
    }
    Error no_answer() const {
        return Error{ErrorCode::DeadlineExceeded, "the sidecar at " + endpoint_ +
                                                      " did not answer in " +
                                                      std::to_string(timeout_.count()) + " ms"};
    }
    Error nobody() const {
        return Error{ErrorCode::Unavailable,
                     "no sidecar answers at " + endpoint_ + "; start one with dkvd"};
    }

    Result<void> reach(Deadline deadline) {
        if (link_) return {};
        subscribed_ = false;
        std::optional<LinkKeys> keys;
        if (endpoint_.starts_with("tcp://")) keys = DKV_TRY(read_keys(endpoint_, key_files_));
        auto link = DKV_TRY(Link::open(context_, endpoint_, std::move(keys)));
        while (true) {
            auto const now = Clock::now();
            if (now >= deadline) return link->is_connected() ? no_answer() : nobody();
            auto const news = link->wait(deadline - now);
            if (news.foreign) return *news.foreign;
            if (news.refused) return nobody();
            if (news.up && !news.down) break;
        }
        link_ = std::move(link);
        return {};
    }

    /// Takes what comes; the reply to `id`, if it was there.
    Result<std::optional<wire::BodyUnion>> listen(Clock::duration wait, std::uint64_t id) {
        auto news = link_->wait(wait);
        std::optional<wire::BodyUnion> reply;
        for (auto const& message : news.messages) {
            std::uint64_t its_id = 0;
            auto decoded =
                decode({static_cast<std::byte const*>(message.data()), message.size()}, &its_id);
            if (!decoded && (its_id == 0 || its_id == id)) return std::move(decoded).error();
            if (!decoded) continue;
            auto& envelope = *decoded.value();
            if (auto* const notice = envelope.body.AsNotice(); notice != nullptr && its_id == 0) {
                if (notices_.size() == kNoticesMax) notices_.pop_front();
                notices_.push_back(std::move(*notice));
            } else if (its_id == id && id != 0) {
                reply = std::move(envelope.body);
                boot_id_ = envelope.boot_id;
            }
        }
        if (news.down) link_.reset();
        return reply;
    }

    template <class Answer, class Question>
    Result<Answer> ask(Question question) {
        auto const deadline = Clock::now() + timeout_;
        DKV_TRY(reach(deadline));
        wire::EnvelopeT envelope;
        envelope.id = ++last_id_;
        envelope.body = body_of(std::move(question));
        DKV_TRY(link_->send(encode(envelope)));
        while (true) {
            auto const now = Clock::now();
            auto reply =
                DKV_TRY(listen(std::max(Clock::duration::zero(), deadline - now), envelope.id));
            if (reply) {
                if (auto const* failure = reply->AsFailure()) return error_of(*failure);
                return expect<Answer>(std::move(*reply));
            }
            if (!link_) return went_away();
            if (now >= deadline) {
                link_.reset();  // A late reply must not meet a later question.
                return no_answer();
            }
        }
    }

    std::string const endpoint_;
    milliseconds const timeout_;
    KeyFiles const key_files_;
    zmq::context_t context_;
    std::unique_ptr<Link> link_;
    std::uint64_t last_id_ = 0;
    std::uint64_t boot_id_ = 0;  ///< Of the sidecar that answered last.
    bool subscribed_ = false;
    std::deque<wire::NoticeT> notices_;
};

}  // namespace

Result<std::unique_ptr<Controller>> Controller::connect(std::string endpoint,
                                                        std::chrono::milliseconds timeout,
                                                        KeyFiles const& keys) {
    DKV_TRY(check_endpoint(endpoint));
    return std::unique_ptr<Controller>(new DealerController(std::move(endpoint), timeout, keys));
}

}  // namespace dkv::sdk

// The connection's own thread: the socket, the clock, and what a sidecar says.
#include <algorithm>
#include <unistd.h>
#include <utility>

#include "protocol/schema/envelope.h"
#include "protocol/sdk/connection.h"
#include "protocol/sdk/convert.h"

namespace dkv::sdk {
namespace {

constexpr milliseconds kRetryAfter{1000};  // When a sidecar is there and said no.
constexpr milliseconds kNoTimer{3'600'000};
constexpr milliseconds kGoodbyeWithin{250};
constexpr milliseconds kHeartbeatMin{10};
constexpr milliseconds kHeartbeatMax{60'000};
constexpr int kHeartbeatsMissedMax = 5;

Error went_away(std::string const& why = {}) {
    return Error{ErrorCode::Unavailable, "the sidecar went away" + (why.empty() ? "" : ": " + why)};
}

}  // namespace

void Connection::run() {
    try {
        serve();
        end_epoch(Error{ErrorCode::BadState, "the engine was closed"});
    } catch (std::exception const& error) {  // Of ZeroMQ or the allocator; the host must not fall.
        end_epoch(Error{ErrorCode::Internal, std::string("the dkv thread ended: ") + error.what()});
        {
            std::lock_guard const lock(mutex_);
            stopping_ = true;
        }
        changed_.notify_all();
    }
    link_.reset();
}

void Connection::serve() {
    last_look_ = Clock::now();
    open_link();
    while (!say_goodbye()) {
        if (link_) {
            handle(link_->wait(until_next_timer(), wake_fd_));
        } else {  // No socket could be had; try again when the time has come.
            zmq_pollitem_t item{nullptr, wake_fd_, ZMQ_POLLIN, 0};
            auto const wait_ms = std::chrono::ceil<milliseconds>(until_next_timer()).count();
            zmq_poll(&item, 1, std::max<long>(0, wait_ms));
        }
        std::uint64_t count = 0;
        [[maybe_unused]] auto const seen = ::read(wake_fd_, &count, sizeof count);
        look_at_clock();
        send_requests();
    }
}

void Connection::open_link() {
    link_.reset();
    {
        std::lock_guard const lock(mutex_);
        ++attempts_begun_;
    }
    auto link = Link::open(context_, endpoint_);
    if (!link) return fail_attempt(std::move(link).error(), Phase::Rejected);
    link_ = std::move(link).value();
    phase_ = Phase::Connecting;
    next_step_at_ = Clock::now() + timeout_;
}

void Connection::handle(LinkNews news) {
    for (auto const& message : news.messages)
        receive(message);
    if (news.down) {
        end_epoch(went_away());
        {
            std::lock_guard const lock(mutex_);
            silence_.clear();
        }
        open_link();
    } else if (news.up) {
        greet();
    } else if (news.foreign) {
        fail_attempt(std::move(*news.foreign), Phase::Rejected);
        link_.reset();
    } else if (news.refused && phase_ == Phase::Connecting) {
        fail_attempt(Error{ErrorCode::Unavailable, no_sidecar()}, Phase::Refused);
    }
}

void Connection::receive(zmq::message_t const& message) {
    hear();
    std::uint64_t id = 0;
    auto decoded = decode({static_cast<std::byte const*>(message.data()), message.size()}, &id);
    if (decoded && decoded.value()->id == 0) {
        if (phase_ != Phase::Attached) return;
        return receive_unasked(std::move(decoded.value()->body));
    }
    std::uint64_t const boot_id = decoded ? decoded.value()->boot_id : 0;
    Reply reply = decoded ? Reply(std::move(decoded.value()->body)) : Reply(decoded.error());
    if (decoded && reply.value().type == wire::Body::Failure)
        reply = error_of(*reply.value().AsFailure());

    if (id != 0 && id == hello_id_) return receive_hello(std::move(reply), boot_id);
    if (!decoded && id == 0) {  // Nothing that follows damage on this line can be trusted.
        end_epoch(decoded.error());
        return fail_attempt(decoded.error(), Phase::Rejected);
    }
    if (phase_ != Phase::Attached) return;  // A reply of an attachment that is over.

    OnReply on_reply;
    bool expected = id == heartbeat_id_;
    if (auto const found = pending_.find(id); found != pending_.end()) {
        expected = true;
        on_reply = std::move(found->second);
        pending_.erase(found);
        std::lock_guard const lock(mutex_);
        silence_.answer();
    }
    bool const forgotten = expected && !reply && reply.error().code == ErrorCode::UnknownInstance;
    bool const restarted = decoded && boot_id != attachment_->boot_id;
    if (forgotten || restarted) {
        // First, so that a caller that tries again because of this reply waits for the next
        // attachment.
        end_epoch(
            went_away(forgotten ? "it does not know this engine any more" : "it was restarted"));
        greet();
    }
    if (on_reply) on_reply(std::move(reply));
}

void Connection::receive_hello(Reply reply, std::uint64_t boot_id) {
    hello_id_ = 0;
    auto welcome = expect<wire::WelcomeT>(std::move(reply));
    if (!welcome) return fail_attempt(std::move(welcome).error(), Phase::Rejected);
    auto const& said = welcome.value();
    heartbeat_ = std::clamp(milliseconds(said.heartbeat_ms), kHeartbeatMin, kHeartbeatMax);
    phase_ = Phase::Attached;
    next_step_at_ = Clock::now() + heartbeat_;
    {
        std::lock_guard const lock(mutex_);
        attachment_ = Attachment{++epochs_, boot_id, said.fd_socket};
        boot_id_ = boot_id;
        attempt_error_.reset();
        try_now_ = false;
    }
    changed_.notify_all();
}

void Connection::receive_unasked(wire::BodyUnion body) {
    std::uint64_t session = 0;
    if (auto const* progress = body.AsLayerProgress()) session = progress->session;
    if (auto const* planned = body.AsPlanned()) session = planned->session;
    if (auto const* committed = body.AsCommitted()) session = committed->session;
    if (auto const* failed = body.AsSessionFailed()) session = failed->session;
    std::shared_ptr<Inbox> inbox;
    {
        std::lock_guard const lock(mutex_);
        if (auto const found = inboxes_.find(session); found != inboxes_.end())
            inbox = found->second;
    }
    if (inbox) inbox->put(std::move(body));  // Else late news of a session that is closed.
}

void Connection::send_requests() {
    std::vector<Request> requests;
    {
        std::lock_guard const lock(mutex_);
        requests.swap(outbox_);
    }
    for (auto& request : requests) {
        Result<void> sent = went_away();
        if (phase_ == Phase::Attached && attachment_->epoch == request.epoch) {
            sent = link_->send(request.bytes);
            // Full, or gone and not heard of yet: ZeroMQ announces a loss before it closes the way.
            if (!sent) handle(link_->wait(Clock::duration::zero()));
            if (!sent && phase_ != Phase::Attached) sent = went_away();
        }
        if (sent && request.on_reply)
            pending_.emplace(request.id, std::move(request.on_reply));
        else if (!sent && request.on_reply)
            request.on_reply(sent.error());
    }
}

void Connection::send_control(wire::BodyUnion body, std::uint64_t* id) {
    auto const message = request(0, std::move(body), {});
    *id = message.id;
    // What is not taken now is not answered either, and that is what the timers look for.
    static_cast<void>(link_->send(message.bytes));
}

void Connection::greet() {
    ++hello_.generation;
    send_control(body_of(wire::HelloT(hello_)), &hello_id_);
    phase_ = Phase::Greeting;
    next_step_at_ = Clock::now() + timeout_;
}

void Connection::end_epoch(Error const& reason) {
    std::unordered_map<std::uint64_t, std::shared_ptr<Inbox>> inboxes;
    std::vector<Request> unsent;
    {
        std::lock_guard const lock(mutex_);
        attachment_.reset();
        silence_.forget_questions();
        inboxes.swap(inboxes_);
        unsent.swap(outbox_);
    }
    auto const pending = std::exchange(pending_, {});
    for (auto const& [id, on_reply] : pending)
        on_reply(reason);
    for (auto const& request : unsent)
        if (request.on_reply) request.on_reply(reason);
    for (auto const& [session, inbox] : inboxes)
        inbox->end(reason);
    heartbeat_id_ = 0;
}

void Connection::fail_attempt(Error reason, Phase phase) {
    phase_ = phase;
    // Where no sidecar accepts, ZeroMQ itself goes on trying; only an impatient caller makes it
    // sooner.
    auto const now = Clock::now();
    next_step_at_ = now + (phase == Phase::Refused ? kNoTimer : kRetryAfter);
    {
        std::lock_guard const lock(mutex_);
        if (phase == Phase::Refused) silence_.clear();
        if (silence_.is_hung()) next_step_at_ = silence_.next_probe(now);
        attempt_error_ = std::move(reason);
        attempt_failed_ = attempts_begun_;
    }
    changed_.notify_all();
}

void Connection::look_at_clock() {
    auto const now = Clock::now();
    bool const was_stopped = now - std::exchange(last_look_, now) > 2 * heartbeat_;
    {
        std::lock_guard const lock(mutex_);
        if (was_stopped) silence_.excuse(now);
        if (std::exchange(probe_now_, false) && phase_ == Phase::Attached) next_step_at_ = now;
        bool const idle = phase_ == Phase::Refused || phase_ == Phase::Rejected;
        if (idle && std::exchange(try_now_, false)) next_step_at_ = now;
    }
    if (now < next_step_at_) return;
    switch (phase_) {
        case Phase::Attached: return beat();
        case Phase::Refused:
        case Phase::Rejected: return open_link();
        case Phase::Connecting:
        case Phase::Greeting: break;
    }
    give_up_hello();
}

/// Over TCP a silent host is not a sidecar; one that accepts and says nothing hangs.
void Connection::give_up_hello() {
    if (!link_->is_connected())
        return fail_attempt(Error{ErrorCode::Unavailable, no_sidecar()}, Phase::Refused);
    {
        std::lock_guard const lock(mutex_);
        auto const now = Clock::now();
        silence_.hang(now - timeout_, now);
    }
    fail_attempt(Error{ErrorCode::DeadlineExceeded, "the sidecar at " + endpoint_ +
                                                        " did not answer a hello in " +
                                                        std::to_string(timeout_.count()) + " ms"},
                 Phase::Rejected);
}

void Connection::beat() {
    auto const now = Clock::now();
    bool gave_up = false;
    {
        std::lock_guard const lock(mutex_);
        auto const since = silence_.asked_at();
        gave_up = since && now - *since > kHeartbeatsMissedMax * heartbeat_;
        if (gave_up) silence_.hang(*since, now);
    }
    if (gave_up) {
        end_epoch(went_away("no answer to a heartbeat in " +
                            std::to_string((kHeartbeatsMissedMax * heartbeat_).count()) + " ms"));
        return open_link();
    }
    wire::HeartbeatT heartbeat;
    heartbeat.instance = hello_.instance;
    send_control(body_of(heartbeat), &heartbeat_id_);
    std::lock_guard const lock(mutex_);
    silence_.ask(now);
    next_step_at_ = silence_.is_hung() ? silence_.next_probe(now, heartbeat_) : now + heartbeat_;
}

/// A sidecar that was hung is used again at once.
void Connection::hear() {
    bool is_back = false;
    {
        std::lock_guard const lock(mutex_);
        is_back = silence_.hear();
    }
    if (is_back) changed_.notify_all();
}

bool Connection::say_goodbye() {
    {
        std::lock_guard const lock(mutex_);
        if (!stopping_) return false;
    }
    if (phase_ != Phase::Attached) return true;
    send_requests();  // What was said before the end is said.
    if (phase_ != Phase::Attached) return true;
    wire::GoodbyeT goodbye;
    goodbye.instance = hello_.instance;
    send_control(body_of(goodbye), &goodbye_id_);
    bool answered = false;
    pending_[goodbye_id_] = [&](Reply const&) { answered = true; };
    auto const until = Clock::now() + kGoodbyeWithin;
    while (!answered && Clock::now() < until && phase_ == Phase::Attached) {
        auto news = link_->wait(until - Clock::now());
        for (auto const& message : news.messages)
            receive(message);
        if (news.down) break;
    }
    pending_.erase(goodbye_id_);
    return true;
}

Clock::duration Connection::until_next_timer() const {
    return std::max(Clock::duration::zero(), next_step_at_ - Clock::now());
}

std::string Connection::no_sidecar() const {
    return "no sidecar answers at " + endpoint_ + "; start one with dkvd";
}

}  // namespace dkv::sdk

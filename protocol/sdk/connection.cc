#include "protocol/sdk/connection.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <unistd.h>
#include <utility>

#include <sys/eventfd.h>

#include "protocol/schema/envelope.h"
#include "protocol/sdk/convert.h"

namespace dkv::sdk {
namespace {

Error closed() {
    return Error{ErrorCode::BadState, "the engine was closed"};
}

Error no_answer(std::string const& endpoint, std::string const& what) {
    return Error{ErrorCode::DeadlineExceeded,
                 "the sidecar at " + endpoint + " did not answer " + what + " in time"};
}

/// A reply on its way from the connection's thread to the caller's.
struct Answer {
    std::mutex mutex;
    std::condition_variable came;
    std::optional<Reply> reply;
    bool given_up = false;
};

}  // namespace

Result<std::unique_ptr<Connection>> Connection::open(std::string endpoint,
                                                     wire::HelloT hello,
                                                     milliseconds timeout) {
    int const wake_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0)
        return Error{ErrorCode::Io, std::string("no eventfd: ") + std::strerror(errno)};
    std::unique_ptr<Connection> connection(
        new Connection(std::move(endpoint), std::move(hello), timeout, wake_fd));
    // Signals are the host's: its own threads shall take them.
    sigset_t every;
    sigset_t before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    try {
        connection->thread_ = std::thread([raw = connection.get()] { raw->run(); });
    } catch (std::system_error const& error) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return Error{ErrorCode::Io, std::string("no thread: ") + error.what()};
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return connection;
}

Connection::Connection(std::string endpoint, wire::HelloT hello, milliseconds timeout, int wake_fd)
    : endpoint_(std::move(endpoint)),
      hello_(std::move(hello)),
      timeout_(timeout),
      wake_fd_(wake_fd) {}

Connection::~Connection() {
    stop();
    ::close(wake_fd_);
}

void Connection::stop() {
    std::lock_guard const stopping(stop_mutex_);
    {
        std::lock_guard const lock(mutex_);
        stopping_ = true;
    }
    wake();
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

std::optional<Attachment> Connection::attachment() const {
    std::lock_guard const lock(mutex_);
    return attachment_;
}

bool Connection::is_answered() const {
    std::lock_guard const lock(mutex_);
    return is_usable();
}

std::uint64_t Connection::boot_id() const {
    std::lock_guard const lock(mutex_);
    return boot_id_;
}

Result<Attachment> Connection::attach(Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (auto const now = Clock::now(); silence_.holds(now)) return silence_.reason(endpoint_, now);
    if (attachment_) return *attachment_;
    // One that began before says nothing of a sidecar that was started just now.
    auto const begun_before = attempts_begun_;
    try_now_ = true;
    wake();
    bool const settled = changed_.wait_until(lock, deadline, [&] {
        return attachment_ || stopping_ || attempt_failed_ > begun_before || silence_.is_hung();
    });
    if (stopping_) return closed();
    if (attachment_) return *attachment_;
    return settled && attempt_error_ ? *attempt_error_ : no_answer(endpoint_, "a hello");
}

Result<Attachment> Connection::wait_attached(Deadline deadline) {
    std::unique_lock lock(mutex_);
    auto const begun_before = attempts_begun_;
    auto const hopeless = [&] {
        return attempt_failed_ > begun_before && attempt_error_ &&
               attempt_error_->code == ErrorCode::VersionMismatch;
    };
    try_now_ = !attachment_;
    wake();
    changed_.wait_until(lock, deadline, [&] { return is_usable() || stopping_ || hopeless(); });
    if (stopping_) return closed();
    if (is_usable()) return *attachment_;
    if (attachment_) return silence_.reason(endpoint_, Clock::now());
    return attempt_error_ ? *attempt_error_ : no_answer(endpoint_, "a hello");
}

Connection::Request Connection::request(std::uint64_t epoch,
                                        wire::BodyUnion body,
                                        OnReply on_reply) {
    wire::EnvelopeT envelope;
    envelope.id = next_id_++;
    envelope.body = std::move(body);
    return {envelope.id, epoch, encode(envelope), std::move(on_reply)};
}

void Connection::enqueue(Request request) {
    std::unique_lock lock(mutex_);
    if (attachment_ && attachment_->epoch == request.epoch && request.on_reply)
        silence_.ask(Clock::now());
    if (stopping_) {
        lock.unlock();
        if (request.on_reply) request.on_reply(closed());
        return;
    }
    outbox_.push_back(std::move(request));
    lock.unlock();
    wake();
}

Reply Connection::call(std::uint64_t epoch,
                       wire::BodyUnion body,
                       Deadline deadline,
                       OnReply on_late) {
    auto const kind = body.type;
    auto const answer = std::make_shared<Answer>();
    enqueue(request(epoch, std::move(body), [answer, on_late = std::move(on_late)](Reply reply) {
        std::unique_lock lock(answer->mutex);
        if (answer->given_up) {
            lock.unlock();
            if (on_late) on_late(std::move(reply));
            return;
        }
        answer->reply = std::move(reply);
        answer->came.notify_one();
    }));
    auto const begin = Clock::now();
    auto const hung = hung_reason();
    std::unique_lock lock(answer->mutex);
    answer->came.wait_until(lock, hung ? begin : deadline,
                            [&] { return answer->reply.has_value(); });
    if (answer->reply) return std::move(*answer->reply);
    answer->given_up = true;
    lock.unlock();
    if (hung) return *hung;
    // UnregisterRegion is answered when work lets go of the region, however long that takes.
    run_out(begin, kind == wire::Body::UnregisterRegion ? std::string() : name_of(kind));
    return no_answer(endpoint_, name_of(kind));
}

std::optional<Error> Connection::hung_reason() const {
    std::lock_guard const lock(mutex_);
    if (!silence_.is_hung()) return std::nullopt;
    return silence_.reason(endpoint_, Clock::now());
}

void Connection::run_out(Deadline begin, std::string request) {
    {
        std::lock_guard const lock(mutex_);
        auto const now = Clock::now();
        bool const was_hung = silence_.is_hung();
        bool const hung = request.empty()
                              ? silence_.run_out(begin, now)
                              : silence_.run_out_unanswered(std::move(request), begin, now);
        probe_now_ = probe_now_ || (hung && !was_hung);
    }
    wake();
}

void Connection::post(std::uint64_t epoch, wire::BodyUnion body, OnReply on_reply) {
    enqueue(request(epoch, std::move(body), std::move(on_reply)));
}

void Connection::open_inbox(std::uint64_t session,
                            std::uint64_t epoch,
                            std::shared_ptr<Inbox> inbox) {
    std::lock_guard const lock(mutex_);
    if (!attachment_ || attachment_->epoch != epoch)
        inbox->end(Error{ErrorCode::Unavailable, "the sidecar went away"});
    else
        inboxes_[session] = std::move(inbox);
}

void Connection::close_inbox(std::uint64_t session) {
    std::lock_guard const lock(mutex_);
    inboxes_.erase(session);
}

void Connection::wake() const noexcept {
    std::uint64_t const one = 1;
    // Fails only when the counter is full, and then the thread is awake.
    [[maybe_unused]] auto const written = ::write(wake_fd_, &one, sizeof one);
}

}  // namespace dkv::sdk

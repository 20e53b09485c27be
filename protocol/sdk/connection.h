// An engine's line to its sidecar: one thread that attaches, shows signs of life, attaches again
// when it must, and carries requests for everybody else.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <zmq.hpp>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/clock.h"
#include "protocol/sdk/inbox.h"
#include "protocol/sdk/link.h"
#include "protocol/sdk/silence.h"

namespace dkv::sdk {

/// One stay with one sidecar. Regions and sessions do not outlive it.
struct Attachment {
    std::uint64_t epoch = 0;    ///< Counts attachments; never used again.
    std::uint64_t boot_id = 0;  ///< Of the sidecar.
    std::string fd_socket;      ///< Where it takes descriptors; empty: nowhere.
};

/// A reply's body, or why there is none: a Failure of the sidecar is an Error already.
using Reply = Result<wire::BodyUnion>;
using OnReply = std::function<void(Reply)>;

class Connection {
public:
    /// Starts the thread. `hello` is sent at every attachment, its generation counting them.
    /// Errors: Io when the system refuses a thread or a socket.
    static Result<std::unique_ptr<Connection>> open(std::string endpoint,
                                                    wire::HelloT hello,
                                                    milliseconds timeout);
    ~Connection();
    Connection(Connection const&) = delete;
    Connection& operator=(Connection const&) = delete;

    /// Says goodbye and ends the thread; every later call fails with BadState.
    void stop();

    /// The attachment as it is, or as soon as an attempt that is under way or made now succeeds.
    /// Errors: why that attempt failed; DeadlineExceeded, without waiting where the sidecar is
    /// known not to answer.
    Result<Attachment> attach(Deadline deadline);
    /// Waits through failed attempts and silence, except where only another sidecar would help.
    /// Errors: why the last attempt failed; VersionMismatch at once.
    Result<Attachment> wait_attached(Deadline deadline);
    std::optional<Attachment> attachment() const;
    /// Attached, and the sidecar answers.
    bool is_answered() const;
    /// Of the last sidecar that answered; 0: none has.
    std::uint64_t boot_id() const;

    /// Sends and waits, but not for a sidecar that is known not to answer. Errors: Unavailable when
    /// the epoch is over, or ends meanwhile; DeadlineExceeded, after which `on_late` gets the reply
    /// if it still comes; the sidecar's own.
    Reply call(std::uint64_t epoch, wire::BodyUnion body, Deadline deadline, OnReply on_late = {});
    /// Sends. `on_reply` runs on the connection's thread and must not wait.
    void post(std::uint64_t epoch, wire::BodyUnion body, OnReply on_reply = {});

    /// Tells that a wait which began at `begin` ran into its deadline: whether the sidecar was
    /// silent or only busy follows from what was heard meanwhile. `request`: its answer was waited
    /// for.
    void run_out(Deadline begin, std::string request = {});

    /// From now on what the sidecar says of `session` goes to the inbox, and so does the epoch's
    /// end.
    void open_inbox(std::uint64_t session, std::uint64_t epoch, std::shared_ptr<Inbox> inbox);
    void close_inbox(std::uint64_t session);

private:
    enum class Phase { Connecting, Refused, Greeting, Rejected, Attached };
    struct Request {
        std::uint64_t id = 0;
        std::uint64_t epoch = 0;
        std::vector<std::uint8_t> bytes;
        OnReply on_reply;
    };

    Connection(std::string endpoint, wire::HelloT hello, milliseconds timeout, int wake_fd);
    Request request(std::uint64_t epoch, wire::BodyUnion body, OnReply on_reply);
    void enqueue(Request request);
    std::optional<Error> hung_reason() const;
    void wake() const noexcept;
    bool is_usable() const { return attachment_ && !silence_.is_hung(); }  // Under the lock.

    // On the thread.
    void run();
    void serve();
    void open_link();
    void handle(LinkNews news);
    void receive(zmq::message_t const& message);
    void receive_hello(Reply reply, std::uint64_t boot_id);
    void receive_unasked(wire::BodyUnion body);
    void send_requests();
    void send_control(wire::BodyUnion body, std::uint64_t* id);
    void greet();
    void end_epoch(Error const& reason);
    void fail_attempt(Error reason, Phase phase);
    void give_up_hello();
    void hear();
    void look_at_clock();
    void beat();
    bool say_goodbye();
    Clock::duration until_next_timer() const;
    std::string no_sidecar() const;

    std::string const endpoint_;
    wire::HelloT hello_;
    milliseconds const timeout_;
    int const wake_fd_;
    std::atomic<std::uint64_t> next_id_{1};

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Request> outbox_;
    std::unordered_map<std::uint64_t, std::shared_ptr<Inbox>> inboxes_;
    std::optional<Attachment> attachment_;
    std::optional<Error> attempt_error_;  // Of the last attempt; none before the first ended.
    std::uint64_t attempts_begun_ = 0;
    std::uint64_t attempt_failed_ = 0;  // The number of the last that failed.
    std::uint64_t epochs_ = 0;
    std::uint64_t boot_id_ = 0;
    bool try_now_ = false;
    Silence silence_;
    bool probe_now_ = false;  // The sidecar was found to be hung: ask it.
    bool stopping_ = false;

    // The thread's own.
    zmq::context_t context_;
    std::unique_ptr<Link> link_;
    Phase phase_ = Phase::Connecting;
    std::unordered_map<std::uint64_t, OnReply> pending_;
    std::uint64_t hello_id_ = 0;
    std::uint64_t heartbeat_id_ = 0;
    std::uint64_t goodbye_id_ = 0;
    milliseconds heartbeat_{1000};
    Deadline next_step_at_{};  // Of the phase: a retry, an expected Welcome, a heartbeat.
    Deadline last_look_{};

    std::mutex stop_mutex_;
    std::thread thread_;
};

}  // namespace dkv::sdk

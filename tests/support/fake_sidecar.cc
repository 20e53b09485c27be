#include "tests/support/fake_sidecar.h"

#include <chrono>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <zmq.hpp>

#include "protocol/base/assert.h"

namespace dkv::test {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);

wire::PolicyT policy() {
    wire::PolicyT policy;
    policy.name = "dynamickv";
    policy.capacity = 512;
    policy.window = 32;
    return policy;
}

}  // namespace

wire::BodyUnion failure(wire::ErrorCode code, std::string message) {
    wire::FailureT failure;
    failure.code = code;
    failure.message = std::move(message);
    return body(std::move(failure));
}

FakeSidecar::FakeSidecar(std::string const& endpoint, std::uint64_t boot_id)
    : wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), boot_id_(boot_id) {
    opened_.policy = std::make_unique<wire::PolicyT>(policy());
    zmq::socket_t socket(context_, zmq::socket_type::router);
    socket.set(zmq::sockopt::linger, 0);
    socket.bind(endpoint);
    thread_ = std::thread([this](zmq::socket_t mine) { run(std::move(mine)); }, std::move(socket));
}

FakeSidecar::~FakeSidecar() {
    {
        std::lock_guard const lock(mutex_);
        stopping_ = true;
    }
    wake();
    thread_.join();
    ::close(wake_fd_);
    for (auto const& [number, bytes] : regions_)
        ::munmap(bytes.data(), bytes.size());
}

void FakeSidecar::on(wire::Body kind, Answer answer) {
    std::lock_guard const lock(mutex_);
    answers_[kind] = std::move(answer);
}

void FakeSidecar::on_next(wire::Body kind, int times, Answer answer) {
    std::lock_guard const lock(mutex_);
    next_answers_[kind] = {times, std::move(answer)};
}

void FakeSidecar::set_boot_id(std::uint64_t boot_id) {
    std::lock_guard const lock(mutex_);
    boot_id_ = boot_id;
}

void FakeSidecar::set_version(std::uint16_t version) {
    std::lock_guard const lock(mutex_);
    version_ = version;
}

void FakeSidecar::set_heartbeat_ms(std::uint32_t heartbeat_ms) {
    std::lock_guard const lock(mutex_);
    heartbeat_ms_ = heartbeat_ms;
}

void FakeSidecar::set_opened(wire::SessionOpenedT opened) {
    std::lock_guard const lock(mutex_);
    if (!opened.policy) opened.policy = std::make_unique<wire::PolicyT>(policy());
    opened_ = std::move(opened);
}

void FakeSidecar::garble_next(std::vector<std::uint8_t> bytes) {
    std::lock_guard const lock(mutex_);
    garble_ = std::move(bytes);
}

void FakeSidecar::follow(wire::Body kind) {
    std::lock_guard const lock(mutex_);
    followed_ = kind;
}

void FakeSidecar::say(wire::BodyUnion message) {
    {
        std::lock_guard const lock(mutex_);
        outbox_.push_back(std::move(message));
    }
    wake();
}

std::size_t FakeSidecar::count(wire::Body kind) {
    std::lock_guard const lock(mutex_);
    std::size_t count = 0;
    for (auto const& envelope : received_)
        count += envelope.body.type == kind ? 1 : 0;
    return count;
}

std::optional<wire::EnvelopeT> FakeSidecar::wait_for(wire::Body kind, std::size_t count) {
    std::unique_lock lock(mutex_);
    std::optional<wire::EnvelopeT> found;
    came_.wait_for(lock, kPatience, [&] {
        std::size_t seen = 0;
        for (auto const& envelope : received_)
            if (envelope.body.type == kind && ++seen == count) found = envelope;
        return found.has_value();
    });
    return found;
}

std::span<std::byte> FakeSidecar::region(std::uint64_t number) {
    std::lock_guard const lock(mutex_);
    auto const found = regions_.find(number);
    return found == regions_.end() ? std::span<std::byte>{} : found->second;
}

std::size_t FakeSidecar::regions() {
    std::lock_guard const lock(mutex_);
    return regions_.size();
}

void FakeSidecar::wake() const {
    std::uint64_t const one = 1;
    [[maybe_unused]] auto const written = ::write(wake_fd_, &one, sizeof one);
}

void FakeSidecar::run(zmq::socket_t socket) {
    auto const send = [&](std::string const& peer, std::uint64_t id, wire::BodyUnion message) {
        wire::EnvelopeT envelope;
        envelope.version = version_;
        envelope.id = id;
        envelope.boot_id = boot_id_;
        envelope.body = std::move(message);
        auto bytes = encode(envelope);
        if (!garble_.empty()) bytes = std::exchange(garble_, {});
        socket.send(zmq::buffer(peer), zmq::send_flags::sndmore);
        socket.send(zmq::buffer(bytes), zmq::send_flags::none);
    };
    while (true) {
        zmq_pollitem_t items[] = {{socket.handle(), 0, ZMQ_POLLIN, 0},
                                  {nullptr, wake_fd_, ZMQ_POLLIN, 0}};
        zmq_poll(items, 2, -1);
        std::lock_guard const lock(mutex_);
        if (stopping_) return;
        std::uint64_t count = 0;
        [[maybe_unused]] auto const seen = ::read(wake_fd_, &count, sizeof count);
        zmq::message_t peer;
        while (socket.recv(peer, zmq::recv_flags::dontwait)) {
            zmq::message_t message;
            if (!socket.recv(message)) break;
            auto const decoded =
                decode({static_cast<std::byte const*>(message.data()), message.size()});
            if (!decoded) continue;
            auto const& request = *decoded.value();
            if (request.body.type == followed_) peer_ = peer.to_string();
            auto reply = reply_to(request);
            received_.push_back(request);
            if (reply) send(peer.to_string(), request.id, std::move(*reply));
        }
        came_.notify_all();
        for (; !outbox_.empty(); outbox_.pop_front())
            send(peer_, 0, std::move(outbox_.front()));
    }
}

std::optional<wire::BodyUnion> FakeSidecar::reply_to(wire::EnvelopeT const& request) {
    auto const kind = request.body.type;
    if (auto const next = next_answers_.find(kind); next != next_answers_.end()) {
        auto const answer = next->second.second;
        if (--next->second.first == 0) next_answers_.erase(next);
        return answer(request);
    }
    if (auto const found = answers_.find(kind); found != answers_.end() && found->second)
        return found->second(request);
    return kindly(request);
}

std::optional<wire::BodyUnion> FakeSidecar::kindly(wire::EnvelopeT const& request) {
    if (request.body.type == wire::Body::Hello) {
        wire::WelcomeT welcome;
        welcome.heartbeat_ms = heartbeat_ms_;
        welcome.limits = std::make_unique<wire::LimitsT>();
        welcome.policy = std::make_unique<wire::PolicyT>(policy());
        return body(std::move(welcome));
    }
    if (request.body.type == wire::Body::OpenSession) return body(wire::SessionOpenedT(opened_));
    if (auto const* region = request.body.AsRegisterRegion()) return map(*region);
    if (auto const* region = request.body.AsUnregisterRegion()) {
        if (auto const found = regions_.find(region->region); found != regions_.end()) {
            ::munmap(found->second.data(), found->second.size());
            regions_.erase(found);
        }
    }
    return body(wire::DoneT{});
}

wire::BodyUnion FakeSidecar::map(wire::RegisterRegionT const& request) {
    int fd = -1;
    if (auto const* shm = request.source.AsPosixShm()) {
        fd = ::shm_open(shm->name.c_str(), O_RDWR | O_CLOEXEC, 0);
    } else if (auto const* memfd = request.source.AsMemfd()) {
        auto const path =
            "/proc/" + std::to_string(memfd->pid) + "/fd/" + std::to_string(memfd->fd);
        fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    }
    if (fd < 0) return failure(wire::ErrorCode::Io, "no such memory");
    auto* const base = ::mmap(nullptr, request.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    DKV_ASSERT(base != MAP_FAILED);
    wire::RegionRegisteredT registered;
    registered.region = ++regions_made_;
    regions_[registered.region] = {static_cast<std::byte*>(base), request.bytes};
    return body(registered);
}

}  // namespace dkv::test

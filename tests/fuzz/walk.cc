#include "tests/fuzz/walk.h"

#include <array>

#include <doctest/doctest.h>

namespace dkv::fuzz {
namespace {

constexpr std::array kPolicies{"auto",      "streamingllm", "h2o",   "snapkv",
                               "pyramidkv", "dynamickv",    "knorm", "keydiff"};

Sender controller() {
    return {"controller", test::own_process()};
}

}  // namespace

std::string Target::name() const {
    if (!is_attached) return "not attached";
    if (!state) return "attached";
    return std::string(name_of(*state)) + (layers > 0 ? ", half way" : "");
}

std::vector<Target> all_targets() {
    std::vector<Target> targets{{.is_attached = false}, {}};
    for (std::uint8_t number = 0; name_of(SessionState{number}) != "unknown"; ++number)
        targets.push_back({.state = SessionState{number}});
    targets.push_back({.state = SessionState::Prefill, .layers = 2});
    return targets;
}

Sender Walker::sender_of(Engine const& engine) const {
    return {engine.peer, engine.process->credentials()};
}

std::optional<SessionState> Walker::state_of(Engine const& engine) const {
    if (engine.run.session == 0) return std::nullopt;
    auto const* const view = oracle_.now().session({engine.id, engine.run.session});
    return view == nullptr ? std::nullopt : std::optional(view->state);
}

wire::BodyUnion Walker::tell(Engine const& engine, wire::BodyUnion const& body) {
    auto told = oracle_.ask(sender_of(engine), encoded(random_.number(), body));
    if (auto const* const failure = told.answer->body.AsFailure())
        FAIL("right, and refused: ", std::string(wire::EnumNameBody(body.type)), ": ",
             failure->message);
    return std::move(told.answer->body);
}

/// The sidecar knows the engine, as it is, over its own connection.
void Walker::attach(Engine& engine) {
    auto const& now = oracle_.now();
    auto const found = now.instances.find(engine.id);
    if (found != now.instances.end() && found->second.alive) {
        auto const said = found->second.generation;
        // A later hello that was not its own: everything has to be said again.
        if (said != engine.generation || found->second.regions > 12) engine.has_regions = false;
        if (!engine.has_regions && said == UINT32_MAX) {  // There is no later one.
            wire::DetachT detach;
            detach.instance = engine.id;
            static_cast<void>(oracle_.ask(controller(), encoded(1, body_of(detach))));
            engine.id = random_.number() | 1;
            engine.generation = 1;
        } else if (!engine.has_regions) {
            engine.generation = std::max(said, engine.generation) + 1;
        }
    } else {
        engine.has_regions = false;
    }
    auto told = oracle_.ask(sender_of(engine), encoded(1, body_of(hello(engine))));
    if (told.is_refused()) {  // Another process said hello under its number.
        engine.id = random_.number() | 1;
        engine.generation = 1;
        engine.has_regions = false;
        tell(engine, body_of(hello(engine)));
    }
    if (!engine.has_regions) lend(engine);
}

void Walker::lend(Engine& engine) {
    auto const& memory = *engine.memory;
    auto const one = [&](test::EngineMemory const& what, bool writable) {
        auto const answer = tell(engine, body_of(register_region(engine, what, writable)));
        return answer.AsRegionRegistered()->region;
    };
    engine.source = one(memory.source, false);
    engine.staging = one(memory.staging, true);
    engine.destination = one(memory.destination, true);
    engine.brittle = one(memory.brittle, false);
    engine.has_regions = true;
}

/// No prompt is open.
void Walker::tidy(Engine& engine) {
    for (bool const failed : {false, true}) {
        std::vector<std::uint64_t> open;
        for (auto const& [name, view] : oracle_.now().sessions)
            if (name.first == engine.id && view.state != SessionState::Closed &&
                (view.state == SessionState::Failed) == failed)
                open.push_back(name.second);
        // Those that failed and are closed look like those that are open.
        if (oracle_.now().instances.at(engine.id).sessions_open == 0) break;
        for (auto const session : open) {
            engine.run.session = session;
            tell(engine, body_of(close_session(engine, "")));
        }
    }
    engine.run = {};
}

/// An operator may have set what no prompt fits.
void Walker::reset_policies(Engine const& engine) {
    for (auto const instance : {engine.id, std::uint64_t{0}}) {
        if (oracle_.now().instances.at(engine.id).policy_source == "default") break;
        wire::SetPolicyT reset;
        reset.instance = instance;
        static_cast<void>(oracle_.ask(controller(), encoded(1, body_of(std::move(reset)))));
    }
}

void Walker::open(Engine& engine) {
    reset_policies(engine);
    Scene const scene{engine, random_, last_session};
    auto message = open_session(scene, random_.one_of(kPolicies));
    engine.run = {.session = message.session, .tokens = message.prompt_tokens};
    auto const answer = tell(engine, body_of(std::move(message)));
    auto const& opened = *answer.AsSessionOpened();
    engine.run.compress = opened.compress;
    engine.run.window = opened.window;
    engine.run.staged = opened.staging_bytes > 0;
    REQUIRE(opened.staging_bytes <= engine.memory->staging.bytes().size());
    REQUIRE(opened.destination_bytes <= engine.memory->destination.bytes().size());
}

void Walker::send_layer(Engine& engine) {
    tell(engine, body_of(layer_ready(engine, engine.run.layers_sent)));
    ++engine.run.layers_sent;
}

void Walker::settle(Engine const& engine) {
    auto const& run = engine.run;
    while (true) {
        auto const* const view = oracle_.now().session({engine.id, run.session});
        if (run.session == 0 || view == nullptr) return;
        if (view->state != SessionState::Prefill && view->state != SessionState::Planned) return;
        bool const has_all = run.layers_sent == Memory::kLayers;
        if (!has_all && view->layers_done >= run.layers_sent) return;
        world_.await_report();
        oracle_.look_again();
    }
}

/// The memory of a layer is cut while it is lent.
void Walker::fail(Engine& engine) {
    auto const& brittle = engine.memory->brittle;
    auto const bytes = static_cast<off_t>(brittle.bytes().size());
    auto message = layer_ready(engine, 0);
    message.keys->region = engine.brittle;
    message.keys->offset = 0;
    REQUIRE(::ftruncate(brittle.fd(), 0) == 0);
    tell(engine, body_of(std::move(message)));
    ++engine.run.layers_sent;
    engine.run.tainted = true;
    settle(engine);
    REQUIRE(::ftruncate(brittle.fd(), bytes) == 0);
}

/// The last layer comes, and the worker is kept where it has just told the plan. The gate is held
/// afterwards.
void Walker::plan(Engine& engine) {
    world_.gate.hold();
    send_layer(engine);
    while (true) {
        world_.await_report();
        oracle_.look_again();
        if (state_of(engine) != SessionState::Prefill) return;
        world_.gate.pass();
    }
}

void Walker::compare_rows(Engine const& engine) {
    auto const& memory = *engine.memory;
    auto const& view = *oracle_.now().session({engine.id, engine.run.session});
    REQUIRE(view.lengths.size() == std::size_t{Memory::kLayers} * Memory::kKvHeads);
    std::uint64_t begin = 0;
    for (std::uint32_t layer = 0; layer < Memory::kLayers; ++layer) {
        auto const lengths = std::span(view.lengths)
                                 .subspan(std::size_t{layer} * Memory::kKvHeads, Memory::kKvHeads);
        auto const packed = packed_layer(Memory::geometry(), lengths, begin);
        for (std::uint32_t head = 0; head < Memory::kKvHeads; ++head) {
            REQUIRE(lengths[head] > 0);
            REQUIRE(lengths[head] <= engine.run.tokens);
            bool kept = true;
            std::int64_t last = -1;
            for (auto row = packed.head_rows[head]; row < packed.head_rows[head + 1]; ++row) {
                auto const* const at = memory.destination.at<std::byte>(0);
                std::int32_t position = 0;
                std::memcpy(&position, at + packed.positions_offset + row * sizeof position,
                            sizeof position);
                kept = kept && position > last;
                kept = kept && position < static_cast<std::int64_t>(engine.run.tokens);
                if (!kept) break;
                last = position;
                auto const token = static_cast<std::uint32_t>(position);
                auto const offset = row * Memory::kRowBytes;
                kept = kept && memory.is_row(Memory::keys_offset(layer), head, token,
                                             at + packed.keys_offset + offset);
                kept = kept && memory.is_row(Memory::values_offset(layer), head, token,
                                             at + packed.values_offset + offset);
            }
            REQUIRE(kept);
            REQUIRE(last == engine.run.tokens - 1);  // The window is kept.
        }
        begin = packed.end_offset;
    }
    ++compared;
}

void Walker::advance(Engine& engine) {
    if (!oracle_.now().is_alive(engine.id) || !engine.has_regions) attach(engine);
    auto& run = engine.run;
    auto const state = state_of(engine);
    if (!state || *state == SessionState::Closed) return open(engine);
    switch (*state) {
        case SessionState::Open:
            if (run.compress)
                tell(engine, body_of(bind_buffers(engine)));
            else
                tell(engine, body_of(close_session(engine, "")));
            return;
        case SessionState::Prefill:
            if (run.layers_sent < Memory::kLayers) send_layer(engine);
            return settle(engine);
        case SessionState::Planned: return settle(engine);
        case SessionState::Committed:
            if (!run.tainted) compare_rows(engine);
            tell(engine, body_of(adopted(engine, random_)));
            return;
        case SessionState::Failed:
        case SessionState::Adopted:
            tell(engine, body_of(close_session(engine, "")));
            if (state_of(engine) == SessionState::Failed) run = {};
            return;
        case SessionState::Closed: return;
    }
}

void Walker::lead(Engine& engine, Target const& target) {
    if (!target.is_attached) {
        engine.run = {};
        if (!oracle_.now().is_alive(engine.id)) return;
        attach(engine);
        wire::GoodbyeT goodbye;
        goodbye.instance = engine.id;
        tell(engine, body_of(goodbye));
        engine.has_regions = false;
        REQUIRE(!oracle_.now().is_alive(engine.id));
        return;
    }
    attach(engine);
    tidy(engine);
    if (!target.state) return;
    open(engine);
    REQUIRE(engine.run.compress);
    switch (*target.state) {
        case SessionState::Closed:
            for (auto steps = random_.below(6); steps > 0; --steps)
                advance(engine);
            if (state_of(engine) != SessionState::Closed)
                tell(engine, body_of(close_session(engine, "")));
            break;
        case SessionState::Failed:
            advance(engine);
            fail(engine);
            break;
        case SessionState::Planned:
            while (engine.run.layers_sent + 1 < Memory::kLayers)
                advance(engine);
            plan(engine);
            break;
        case SessionState::Open:
        case SessionState::Prefill:
        case SessionState::Committed:
        case SessionState::Adopted:
            while (state_of(engine) != target.state || engine.run.layers_sent < target.layers)
                advance(engine);
            break;
    }
    REQUIRE(state_of(engine) == target.state);
}

}  // namespace dkv::fuzz

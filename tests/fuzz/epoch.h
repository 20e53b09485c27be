// One sidecar from its start to its end: two engines that do one thing wrong at a time, in a state
// that a walk led to, and a bystander.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "tests/fuzz/walk.h"
#include "tests/fuzz/wrong.h"

namespace dkv::fuzz {

inline constexpr unsigned kBurstMax = 32;
inline constexpr unsigned kBystanderEvery = 12;

inline std::vector<rpc::Command> all_commands() {
    std::vector<rpc::Command> all;
    for (auto const table : {rpc::engine_commands(), rpc::controller_commands()})
        all.insert(all.end(), table.begin(), table.end());
    return all;
}

inline std::size_t open_descriptors() {
    auto const folder = std::filesystem::directory_iterator("/proc/self/fd");
    return static_cast<std::size_t>(std::distance(begin(folder), end(folder)));
}

/// How often engines' memory is mapped, by anybody in this process.
inline std::size_t lent_mappings() {
    std::ifstream maps("/proc/self/maps");
    std::size_t count = 0;
    for (std::string line; std::getline(maps, line);)
        if (line.find("memfd:dkv-test") != std::string::npos) ++count;
    return count;
}

struct Counts {
    std::uint64_t messages = 0;
    Share share;
    std::uint64_t refused = 0;
    std::uint64_t compared = 0;
    std::uint64_t bystanders = 0;
    std::map<std::string, std::map<std::string, std::uint64_t>> tried;  ///< By target and message.
    std::map<Wrong, std::uint64_t> wrongs;
    std::map<SessionState, std::uint64_t> seen;
};

/// One sidecar from its start to its end.
class Epoch {
public:
    Epoch(Random& random, Counts& counts) : random_(random), counts_(counts), descriptors_(0) {
        for (auto const number : {0, 1, 2})
            engines_.push_back(std::make_unique<Engine>("engine " + std::to_string(number),
                                                        random.number() | 1, random.number()));
        descriptors_ = open_descriptors();
        mappings_ = lent_mappings();
        world_ = std::make_unique<World>();
        idle_descriptors_ = open_descriptors();
        oracle_ = std::make_unique<Oracle>(*world_);
        walker_ = std::make_unique<Walker>(*world_, *oracle_, random);
    }

    void run(std::uint64_t messages_max) {
        auto const targets = all_targets();
        while (oracle_->messages < messages_max && !world_->stopping()) {
            detach_strangers();
            auto& engine = *engines_[random_.below(2)];
            auto const& target = random_.one_of(targets);
            auto const name = target.name();
            CAPTURE(name);
            INFO("the last messages: ", oracle_->trace());
            walker_->lead(engine, target);
            burst(engine, target);
            world_->gate.open();
            walker_->settle(engine);
            if (random_.chance(30)) finish(engine);
        }
    }

    /// Everything goes back, whichever way the engines leave.
    void end() {
        leave();
        CHECK(std::ranges::none_of(oracle_->now().instances,
                                   [](auto const& one) { return one.second.alive; }));
        // Workers let go of what they hold in their own time.
        auto const deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
        while (lent_mappings() != mappings_ && std::chrono::steady_clock::now() < deadline)
            std::this_thread::yield();
        world_->pass_time(0);
        CHECK(lent_mappings() == mappings_);
        CHECK(open_descriptors() <= idle_descriptors_);
        close();
    }
    void close() {
        for (auto const& [state, count] : oracle_->seen)
            counts_.seen[state] += count;
        counts_.messages += oracle_->messages;
        counts_.compared += walker_->compared;
        counts_.share.deep += oracle_->share.deep;
        counts_.share.all += oracle_->share.all;
        world_.reset();
        CHECK(open_descriptors() == descriptors_);
        CHECK(lent_mappings() == mappings_);
    }

private:
    Engine& bystander() { return *engines_[2]; }

    /// A step of a prompt that has nothing to do with all this.
    void step_bystander() {
        for (auto const& engine : engines_)
            walker_->settle(*engine);
        auto const messages = oracle_->messages;
        auto const share = oracle_->share;
        auto const compared = walker_->compared;
        walker_->advance(bystander());
        counts_.bystanders += walker_->compared - compared;
        oracle_->messages = messages;  // These are not the fuzzer's.
        oracle_->share = share;
    }

    /// Hellos with a wrong number make engines that do not exist.
    void detach_strangers() {
        std::vector<std::uint64_t> strangers;
        for (auto const& [id, view] : oracle_->now().instances)
            if (view.alive && std::ranges::none_of(engines_, [&, id = id](auto const& engine) {
                    return engine->id == id;
                }))
                strangers.push_back(id);
        for (auto const id : strangers) {
            wire::DetachT detach;
            detach.instance = id;
            auto const told =
                oracle_->ask({"controller", test::own_process()}, encoded(1, body_of(detach)));
            REQUIRE(!told.is_refused());
        }
    }

    /// A run that nothing wrong was taken of goes to its end.
    void finish(Engine& engine) {
        if (engine.run.tainted || !engine.has_regions) return;
        while (true) {
            auto const state = walker_->state_of(engine);
            if (!state || *state == SessionState::Closed || *state == SessionState::Failed) return;
            walker_->advance(engine);
        }
    }

    std::vector<std::uint64_t> numbers() const {
        std::vector<std::uint64_t> all{kBoot, walker_->last_session, walker_->last_session + 1};
        for (auto const& engine : engines_)
            for (auto const number : {engine->id, engine->run.session, engine->source,
                                      engine->staging, engine->destination, engine->brittle})
                all.push_back(number);
        return all;
    }

    Wrong any_wrong() {
        static constexpr Wrong kOften[] = {Wrong::Number,  Wrong::Number,  Wrong::Number,
                                           Wrong::Number,  Wrong::Number,  Wrong::Number,
                                           Wrong::Text,    Wrong::List,    Wrong::Missing,
                                           Wrong::Nothing, Wrong::Nothing, Wrong::Repeated};
        static constexpr Wrong kSeldom[] = {Wrong::Offset, Wrong::Bits,   Wrong::Bits,
                                            Wrong::Cut,    Wrong::Longer, Wrong::Sender};
        return random_.chance(88) ? random_.one_of(kOften) : random_.one_of(kSeldom);
    }

    rpc::Command const& any_command() {
        static auto const commands = all_commands();
        while (true) {
            auto const& one = random_.one_of(commands);
            if (one.reach == rpc::Reach::Engine || random_.chance(25)) return one;
        }
    }

    Sender wrong_sender(Engine const& engine) {
        Sender from{engine.peer, engine.process->credentials()};
        switch (random_.below(5)) {
            case 0: from.peer = "another connection"; break;
            case 1: from.process->pid = engines_[2]->process->credentials().pid; break;
            case 2: from.process->uid += 1; break;
            case 3: from.process->pid = 0; break;
            default: from.process.reset(); break;
        }
        return from;
    }

    void burst(Engine& engine, Target const& target) {
        for (auto left = 1 + random_.below(kBurstMax); left > 0; --left) {
            bool const is_planned = target.state == SessionState::Planned;
            // While workers are held, the bystander's is held, too.
            if (!is_planned && random_.below(kBystanderEvery) == 0) step_bystander();
            auto const before = walker_->state_of(engine);
            attack(engine, target);
            if (world_->stopping()) return;
            if (target.is_attached && !oracle_->now().is_alive(engine.id)) return;
            if (walker_->state_of(engine) != before && random_.chance(70)) return;
        }
    }

    void attack(Engine& engine, Target const& target) {
        auto const& command = any_command();
        auto wrong = any_wrong();
        CAPTURE(std::string(command.name));
        CAPTURE(std::string(name_of(wrong)));
        bool const is_right = wrong == Wrong::Nothing || wrong == Wrong::Repeated;
        Scene const scene{engine, random_, walker_->last_session};
        auto const body = right_message(command.body, scene);
        REQUIRE(body.type == command.body);  // Otherwise: teach messages.cc this message.
        auto bytes = encoded(random_.number(), body);
        Sender from{engine.peer, engine.process->credentials()};
        if (wrong == Wrong::Sender)
            from = wrong_sender(engine);
        else if (!is_right && !spoil(bytes, wrong, random_, numbers()))
            wrong = Wrong::Nothing;
        for (int times = wrong == Wrong::Repeated ? 2 : 1; times > 0; --times)
            deliver(engine, from, bytes, is_right);
        ++counts_.wrongs[wrong];
        ++counts_.tried[target.name()][command.name];
    }

    void deliver(Engine& engine,
                 Sender const& from,
                 std::vector<std::uint8_t> const& bytes,
                 bool is_right) {
        auto const told = oracle_->ask(from, bytes);
        if (told.is_refused()) {
            ++counts_.refused;
            return;
        }
        if (world_->stopping()) {
            auto const* const stop = told.request->body.AsStop();
            REQUIRE(stop != nullptr);
            REQUIRE(stop->boot_id == kBoot);
        }
        follow(engine, *told.request, is_right);
    }

    /// What was taken changes what the engine has to think of itself.
    void follow(Engine& engine, wire::EnvelopeT const& request, bool is_right) {
        if (request.body.AsUnregisterRegion() != nullptr) engine.has_regions = false;
        for (auto const& one : engines_)
            if (!oracle_->now().is_alive(one->id)) one->has_regions = false;
        auto const* const layer = request.body.AsLayerReady();
        for (auto const& one : engines_) {
            auto& run = one->run;
            if (layer == nullptr || layer->instance != one->id || layer->session != run.session)
                continue;
            // Those that came before are answered, and nothing happens.
            if (layer->layer == run.layers_sent) ++run.layers_sent;
        }
        // A wrong number may be the one that would have come next.
        auto const* const open = request.body.AsOpenSession();
        auto& last = walker_->last_session;
        if (open != nullptr && open->session > last && open->session - last < 1'000'000)
            last = open->session;
        if (!is_right && request.body.type != wire::Body::Heartbeat) engine.run.tainted = true;
    }

    void leave() {
        world_->gate.open();
        auto const way = random_.below(4);
        if (way == 3) {
            world_->pass_time(60'000);
        } else if (way == 2) {
            for (auto const& engine : engines_)
                engine->process->kill();
            detach_strangers();
            world_->take_reports();
        } else {
            for (auto const& engine : engines_)
                if (way == 0) walker_->lead(*engine, {.is_attached = false});
            detach_strangers();
            for (auto const& engine : engines_)
                if (oracle_->now().is_alive(engine->id)) {
                    wire::DetachT detach;
                    detach.instance = engine->id;
                    walker_->tell(*engine, body_of(detach));
                }
        }
        oracle_->look_again();
    }

    Random& random_;
    Counts& counts_;
    std::vector<std::unique_ptr<Engine>> engines_;
    std::size_t descriptors_;
    std::size_t mappings_ = 0;
    std::size_t idle_descriptors_ = 0;
    std::unique_ptr<World> world_;
    std::unique_ptr<Oracle> oracle_;
    std::unique_ptr<Walker> walker_;
};

}  // namespace dkv::fuzz

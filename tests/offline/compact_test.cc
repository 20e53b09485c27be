// A saved cache in, a smaller one out.
#include "sidecar/offline/compact.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

#include <doctest/doctest.h>

#include "sidecar/offline/side.h"
#include "sidecar/pipeline/job.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using offline::CompactOutcome;
using offline::CompactRequest;

namespace fs = std::filesystem;

namespace {

constexpr Geometry kGeometry{.layers = 5, .q_heads = 6, .kv_heads = 2, .head_dim = 8};

std::string bytes_of_file(fs::path const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

struct Fixture {
    test::TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    Geometry geometry = kGeometry;
    std::uint32_t tokens = 90;

    fs::path make(std::uint32_t query_rows, unsigned seed = 3, std::string const& name = "cache") {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        auto const saved = test::saved_cache(
            geometry, tokens, query_rows, [&](std::uint32_t layer, std::string const& part) {
                bool const queries = part == "q_window";
                std::size_t const rows =
                    queries ? geometry.q_heads * query_rows : geometry.kv_heads * tokens;
                float const sharp = queries ? 2.0F / static_cast<float>(1 + layer) : 1.0F;
                std::string bytes;
                for (std::size_t i = 0; i < rows * geometry.head_dim; ++i) {
                    float const value = normal(random) * sharp;
                    bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
                }
                return bytes;
            });
        test::write_file(folder / name, saved.text());
        return folder / name;
    }

    CompactRequest request(PolicyRequest const& policy, fs::path const& input) {
        return {.input = input, .output = folder / "out", .policy = policy};
    }
    CompactOutcome compact(CompactRequest const& wish) {
        auto outcome = offline::compact(*backend, wish);
        REQUIRE(outcome);
        return std::move(outcome).value();
    }
    /// "invalid_argument: …", with the folder's name taken out.
    std::string refusal(CompactRequest const& wish) {
        auto const outcome = offline::compact(*backend, wish);
        if (outcome) return "";
        std::string message =
            std::string(name_of(outcome.error().code)) + ": " + outcome.error().message;
        for (std::size_t at; (at = message.find(folder.path() + "/")) != std::string::npos;)
            message.erase(at, folder.path().size() + 1);
        return message;
    }
    std::vector<std::string> files() const {
        std::vector<std::string> names;
        for (auto const& entry : fs::directory_iterator(folder.path()))
            names.push_back(entry.path().filename());
        std::ranges::sort(names);
        return names;
    }

    /// [layers][kv_heads] positions that the live job packs.
    std::vector<std::vector<std::vector<std::int32_t>>> live(SavedCache const& cache,
                                                             PolicyParams const& params) {
        JobSpec const spec{
            .geometry = geometry, .prompt_tokens = tokens, .params = params, .progressive = true};
        JobNeeds const needs = needs_of(spec);
        std::vector<std::byte> staging(needs.staging_bytes);
        std::vector<std::byte> destination(needs.destination_bytes);
        auto const job = Job::open(*backend, spec, staging, destination);
        REQUIRE(job);
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            auto const saved = cache.layer(layer);
            REQUIRE(saved);
            auto const wanted = std::max(needs.window, params.window);
            REQUIRE(job.value()->layer_ready(
                layer, {.keys = saved.value().keys,
                        .values = saved.value().values,
                        .queries = offline::last_queries(saved.value(), wanted),
                        .scores = {}}));
        }
        std::vector<std::vector<std::vector<std::int32_t>>> kept;
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            auto const at = job.value()->pack(layer);
            REQUIRE(at);
            PackedLayer const place =
                packed_layer(geometry, at.value().lengths, at.value().destination_offset);
            auto& heads = kept.emplace_back();
            for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
                auto& list = heads.emplace_back(at.value().lengths[head]);
                std::memcpy(list.data(),
                            destination.data() + place.positions_offset +
                                sizeof(std::int32_t) * place.head_rows[head],
                            sizeof(std::int32_t) * list.size());
            }
        }
        return kept;
    }

    /// Every row of `made` is that of its position in `from`. Returns the positions.
    std::vector<std::vector<std::vector<std::int32_t>>> rows_of(SavedCache const& from,
                                                                SavedCache const& made) {
        std::vector<std::vector<std::vector<std::int32_t>>> kept;
        for (std::uint32_t index = 0; index < geometry.layers; ++index) {
            auto const a = from.layer(index).value();
            auto const b = made.layer(index).value();
            auto& heads = kept.emplace_back();
            for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
                auto const keys = b.keys_of(head);
                auto& positions = heads.emplace_back(keys.tokens);
                std::iota(positions.begin(), positions.end(), 0);  // Unless the file says others.
                std::ranges::copy(b.positions_of(head), positions.begin());
                auto const values = b.values_of(head);
                bool same = keys.tokens == positions.size();
                for (std::uint32_t row = 0; same && row < keys.tokens; ++row) {
                    auto const at = static_cast<std::uint32_t>(positions[row]);
                    same = std::memcmp(keys.row(0, row), a.keys.row(head, at),
                                       geometry.row_bytes()) == 0 &&
                           std::memcmp(values.row(0, row), a.values.row(head, at),
                                       geometry.row_bytes()) == 0;
                }
                CHECK(same);
            }
        }
        return kept;
    }

    /// The share of the last `window` queries' attention on these positions, the long way round.
    double mass(SavedCache const& cache,
                std::uint32_t index,
                std::uint32_t window,
                std::vector<std::vector<std::int32_t>> const& kept) {
        auto const layer = cache.layer(index).value();
        auto const row = [](RowsView const& view, std::uint32_t head, std::uint32_t token) {
            return reinterpret_cast<float const*>(view.row(head, token));
        };
        double sum = 0;
        for (std::uint32_t head = 0; head < geometry.q_heads; ++head)
            for (std::uint32_t query = 0; query < window; ++query) {
                std::uint32_t const kv = head / geometry.group();
                auto const* const q =
                    row(layer.queries, head, layer.queries.tokens - window + query);
                std::vector<double> weights;
                for (std::uint32_t t = 0; t < tokens - window + query + 1; ++t) {
                    auto const* const k = row(layer.keys, kv, t);
                    double const dot = std::inner_product(q, q + geometry.head_dim, k, 0.0);
                    weights.push_back(std::exp(dot / std::sqrt(double{1} * geometry.head_dim)));
                }
                double on_kept = 0;
                for (std::int32_t const t : kept[kv])
                    if (static_cast<std::size_t>(t) < weights.size())
                        on_kept += weights[static_cast<std::size_t>(t)];
                sum += on_kept / std::accumulate(weights.begin(), weights.end(), 0.0);
            }
        return sum / geometry.q_heads / window;
    }
};

constexpr char const* kPolicies[] = {"auto",      "streamingllm", "h2o",   "snapkv",
                                     "pyramidkv", "dynamickv",    "knorm", "keydiff"};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "what is kept is what the live job packs, to the token and the byte") {
    std::mt19937 random(9);
    auto const between = [&](std::uint32_t least, std::uint32_t most) {
        return least + static_cast<std::uint32_t>(random() % (most - least + 1));
    };
    for (int round = 0; round < 6; ++round) {
        geometry = {.layers = between(1, 7),
                    .q_heads = 0,
                    .kv_heads = between(1, 3),
                    .head_dim = 2 * between(1, 9)};
        geometry.q_heads = geometry.kv_heads * between(1, 3);
        tokens = between(40, 150);
        auto const input = make(tokens, static_cast<unsigned>(round));
        auto const cache = open_cache(input);
        REQUIRE(cache);
        std::uint32_t const window = between(1, 9);
        for (char const* policy : kPolicies) {
            auto wish = request({.name = policy,
                                 .capacity = window + between(4, 25),
                                 .window = window,
                                 .r_max = 3.0,
                                 .update_interval = 2,
                                 .granularity = static_cast<Granularity>(round % 3)},
                                input);
            wish.force = true;
            auto const outcome = compact(wish);
            CAPTURE(in_words(outcome.params));
            CAPTURE(describe(geometry));

            auto const made = open_cache(wish.output);
            REQUIRE(made);
            CHECK(rows_of(*cache.value(), *made.value()) == live(*cache.value(), outcome.params));
            CHECK(made.value()->facts().lengths == outcome.lengths);
            CHECK(std::accumulate(outcome.lengths.begin(), outcome.lengths.end(), 0U) ==
                  geometry.layers * geometry.kv_heads * *wish.policy.capacity);
            CHECK(outcome.file_bytes_after == fs::file_size(wish.output));
            CHECK(outcome.file_bytes_before == fs::file_size(input));
        }
    }
}

TEST_CASE_FIXTURE(Fixture, "bytes are the file's: never more, and hardly less") {
    tokens = 400;
    auto const input = make(tokens);
    for (char const* policy : kPolicies)
        for (std::uint64_t const bytes : {30000U, 61000U, 128123U, 200000U}) {
            auto wish = request({.name = policy, .window = 8, .bytes = bytes}, input);
            wish.force = true;
            auto const outcome = compact(wish);
            CAPTURE(policy);
            CAPTURE(bytes);
            CHECK(fs::file_size(wish.output) == outcome.file_bytes_after);
            CHECK(outcome.file_bytes_after <= bytes);
            CHECK(static_cast<double>(outcome.file_bytes_after) >=
                  0.98 * static_cast<double>(bytes));
        }
}

TEST_CASE_FIXTURE(Fixture, "a share of the attention is in every layer of the output") {
    auto const input = make(tokens);
    auto const cache = open_cache(input).value();
    for (char const* policy : {"auto", "snapkv", "h2o", "dynamickv"})
        for (double const share : {0.5, 0.8, 0.97}) {
            auto wish = request({.name = policy, .window = 4, .keep_mass = share}, input);
            wish.force = true;
            auto const outcome = compact(wish);
            auto const kept = rows_of(*cache, *open_cache(wish.output).value());
            for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
                CAPTURE(policy);
                double const measured = mass(*cache, layer, 4, kept[layer]);
                CHECK(measured >= share - 1e-6);
                CHECK(double{outcome.mass_kept[layer]} == doctest::Approx(measured).epsilon(1e-4));
                CHECK(double{outcome.mass_kept[layer]} >= share);
            }
        }
}

TEST_CASE_FIXTURE(Fixture, "the same request gives the same bytes, and is not done twice") {
    auto wish = request({.name = "", .capacity = 20, .window = 4}, make(4));
    auto const first = compact(wish);
    CHECK(first.params.name == "auto");
    CHECK_FALSE(first.already_there);
    auto const bytes = bytes_of_file(wish.output);

    auto const again = compact(wish);
    CHECK(again.already_there);
    CHECK(again.lengths == first.lengths);
    CHECK(again.file_bytes_after == first.file_bytes_after);
    CHECK(bytes_of_file(wish.output) == bytes);

    wish.force = true;
    CHECK_FALSE(compact(wish).already_there);
    CHECK(bytes_of_file(wish.output) == bytes);
}

TEST_CASE_FIXTURE(Fixture, "another request, or another prompt, does not pass for what is there") {
    auto const input = make(4);
    auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, input);
    compact(wish);
    std::string const refused =
        "already_exists: out: there is a file of this name already, and it does not say that it "
        "was made of this request; --force writes over it";

    wish.policy.capacity = 21;
    CHECK(refusal(wish) == refused);
    wish.policy.capacity = 20;
    wish.keep_queries = true;
    CHECK(refusal(wish) == refused);
    wish.keep_queries = false;
    CHECK(refusal(wish) == "");
    make(4, 4);
    CHECK(refusal(wish) == refused);
}

TEST_CASE_FIXTURE(Fixture, "the file says what it went through") {
    auto wish = request({.name = "dynamickv", .capacity = 20, .window = 4}, make(4));
    wish.keep_queries = true;
    compact(wish);

    auto const made = open_cache(wish.output).value();
    auto provenance = made->facts().provenance;
    CHECK(provenance["policy"] == "dynamickv");
    CHECK(provenance["capacity"] == "20");
    CHECK(provenance["window"] == "4");
    CHECK(provenance["pool"] == "max");
    CHECK(provenance["r_max"] == "10");
    CHECK(provenance["granularity"] == "layer");
    CHECK(provenance["source"] == "cache");
    CHECK(provenance["source_format"] == "dkv");
    CHECK(provenance["dkv"] == DKV_VERSION);
    CHECK(made->facts().query_rows == 4);
    CHECK(made->facts().compacted);
    CHECK(made->facts().has_checksums);
    CHECK(made->facts().model == "a small one");
    CHECK(made->facts().prompt_tokens == 90);
}

TEST_CASE_FIXTURE(Fixture, "a dry run knows the size and writes nothing") {
    for (char const* policy : kPolicies) {
        auto wish = request({.name = policy, .capacity = 20, .window = 4}, make(tokens));
        wish.dry_run = true;
        auto const dry = compact(wish);
        CHECK(files() == std::vector<std::string>{"cache"});
        wish.dry_run = false;
        auto const wet = compact(wish);
        CHECK(dry.lengths == wet.lengths);
        CHECK(dry.file_bytes_after == fs::file_size(wish.output));
        fs::remove(wish.output);
    }
}

TEST_CASE_FIXTURE(Fixture, "a prompt that is not longer than the capacity is kept whole") {
    auto const input = make(0);
    auto const wish = request({.name = "snapkv", .capacity = 90, .window = 4}, input);
    auto const outcome = compact(wish);
    CHECK(outcome.kept_whole);
    CHECK(outcome.lengths == std::vector<std::uint32_t>(10, 90));
    CHECK(outcome.rows_bytes_after == outcome.rows_bytes_before);
    auto const made = open_cache(wish.output).value();
    CHECK_FALSE(made->facts().compacted);
    auto const a = open_cache(input).value()->layer(4).value();
    auto const b = made->layer(4).value();
    CHECK(std::memcmp(a.values.row(0, 0), b.values.row(0, 0), 2 * 90 * geometry.row_bytes()) == 0);
}

TEST_CASE_FIXTURE(Fixture, "where there are no queries, what needs them says what to do") {
    auto wish = request({.name = "", .capacity = 20, .window = 4}, make(0));
    CHECK(refusal(wish) ==
          "invalid_argument: cache: auto needs the queries of the last 4 tokens, and the file has "
          "none: `dkv capture MODEL FILE` works them out; knorm, keydiff and streamingllm need "
          "none");
    for (char const* policy : {"knorm", "keydiff", "streamingllm"}) {
        wish.policy.name = policy;
        CHECK(compact(wish).mass_kept.empty());
        fs::remove(wish.output);
    }
    wish.input = make(2);
    wish.policy.name = "snapkv";
    CHECK(refusal(wish) ==
          "invalid_argument: cache: snapkv needs the queries of the last 4 tokens, and the file "
          "has 2: a window of 2 would do; knorm, keydiff and streamingllm need none");
    CHECK(files() == std::vector<std::string>{"cache"});
}

TEST_CASE_FIXTURE(Fixture, "the input stays as it is, whatever its name") {
    auto const input = make(4);
    auto const before = bytes_of_file(input);
    auto const written = fs::last_write_time(input);
    fs::create_symlink(input, folder / "link");
    fs::create_hard_link(input, folder / "twin");
    auto wish = request({.name = "", .capacity = 20, .window = 4}, input);
    wish.force = true;
    for (char const* name : {"cache", "link", "twin", "./cache"}) {
        wish.output = folder / name;
        CHECK(refusal(wish).find(": the output is the input, which stays as it is") !=
              std::string::npos);
    }
    wish.output = folder / "out";
    compact(wish);
    CHECK(bytes_of_file(input) == before);
    CHECK(fs::last_write_time(input) == written);
}

TEST_CASE_FIXTURE(Fixture, "what cannot be compacted is refused by name") {
    auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, make(4));
    wish.format = FileFormat::Vllm;
    CHECK(refusal(wish) ==
          "unsupported: cache: vllm is read and not written: choose dkv, hf, llama-state, "
          "llama-slot or mlx-lm");
    wish.format.reset();
    wish.policy.name = "snapkw";
    CHECK(refusal(wish).starts_with("not_found: cache: no policy is called \"snapkw\""));
    wish.policy = {.name = "snapkv", .window = 4, .bytes = 900};
    CHECK(refusal(wish).starts_with(
        "invalid_argument: cache: bytes is 900, and a file of the window of 4 tokens alone has "));
    wish.policy = {.name = "snapkv", .capacity = 20, .window = 4};
    compact(wish);
    auto const again = request({.name = "snapkv", .capacity = 10, .window = 4}, wish.output);
    CHECK(refusal({.input = wish.output, .output = folder / "out2", .policy = again.policy}) ==
          "unsupported: out: tokens are missing from it already: compact the cache that it was "
          "made of");
    CHECK(refusal({.input = folder / "nothing", .output = folder / "out2", .policy = {.name = ""}})
              .starts_with("io: "));
}

TEST_CASE_FIXTURE(Fixture, "a number that is none, in rows or queries, is found and nothing left") {
    std::size_t const size = fs::file_size(make(4));
    float const nan = std::nanf("");
    // The last tensor of the last layer is its queries; before them are its values.
    for (std::size_t const back : {std::size_t{4}, std::size_t{6 * 4 * 8 * 4 + 400}}) {
        auto const input = make(4);
        std::fstream file(input, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(size - back));
        file.write(reinterpret_cast<char const*>(&nan), sizeof nan);
        file.close();
        auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, input);
        auto const refused = refusal(wish);
        CAPTURE(refused);
        CHECK(refused.starts_with("corrupt_data: cache: "));
        CHECK(refused.find('\n') == std::string::npos);
        CHECK(files() == std::vector<std::string>{"cache"});
        wish.verify = false;
        CHECK(refusal(wish) == "");
        fs::remove(wish.output);
    }
}

TEST_CASE_FIXTURE(Fixture, "work that is told to stop leaves nothing, wherever it is") {
    auto const input = make(4);
    for (int stop_at = 0; stop_at < 12; ++stop_at) {
        int asked = 0;
        offline::Progress const progress{.advance = {}, .stop = [&] { return asked++ == stop_at; }};
        auto const outcome = offline::compact(
            *backend, request({.name = "snapkv", .capacity = 20, .window = 4}, input), progress);
        if (outcome) {
            CHECK(stop_at >= 11);  // Once before the work, 5 layers read, 5 written.
            continue;
        }
        CHECK(outcome.error().code == ErrorCode::Cancelled);
        CHECK(outcome.error().message == "interrupted");
        CHECK(files() == std::vector<std::string>{"cache"});
    }
}

TEST_CASE_FIXTURE(Fixture, "progress rises to the file's size") {
    auto const input = make(4);
    std::vector<std::uint64_t> seen;
    offline::Progress const progress{.advance =
                                         [&](std::size_t file, auto done, std::uint64_t total) {
                                             CHECK(file == 7);
                                             CHECK(total == fs::file_size(input));
                                             seen.push_back(done);
                                         },
                                     .stop = {}};
    REQUIRE(offline::compact(
        *backend, request({.name = "snapkv", .capacity = 20, .window = 4}, input), progress, 7));
    CHECK(seen.size() == 6);
    CHECK(std::ranges::is_sorted(seen));
    CHECK(seen.back() == fs::file_size(input));
}

TEST_CASE_FIXTURE(Fixture,
                  "formats whose heads or layers are alike refuse others, or fill them up") {
    auto const input = make(4);
    PolicyRequest const by_layer{
        .name = "dynamickv", .capacity = 20, .window = 4, .r_max = 3.0, .update_interval = 2};
    auto wish = request(by_layer, input);
    wish.format = FileFormat::LlamaState;
    wish.open.rope = {.theta = 10000, .interleaved = true};
    CHECK(refusal(wish).find("(--fill)") != std::string::npos);
    wish.policy.name = "pyramidkv";
    CHECK(refusal(wish).find("(--fill)") != std::string::npos);
    for (char const* policy : {"dynamickv", "pyramidkv"}) {
        wish.policy.name = policy;
        wish.fill = true;
        wish.dry_run = true;
        auto const filled = compact(wish);
        CAPTURE(policy);
        auto const [least, most] = std::ranges::minmax(filled.lengths);
        CHECK(least == most);
        CHECK(least > 20);
        REQUIRE(filled.notes.size() == 2);
        CHECK(filled.notes[1].starts_with("budgets of "));

        auto bytes = wish;
        bytes.policy.capacity.reset();
        bytes.policy.bytes = 5 * 2 * 2 * 32 * 40;
        auto const sized = compact(bytes);
        CHECK(std::ranges::min(sized.lengths) == std::ranges::max(sized.lengths));
        CHECK(sized.file_bytes_after <= *bytes.policy.bytes);
        CHECK(sized.file_bytes_after > *bytes.policy.bytes * 9 / 10);
    }
    // HF's layers may differ, and their heads may not.
    wish = request(by_layer, input);
    wish.format = FileFormat::Hf;
    wish.policy.granularity = Granularity::Head;
    CHECK(refusal(wish).starts_with("unsupported: "));
    wish.fill = true;
    auto const filled = compact(wish);
    for (std::size_t layer = 0; layer < 5; ++layer)
        CHECK(filled.lengths[2 * layer] == filled.lengths[2 * layer + 1]);
}

TEST_CASE_FIXTURE(Fixture, "several files are done together, and one that fails stops no other") {
    std::vector<CompactRequest> requests;
    for (unsigned i = 0; i < 4; ++i) {
        auto const name = std::to_string(i);
        auto wish = request({.name = "snapkv", .capacity = 20, .window = 4},
                            make(i == 2 ? 0 : 4, i, "in" + name));
        wish.output = folder / ("out" + name);
        requests.push_back(wish);
    }
    requests.push_back(requests[0]);
    requests.push_back(requests[1]);
    requests.back().input = requests[0].input;
    requests.back().output = requests[3].input;
    std::vector<std::size_t> ended;
    auto const outcomes = offline::compact_all(
        requests, 2, {}, [&](std::size_t file, auto const&) { ended.push_back(file); });

    REQUIRE(outcomes.size() == 6);
    for (std::size_t const good : {0U, 1U, 3U}) {
        REQUIRE(outcomes[good]);
        CHECK(fs::exists(requests[good].output));
    }
    REQUIRE_FALSE(outcomes[2]);
    CHECK(outcomes[2].error().message.find("in2: snapkv needs the queries") != std::string::npos);
    REQUIRE_FALSE(outcomes[4]);
    CHECK(outcomes[4].error().message == (folder / "in0") + ": its output would be that of " +
                                             (folder / "in0") + ", " + (folder / "out0"));
    REQUIRE_FALSE(outcomes[5]);
    CHECK(outcomes[5].error().message ==
          (folder / "in0") + ": its output " + (folder / "in3") + " is another input");
    std::ranges::sort(ended);
    CHECK(ended == std::vector<std::size_t>{0, 1, 2, 3, 4, 5});
}

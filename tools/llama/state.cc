// A real llama.cpp over a saved sequence, by its public interface alone:
//
//   llama_state save     MODEL TEXT BLOB CELLS FLASH
//   llama_state continue MODEL TEXT BLOB CELLS FLASH
//   llama_state forget   MODEL TEXT KEPT CELLS FLASH
//
// The prompt is TEXT but for its last 64 tokens. save computes it in a context of CELLS cells and
// writes llama_state_seq_get_data to BLOB; continue sets that into a fresh context; forget computes
// the last KEPT of the prompt's tokens alone, at their own positions. All then read the last 64
// tokens one by one, and print as JSON how surprising they were (mean negative log likelihood), the
// position after the prompt, and the process's own resident memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <llama.h>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int kNextTokens = 64;
constexpr int kBatchTokens = 512;

[[noreturn]] void fail(std::string const& message) {
    std::fprintf(stderr, "llama_state: %s\n", message.c_str());
    std::exit(1);
}

std::vector<char> read_file(char const* path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) fail(std::string("cannot read ") + path);
    return {std::istreambuf_iterator<char>(in), {}};
}

struct Engine {
    std::unique_ptr<llama_model, void (*)(llama_model*)> model{nullptr, llama_model_free};
    std::unique_ptr<llama_context, void (*)(llama_context*)> context{nullptr, llama_free};
    std::vector<llama_token> tokens;

    Engine(char const* path, char const* text_path, unsigned cells, bool flash) {
        llama_log_set([](ggml_log_level, char const*, void*) {}, nullptr);
        model.reset(llama_model_load_from_file(path, llama_model_default_params()));
        if (!model) fail(std::string("cannot load ") + path);
        auto params = llama_context_default_params();
        params.n_ctx = cells;
        params.n_batch = kBatchTokens;
        params.n_threads = params.n_threads_batch = 2;
        params.flash_attn_type =
            flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context.reset(llama_init_from_model(model.get(), params));
        if (!context) fail("cannot make a context");
        auto const text = read_file(text_path);
        tokens.resize(text.size() + 2);
        int const count = llama_tokenize(llama_model_get_vocab(model.get()), text.data(),
                                         static_cast<int>(text.size()), tokens.data(),
                                         static_cast<int>(tokens.size()), true, false);
        if (count <= 0) fail("cannot tokenize the text");
        tokens.resize(static_cast<std::size_t>(count));
    }

    /// Tokens [begin, end) of the text at these positions; logits of the last.
    void decode(int begin, int end) {
        for (int at = begin; at < end; at += kBatchTokens) {
            int const count = std::min(kBatchTokens, end - at);
            llama_batch batch = llama_batch_init(count, 0, 1);
            batch.n_tokens = count;
            for (int index = 0; index < count; ++index) {
                batch.token[index] = tokens[static_cast<std::size_t>(at + index)];
                batch.pos[index] = at + index;
                batch.n_seq_id[index] = 1;
                batch.seq_id[index][0] = 0;
                batch.logits[index] = static_cast<std::int8_t>(index + 1 == count);
            }
            int const outcome = llama_decode(context.get(), batch);
            llama_batch_free(batch);
            if (outcome != 0) fail("llama_decode says " + std::to_string(outcome));
        }
    }

    double surprise(llama_token token) const {
        float const* const logits = llama_get_logits_ith(context.get(), -1);
        int const count = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
        double const largest = *std::max_element(logits, logits + count);
        double sum = 0;
        for (int id = 0; id < count; ++id)
            sum += std::exp(logits[id] - largest);
        return std::log(sum) + largest - logits[token];
    }
};

long resident_kib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("RssAnon:")) return std::atol(line.c_str() + 8);
    return 0;
}

void save(Engine& engine, char const* path) {
    std::vector<std::uint8_t> blob(llama_state_seq_get_size(engine.context.get(), 0));
    blob.resize(llama_state_seq_get_data(engine.context.get(), blob.data(), blob.size(), 0));
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<char const*>(blob.data()),
               static_cast<std::streamsize>(blob.size()));
}

void load(Engine& engine, char const* path) {
    auto const blob = read_file(path);
    if (llama_state_seq_set_data(engine.context.get(),
                                 reinterpret_cast<std::uint8_t const*>(blob.data()), blob.size(),
                                 0) != blob.size())
        fail(std::string("llama.cpp does not take ") + path);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) fail("see the head of state.cc");
    std::string const what = argv[1];
    Engine engine(argv[2], argv[3], static_cast<unsigned>(std::atoi(argv[5])), argv[6][0] == '1');
    int const prompt = static_cast<int>(engine.tokens.size()) - kNextTokens;
    if (prompt + kNextTokens > static_cast<int>(engine.tokens.size()))
        fail("the text is too short");
    if (what == "save") {
        engine.decode(0, prompt);
        save(engine, argv[4]);
    } else if (what == "continue") {
        load(engine, argv[4]);
    } else {
        engine.decode(prompt - std::min(prompt, std::atoi(argv[4])), prompt);
    }

    int const next = llama_memory_seq_pos_max(llama_get_memory(engine.context.get()), 0) + 1;
    // The first token after the prompt is given: a restored context has no logits yet.
    double sum = 0;
    for (int at = prompt; at + 1 < prompt + kNextTokens; ++at) {
        engine.decode(at, at + 1);
        sum += engine.surprise(engine.tokens[static_cast<std::size_t>(at) + 1]);
    }
    std::printf("{\"next\": %d, \"nll\": %.4f, \"resident_kib\": %ld}\n", next,
                sum / (kNextTokens - 1), resident_kib());
}

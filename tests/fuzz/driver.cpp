// Owns how a fuzz target runs without libFuzzer, by the few of its options that run.py gives:
// random bytes and mutations of a corpus, the seed and the number of executions printed.
//   target [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-max_len=N] [FOLDER | FILE]...

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz.h"

namespace {

using Bytes = std::vector<uint8_t>;
using Clock = std::chrono::steady_clock;

const Bytes* running = nullptr;

void save_what_ran() {
    std::ofstream("crash", std::ios::binary)
        .write(reinterpret_cast<const char*>(running->data()),
               static_cast<std::streamsize>(running->size()));
    std::fprintf(stderr, "the input is in ./crash\n");
}

Bytes read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

class Runner {
  public:
    Runner(uint64_t seed, size_t max_length) : random_(seed), max_length_(max_length) {}

    void run(const Bytes& bytes) {
        running = &bytes;
        // Of exactly this size, so that reading on is caught.
        const std::unique_ptr<uint8_t[]> data(new uint8_t[bytes.size()]);
        std::copy(bytes.begin(), bytes.end(), data.get());
        LLVMFuzzerTestOneInput(data.get(), bytes.size());
        ++executions;
    }

    Bytes next(const std::vector<Bytes>& corpus) {
        if (corpus.empty() || below(2) == 0) {
            Bytes made(below(max_length_ + 1));
            for (uint8_t& byte : made) byte = static_cast<uint8_t>(random_());
            return made;
        }
        Bytes made = corpus[below(corpus.size())];
        for (size_t changes = 1 + below(4); changes > 0 && !made.empty(); --changes) {
            const size_t at = below(made.size());
            switch (below(4)) {
                case 0:
                    made[at] = static_cast<uint8_t>(random_());
                    break;
                case 1:
                    made[at] ^= static_cast<uint8_t>(1u << below(8));
                    break;
                case 2:
                    made.erase(made.begin() + static_cast<std::ptrdiff_t>(at));
                    break;
                default:
                    made.insert(made.begin() + static_cast<std::ptrdiff_t>(at), random_());
            }
        }
        return made;
    }

    long long executions = 0;

  private:
    size_t below(size_t size) { return random_() % size; }

    std::mt19937_64 random_;
    size_t max_length_;
};

}  // namespace

int main(int count, char** arguments) {
    long long runs = -1, seconds = 0, max_length = 512;
    auto seed = static_cast<long long>(std::random_device{}());
    std::vector<Bytes> corpus;
    bool is_one_file = false;
    for (int i = 1; i < count; ++i) {
        const std::string given = arguments[i];
        const auto value = [&](const std::string& name, long long& to) {
            if (given.rfind(name + "=", 0) != 0) return false;
            to = std::stoll(given.substr(name.size() + 1));
            return true;
        };
        if (value("-runs", runs) || value("-max_total_time", seconds) || value("-seed", seed) ||
            value("-max_len", max_length)) {
            continue;
        }
        if (given[0] == '-') continue;  // an option of libFuzzer's alone
        if (std::filesystem::is_directory(given)) {
            for (const auto& file : std::filesystem::directory_iterator(given)) {
                corpus.push_back(read(file.path()));
            }
        } else {
            corpus.push_back(read(given));
            is_one_file = true;
        }
    }
    std::fprintf(stderr, "seed %lld\n", seed);
    std::signal(SIGABRT, [](int) { save_what_ran(); });
    Runner runner(static_cast<uint64_t>(seed), static_cast<size_t>(max_length));
    const auto end = Clock::now() + std::chrono::seconds(seconds);
    for (const Bytes& bytes : corpus) runner.run(bytes);
    while (!is_one_file && (runs < 0 || runner.executions < runs) &&
           (seconds == 0 || Clock::now() < end)) {
        runner.run(runner.next(corpus));
    }
    std::fprintf(stderr, "Done %lld runs\n", runner.executions);
}

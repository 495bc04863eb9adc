// What tells text that a program made from text that a person wrote, of its words alone: pairs of words that no sentence
// has, one name over and over, and sentences that differ in their numbers and names only.
#pragma once

#include <unordered_set>
#include <utility>
#include <vector>

#include "characters.hpp"
#include "counting.hpp"

namespace wording {

using WordPair = std::pair<uint64_t, uint64_t>;  // hashes of two words

class Wording {
public:
    explicit Wording(const std::vector<WordPair>& odd_pairs) {
        for (const auto& [before, word] : odd_pairs) odd_pairs_.insert(joined(before, word));
    }

    void start() {
        masked_.clear();
        names_.clear();
        odd_ = before_stop_ = 0;
        before_ = 0;
    }

    void add(size_t start, size_t stop, uint64_t hash, uint32_t first, bool is_stop_word) {
        odd_ += start == before_stop_ + 1 && odd_pairs_.count(joined(before_, hash));
        bool name = !is_stop_word && (text::class_of(first) & text::UPPER);
        bool number = text::class_of(first) & text::NUMBER;
        if (name) names_.push_back(hash);
        masked_.push_back(name || number ? MASK : hash);
        before_ = hash;
        before_stop_ = stop;
    }

    // How many there are; short texts may have a few of each of the three, which do not count.
    size_t odd_pairs() const { return beyond(odd_, FREE_PAIRS); }

    // How often the most frequent name comes.
    size_t repeated_name(CountTable& table) const {
        table.start(names_.size());
        size_t most = 0;
        for (uint64_t name : names_) most = std::max<size_t>(most, table.add(name));
        return beyond(most, FREE_NAMES);
    }

    // Words in runs of five that came before where numbers and names are all the same, none counted twice. A run has at
    // most two of those.
    size_t in_masked_runs(CountTable& table) const {
        table.start(masked_.size());
        size_t words = 0;
        for (size_t i = 0; i + RUN <= masked_.size();) {
            size_t masks = 0;
            uint64_t hash = 0;
            for (size_t j = i; j < i + RUN; ++j) {
                masks += masked_[j] == MASK;
                hash = joined(hash, masked_[j]);
            }
            bool seen = masks <= MAX_MASKS && table.add(hash) > 1;
            words += seen ? RUN : 0;
            i += seen ? RUN : 1;
        }
        return beyond(words, FREE_RUNS * RUN);
    }

private:
    static constexpr uint64_t MASK = 0;
    static constexpr size_t RUN = 5, MAX_MASKS = 2;
    static constexpr size_t FREE_PAIRS = 2, FREE_NAMES = 5, FREE_RUNS = 3;

    static size_t beyond(size_t count, size_t free) { return count > free ? count - free : 0; }

    static uint64_t joined(uint64_t before, uint64_t word) {
        uint64_t hash = (before ^ word * RUN) * text::TOKEN_START;
        return hash ^ hash >> 29;
    }

    std::unordered_set<uint64_t> odd_pairs_;
    std::vector<uint64_t> masked_, names_;
    size_t odd_ = 0, before_stop_ = 0;
    uint64_t before_ = 0;
};

}  // namespace wording

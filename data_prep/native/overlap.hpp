// Sequences of words of evaluation items looked for in documents, in one scan of the UTF-8.
#pragma once

#include <algorithm>
#include <utility>

#include "characters.hpp"

namespace overlap {

constexpr uint64_t BASE = 0x9fb21c651e98df25ULL;  // odd, so that no word of a sequence loses bits

// The words of a text, and the hash of any sequence of them: a polynomial of their hashes modulo 2**64, by the difference
// of two running values. `fold` says which code point a character that is a word of its own is read as.
class Words {
public:
    explicit Words(std::vector<uint32_t> fold) : fold_(std::move(fold)) {}

    void read(const unsigned char* begin, const unsigned char* end) {
        running_.assign(1, 0);
        spans_.clear();
        text::each_word(begin, end, false, [&](size_t start, size_t stop, uint64_t hash, uint32_t first) {
            if (first < fold_.size() && fold_[first] != first) hash = text::mix(text::feed(text::TOKEN_START, fold_[first]));
            running_.push_back(running_.back() * BASE + hash);
            spans_.emplace_back(uint32_t(start), uint32_t(stop));
        });
    }

    size_t size() const { return spans_.size(); }
    uint32_t start(size_t word) const { return spans_[word].first; }
    uint32_t stop(size_t word) const { return spans_[word].second; }

    // Of the `length` words from `first` on; never 0. `power` is BASE to the power `length`.
    uint64_t hash(size_t first, size_t length, uint64_t power) const {
        uint64_t value = text::mix(running_[first + length] - running_[first] * power);
        return value ? value : 1;
    }

private:
    std::vector<uint32_t> fold_;
    std::vector<uint64_t> running_;                     // one more than there are words
    std::vector<std::pair<uint32_t, uint32_t>> spans_;  // in characters
};

inline uint64_t power_of(size_t length) {
    uint64_t power = 1;
    while (length--) power *= BASE;
    return power;
}

// A set of hashes. A small filter, which stays in the cache, answers for most of those that are not in it.
class Hashes {
public:
    Hashes(const uint64_t* hashes, size_t count) {
        size_t size = 64;
        while (size < count * 4) size *= 2;
        slots_.assign(size, 0);
        filter_.assign(size / 16, 0);
        for (size_t i = 0; i < count; ++i) {
            size_t slot = hashes[i] & (size - 1);
            while (slots_[slot] && slots_[slot] != hashes[i]) slot = (slot + 1) & (size - 1);
            slots_[slot] = hashes[i];
            filter_[word(hashes[i])] |= bit(hashes[i]);
        }
    }

    bool has(uint64_t hash) const {
        if (!(filter_[word(hash)] & bit(hash))) return false;
        for (size_t slot = hash & (slots_.size() - 1); slots_[slot]; slot = (slot + 1) & (slots_.size() - 1))
            if (slots_[slot] == hash) return true;
        return false;
    }

private:
    size_t word(uint64_t hash) const { return (hash >> 32) & (filter_.size() - 1); }
    static uint64_t bit(uint64_t hash) { return uint64_t(1) << (hash >> 58); }

    std::vector<uint64_t> slots_;   // open addressing; 0 is empty
    std::vector<uint64_t> filter_;  // a bit for each hash, of 16 for every one
};

struct Whole { uint64_t prefix; size_t length; uint64_t hash; };  // a sequence, and its first words

struct Match { uint32_t group; uint64_t hash; uint32_t start, stop; };

class Overlap {
public:
    explicit Overlap(std::vector<uint32_t> fold) : words_(std::move(fold)) {}

    // Look for sequences of `length` words.
    void add_ngrams(size_t length, const uint64_t* hashes, size_t count) {
        groups_.push_back({length, power_of(length), Hashes(hashes, count), {}});
    }

    // Look for sequences of several lengths, each from `prefix` words on; those are looked up alone.
    void add_wholes(size_t prefix, std::vector<Whole> wholes) {
        std::sort(wholes.begin(), wholes.end(), [](const Whole& one, const Whole& other) { return one.prefix < other.prefix; });
        std::vector<uint64_t> prefixes;
        for (const Whole& whole : wholes) prefixes.push_back(whole.prefix);
        groups_.push_back({prefix, power_of(prefix), Hashes(prefixes.data(), prefixes.size()), std::move(wholes)});
    }

    std::vector<Match> find(const unsigned char* begin, const unsigned char* end) {
        words_.read(begin, end);
        std::vector<Match> matches;
        for (uint32_t number = 0; number < groups_.size(); ++number) {
            const Group& group = groups_[number];
            for (size_t first = 0; first + group.length <= words_.size(); ++first) {
                uint64_t hash = words_.hash(first, group.length, group.power);
                if (!group.hashes.has(hash)) continue;
                if (group.wholes.empty()) matches.push_back(match(number, hash, first, group.length));
                else whole_matches(number, hash, first, matches);
            }
        }
        return matches;
    }

private:
    struct Group { size_t length; uint64_t power; Hashes hashes; std::vector<Whole> wholes; };

    Match match(uint32_t number, uint64_t hash, size_t first, size_t length) const {
        return {number, hash, words_.start(first), words_.stop(first + length - 1)};
    }

    void whole_matches(uint32_t number, uint64_t prefix, size_t first, std::vector<Match>& matches) const {
        const auto& wholes = groups_[number].wholes;
        auto at = std::lower_bound(wholes.begin(), wholes.end(), prefix,
                                   [](const Whole& whole, uint64_t value) { return whole.prefix < value; });
        for (; at != wholes.end() && at->prefix == prefix; ++at)
            if (first + at->length <= words_.size() && words_.hash(first, at->length, power_of(at->length)) == at->hash)
                matches.push_back(match(number, at->hash, first, at->length));
    }

    Words words_;
    std::vector<Group> groups_;
};

}  // namespace overlap

// Windows of a text that stand for it in the search for repeated spans; data_prep/deduplication/spans.py explains the search.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "characters.hpp"

namespace winnow {

constexpr uint64_t PRIME = (1ull << 61) - 1;
constexpr uint64_t BASES[2] = {0x1e3779b97f4a7c15ULL, 0x02b2ae3d27d4eb4fULL};  // two numbers below the prime

struct Anchors {
    std::vector<uint64_t> hashes;
    std::vector<uint32_t> checks;  // of a second hash
    std::vector<uint32_t> places;  // the window's first character
};

// Polynomial of the last `window` characters modulo the prime, which moves on by one character at a time. Of random bases,
// at most one in PRIME / window gives two different windows one value.
class Rolling {
public:
    Rolling(uint64_t base, size_t window) : base_(base) { while (window--) leaving_ = times(leaving_, base); }
    void move(uint64_t in, uint64_t out) { sum_ = reduced(reduced(times(sum_, base_) + in) + PRIME - times(out, leaving_)); }
    uint64_t hash() const { return text::mix(sum_); }

private:
    static uint64_t reduced(uint64_t value) { return value >= PRIME ? value - PRIME : value; }
    static uint64_t times(uint64_t a, uint64_t b) {
        unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
        return reduced(uint64_t(product & PRIME) + uint64_t(product >> 61));
    }
    uint64_t base_, leaving_ = 1, sum_ = 0;
};

// Both hashes of every window of `window` characters, as it moves over a text.
template <typename Window>
inline void each_window(const unsigned char* at, const unsigned char* end, size_t window, Window use) {
    Rolling first(BASES[0], window), second(BASES[1], window);
    const unsigned char* behind = at;
    for (size_t read = 1; at < end; ++read) {
        uint64_t in = text::next(at) + 1ull, out = read > window ? text::next(behind) + 1ull : 0;
        first.move(in, out);
        second.move(in, out);
        if (read >= window) use(read - window, first.hash(), second.hash());
    }
}

// Of each `window` windows of `window` characters in a row, the one of the least hash; the last of equal ones.
inline Anchors anchors(const unsigned char* at, const unsigned char* end, size_t window) {
    struct Seen { uint64_t hash; uint32_t check; size_t place; };
    Anchors found;
    std::deque<Seen> least;  // hashes ascend
    size_t last = SIZE_MAX;
    each_window(at, end, window, [&](size_t place, uint64_t hash, uint64_t check) {
        while (!least.empty() && least.back().hash >= hash) least.pop_back();
        least.push_back({hash, uint32_t(check), place});
        if (least.front().place + window <= place) least.pop_front();
        if (place + 1 < window || least.front().place == last) return;
        last = least.front().place;
        found.hashes.push_back(least.front().hash);
        found.checks.push_back(least.front().check);
        found.places.push_back(uint32_t(last));
    });
    return found;
}

}  // namespace winnow

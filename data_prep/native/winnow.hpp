// Windows of a text that stand for it in the search for repeated spans; data_prep/deduplication/spans.py explains the search.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "characters.hpp"

namespace winnow {

constexpr uint64_t BASES[2] = {0x9e3779b97f4a7c15ULL, 0xc2b2ae3d27d4eb4fULL};  // odd: no power of one is 0 modulo 2**64

struct Anchors {
    std::vector<uint64_t> hashes;
    std::vector<uint32_t> checks;  // of a second hash
    std::vector<uint32_t> places;  // the window's first character
};

// Polynomial of the last `window` characters, which moves on by one character at a time.
class Rolling {
public:
    Rolling(uint64_t base, size_t window) : base_(base) { while (window--) leaving_ *= base; }
    void move(uint64_t in, uint64_t out) { sum_ = sum_ * base_ + text::mix(in ^ base_) - (out ? text::mix(out ^ base_) * leaving_ : 0); }
    uint64_t hash() const { return text::mix(sum_); }

private:
    uint64_t base_, leaving_ = 1, sum_ = 0;
};

// Of each `window` windows of `window` characters in a row, the one of the least hash; the last of equal ones.
inline Anchors anchors(const unsigned char* at, const unsigned char* end, size_t window) {
    struct Seen { uint64_t hash; uint32_t check; size_t place; };
    Anchors found;
    Rolling first(BASES[0], window), second(BASES[1], window);
    std::deque<Seen> least;  // hashes ascend
    const unsigned char* behind = at;
    size_t last = SIZE_MAX;
    for (size_t read = 1; at < end; ++read) {
        uint64_t in = text::next(at) + 1ull, out = read > window ? text::next(behind) + 1ull : 0;
        first.move(in, out);
        second.move(in, out);
        if (read < window) continue;
        size_t place = read - window;
        while (!least.empty() && least.back().hash >= first.hash()) least.pop_back();
        least.push_back({first.hash(), uint32_t(second.hash()), place});
        if (least.front().place + window <= place) least.pop_front();
        if (place + 1 < window || least.front().place == last) continue;
        last = least.front().place;
        found.hashes.push_back(least.front().hash);
        found.checks.push_back(least.front().check);
        found.places.push_back(uint32_t(last));
    }
    return found;
}

}  // namespace winnow

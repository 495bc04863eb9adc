// Phrases looked for in a text all at once (Aho and Corasick 1975), case and invisible characters aside.
#pragma once

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "characters.hpp"

namespace phrases {

// Lower case of one character for one, so that positions stay those of the text.
inline uint32_t fold(uint32_t code) {
    if (code == 0x130) return 'i';      // I with a dot has two characters in lower case
    if (code == 0x3c2) return 0x3c3;    // sigma at the end of a word
    return text::lower(code);
}

inline bool is_joined(uint32_t left, uint32_t right) {
    auto joins = [](uint32_t code) {
        uint8_t kind = text::class_of(code);
        return (kind & text::WORD) && !text::stands_alone(code, kind);
    };
    return joins(left) && joins(right);
}

// A trie with links from each state to the longest other one that is a suffix of it.
class Phrases {
public:
    explicit Phrases(bool whole_words) : whole_words_(whole_words), states_(1), slots_(64), starts_(1 << 16) {}

    void add(const unsigned char* at, const unsigned char* end) {
        uint32_t state = 0, length = 0;
        while (at < end) {
            uint32_t code = text::next(at);
            if (text::is_invisible(code)) continue;
            code = fold(code);
            uint32_t following = step(state, code);
            if (!following) {
                following = uint32_t(states_.size());
                states_.push_back({state, code, 0, 0, 0});
                insert(state, code, following);
            }
            state = following;
            if (++length == 1) starts_[code & 0xffff] = true;
        }
        if (state) states_[state].length = length;
        longest_ = std::max<size_t>(longest_, length);
    }

    // Set the links, parents first: a parent's depth is smaller, its number need not be.
    void finish() {
        std::vector<std::vector<uint32_t>> children(states_.size());
        for (uint32_t state = 1; state < states_.size(); ++state) children[states_[state].parent].push_back(state);
        std::vector<uint32_t> queue = children[0];
        for (size_t i = 0; i < queue.size(); ++i) {
            State& state = states_[queue[i]];
            uint32_t suffix = state.parent;
            while (suffix) {
                suffix = states_[suffix].suffix;
                if (uint32_t longer = step(suffix, state.code)) { state.suffix = longer; break; }
            }
            state.shorter = states_[state.suffix].length ? state.suffix : states_[state.suffix].shorter;
            queue.insert(queue.end(), children[queue[i]].begin(), children[queue[i]].end());
        }
        for (uint32_t code = 0; code < 128; ++code) passed_[code] = !starts_[fold(code)] && !text::is_invisible(code);
        size_t size = 2;
        while (size < longest_ + 1) size *= 2;
        recent_.resize(size);
    }

    std::vector<std::pair<size_t, size_t>> find(const unsigned char* at, const unsigned char* end) {
        std::vector<std::pair<size_t, size_t>> matches;
        size_t mask = recent_.size() - 1;
        uint32_t state = 0, before = 0;  // before: the last visible character
        for (size_t place = 0, seen = 0; at < end; ++place) {
            if (!state) {
                for (; at < end && *at < 0x80 && passed_[*at]; ++at, ++place) before = *at;
                if (at == end) break;
            }
            uint32_t code = text::next(at), folded = fold(code);
            if (!state && !starts_[folded & 0xffff]) {
                if (whole_words_ && !text::is_invisible(code)) before = code;
                continue;
            }
            if (text::is_invisible(code)) continue;
            if (!state) recent_[seen++ & mask] = {place, before};
            recent_[seen++ & mask] = {place, before = code};
            uint32_t following = step(state, folded);
            while (!following && state) {
                state = states_[state].suffix;
                following = step(state, folded);
            }
            state = following;
            for (uint32_t s = states_[state].length ? state : states_[state].shorter; s; s = states_[s].shorter) {
                size_t first = seen - states_[s].length;
                if (whole_words_) {
                    bool left = is_joined(recent_[(first - 1) & mask].code, recent_[first & mask].code);
                    if (left || is_joined(code, text::next_visible(at, end))) continue;
                }
                matches.emplace_back(recent_[first & mask].place, place + 1);
            }
        }
        return matches;
    }

private:
    struct State {
        uint32_t parent = 0, code = 0;
        uint32_t suffix = 0;   // longest other state that ends like this one
        uint32_t shorter = 0;  // longest such state that is a phrase
        uint32_t length = 0;   // of the phrase that ends here; 0: none does
    };
    struct Slot { uint64_t key = 0; uint32_t state = 0; };  // state 0: empty
    struct Recent { size_t place; uint32_t code; };

    static uint64_t key_of(uint32_t state, uint32_t code) { return uint64_t(state) << 21 | code; }

    uint32_t step(uint32_t state, uint32_t code) const {
        uint64_t key = key_of(state, code), mask = slots_.size() - 1;
        for (uint64_t slot = text::mix(key) & mask; slots_[slot].state; slot = (slot + 1) & mask)
            if (slots_[slot].key == key) return slots_[slot].state;
        return 0;
    }

    void insert(uint32_t state, uint32_t code, uint32_t following) {
        if (states_.size() * 4 > slots_.size()) {
            std::vector<Slot> old(slots_.size() * 2);
            old.swap(slots_);
            for (const Slot& slot : old) if (slot.state) place(slot);
        }
        place({key_of(state, code), following});
    }

    void place(const Slot& added) {
        uint64_t mask = slots_.size() - 1, slot = text::mix(added.key) & mask;
        while (slots_[slot].state) slot = (slot + 1) & mask;
        slots_[slot] = added;
    }

    bool whole_words_;
    size_t longest_ = 0;
    std::vector<State> states_;  // 0 is the root
    std::vector<Slot> slots_;    // (state, code) -> state, open addressing
    std::vector<bool> starts_;   // whether a phrase may start with such a character, by its lowest 16 bits
    std::array<bool, 128> passed_{};  // ASCII characters with which no phrase starts
    std::vector<Recent> recent_;      // visible characters of the text, from the one before a phrase may have started
};

}  // namespace phrases

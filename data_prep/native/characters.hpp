// Code points of UTF-8 text and their classes. The table comes from data_prep/curation/characters.py, once per process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace text {

enum Class : uint8_t {
    LETTER = 1, NUMBER = 2, HAN = 4, SPACE = 8, PUNCTUATION = 16, MARK = 32, UPPER = 64, SYMBOL = 128
};
constexpr uint8_t WORD = LETTER | NUMBER | MARK;

struct Table {
    std::vector<uint8_t> classes;   // of every code point below classes.size(); those above have none
    std::vector<uint32_t> lower;    // simple lower case
};

inline Table& table() {
    static Table instance;
    return instance;
}

inline uint8_t class_of(uint32_t code) {
    const auto& classes = table().classes;
    return code < classes.size() ? classes[code] : 0;
}

inline uint32_t lower(uint32_t code) {
    const auto& lowered = table().lower;
    return code < lowered.size() ? lowered[code] : code;
}

// A character that renders as nothing and separates nothing: scans read a text as if it were not there. It has no class.
//   C0 and C1 controls but blanks and line ends; soft hyphen; combining grapheme joiner; Arabic letter mark; Mongolian
//   and other variation selectors; zero-width space, joiner and non-joiner; bidirectional controls; word joiner and
//   invisible operators; byte-order mark; tags; noncharacters (Unicode 23.7).
inline bool is_invisible(uint32_t code) {
    if (code < 0xa0) return code < 0x09 || (code > 0x0d && code < 0x1c) || (code > 0x7e && code != 0x85);
    if (code < 0x2000) return code == 0xad || code == 0x34f || code == 0x61c || (code >= 0x180b && code <= 0x180f);
    if (code < 0x2070)
        return (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) || code >= 0x2060;
    return (code >= 0xfdd0 && code <= 0xfdef) || (code >= 0xfe00 && code <= 0xfe0f) || code == 0xfeff ||
           (code >= 0xe0000 && code <= 0xe0fff) || (code & 0xfffe) == 0xfffe;
}

// Invisible characters that change their neighbours, so that text keeps them: joiners (Persian and Indic spelling,
// emoji), variation selectors, tags (flags).
inline bool changes_neighbours(uint32_t code) {
    return code == 0x200c || code == 0x200d || code == 0x34f || (code >= 0x180b && code <= 0x180f) ||
           (code >= 0xfe00 && code <= 0xfe0f) || (code >= 0xe0020 && code <= 0xe007f) ||
           (code >= 0xe0100 && code <= 0xe01ef);
}

// Where Python's str.splitlines ends a line: line feed, vertical tab, form feed, carriage return; file, group and record
// separator; next line; line and paragraph separator.
inline bool ends_line(uint32_t code) {
    return (code >= 0x0a && code <= 0x0d) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
           code == 0x2029;
}

// Kana, like Han characters, are words of their own: their scripts put no blanks between words.
inline bool stands_alone(uint32_t code, uint8_t kind) {
    return (kind & HAN) || ((kind & LETTER) && code >= 0x3040 && code <= 0x30ff);
}

// The code point that starts at `at`, which moves behind it. CPython gives valid UTF-8.
inline uint32_t next(const unsigned char*& at) {
    uint32_t first = *at++;
    if (first < 0x80) return first;
    if (first < 0xe0) return (first & 0x1f) << 6 | (*at++ & 0x3f);
    if (first < 0xf0) {
        uint32_t code = (first & 0x0f) << 12 | (at[0] & 0x3fu) << 6 | (at[1] & 0x3fu);
        at += 2;
        return code;
    }
    uint32_t code = (first & 0x07) << 18 | (at[0] & 0x3fu) << 12 | (at[1] & 0x3fu) << 6 | (at[2] & 0x3fu);
    at += 3;
    return code;
}

// The first code point from `at` on that is visible; 0 at the end.
inline uint32_t next_visible(const unsigned char* at, const unsigned char* end) {
    while (at < end) {
        uint32_t code = next(at);
        if (!is_invisible(code)) return code;
    }
    return 0;
}

// The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit.
inline uint64_t mix(uint64_t value) {
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdULL;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53ULL;
    return value ^ value >> 33;
}

constexpr uint64_t TOKEN_START = 0x9e3779b97f4a7c15ULL;
constexpr uint64_t TOKEN_STEP = 0x100000001b3ULL;  // FNV-1a's prime

// Hash of a word, fed one lower-case code point at a time and finished by `mix`.
inline uint64_t feed(uint64_t hash, uint32_t code) { return (hash ^ code) * TOKEN_STEP; }

// Call `word(start, stop, hash, first_code)` for each word: a Han character or kana, or a run of letters,
// digits and marks, invisible characters aside. `start` and `stop` count code points. `join_apostrophes` keeps don't
// whole. Returns the number of code points.
template <typename Word>
inline size_t each_word(const unsigned char* at, const unsigned char* end, bool join_apostrophes, Word word) {
    size_t place = 0, start = 0, stop = 0;
    uint64_t hash = 0;
    uint32_t first = 0;
    bool inside = false;
    for (; at < end; ++place) {
        uint32_t code = next(at);
        uint8_t kind = class_of(code);
        bool alone = stands_alone(code, kind);
        if ((kind & WORD) && !alone) {
            if (!inside) { inside = true; start = place; hash = TOKEN_START; first = code; }
            hash = feed(hash, lower(code));
            stop = place + 1;
            continue;
        }
        if (!kind && is_invisible(code)) continue;
        if (inside && join_apostrophes && (code == '\'' || code == 0x2019)) {
            uint32_t following = next_visible(at, end);
            uint8_t ahead_kind = class_of(following);
            if ((ahead_kind & WORD) && !stands_alone(following, ahead_kind)) { hash = feed(hash, '\''); continue; }
        }
        if (inside) { word(start, stop, mix(hash), first); inside = false; }
        if (alone) word(place, place + 1, mix(feed(TOKEN_START, code)), code);
    }
    if (inside) word(start, stop, mix(hash), first);
    return place;
}

}  // namespace text

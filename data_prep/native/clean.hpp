// Text as later stages see it: one kind of line end, no control characters, no blanks at line ends.
#pragma once

#include <string>

#include "characters.hpp"

namespace clean {

// C0 and C1 controls but tab and newline; byte-order marks and zero-width blanks, which split words unseen.
inline bool is_invisible(uint32_t code) {
    return (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7f && code < 0xa0) || code == 0xfeff ||
           code == 0x200b || code == 0x2060;
}

inline std::string normalize_layout(const unsigned char* at, const unsigned char* end) {
    std::string out, blanks;  // blanks: those behind the last character that is not, within its line
    out.reserve(size_t(end - at));
    size_t newlines = 0;
    while (at < end) {
        const unsigned char* start = at;
        uint32_t code = text::next(at);
        if (code == '\r') {
            if (at < end && *at == '\n') continue;
            code = '\n';
        }
        if (code == '\n') {
            blanks.clear();
            ++newlines;
        } else if (is_invisible(code)) {
            continue;
        } else if (text::class_of(code) & text::SPACE) {
            blanks.append(reinterpret_cast<const char*>(start), size_t(at - start));
        } else {
            if (!out.empty()) out.append(newlines < 3 ? newlines : 2, '\n');
            newlines = 0;
            out += blanks;
            blanks.clear();
            out.append(reinterpret_cast<const char*>(start), size_t(at - start));
        }
    }
    return out;
}

// The text without its lines of fewer words than `least_words`, or with a word longer than `longest_word`
// characters; empty lines stay. `dropped` counts the lines that went.
inline std::string keep_lines(const unsigned char* at, const unsigned char* end, size_t least_words,
                              size_t longest_word, size_t& dropped) {
    std::string out;
    dropped = 0;
    while (at < end) {
        const unsigned char* stop = at;
        while (stop < end && *stop != '\n') ++stop;
        size_t words = 0, longest = 0;
        text::each_word(at, stop, true, [&](size_t start, size_t behind, uint64_t, uint32_t) {
            ++words;
            longest = std::max(longest, behind - start);
        });
        bool empty = at == stop;
        if (empty || (words >= least_words && longest <= longest_word)) {
            out.append(reinterpret_cast<const char*>(at), size_t(stop - at));
            if (stop < end) out.push_back('\n');
        } else {
            ++dropped;
        }
        at = stop < end ? stop + 1 : stop;
    }
    return out;
}

// How often two code points stand together that UTF-8 read as Latin-1 or Windows-1252 gives (Ã©, â€™, ä¸­).
inline size_t mojibake_pairs(const unsigned char* at, const unsigned char* end) {
    size_t pairs = 0;
    uint32_t before = 0;
    for (; at < end; ) {
        uint32_t code = text::next(at);
        bool continuation = (code >= 0x80 && code < 0xc0) || (code >= 0x2010 && code <= 0x203a) || code == 0x20ac ||
                            code == 0x2122 || code == 0x0152 || code == 0x0153 || code == 0x02c6 || code == 0x02dc;
        pairs += before >= 0xc2 && before <= 0xf4 && continuation;
        before = code;
    }
    return pairs;
}

}  // namespace clean

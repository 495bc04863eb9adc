// Text as later stages see it, and what tells that it was decoded wrongly.
#pragma once

#include <string>

#include "characters.hpp"

namespace clean {

// One kind of line end, at most one empty line in a row, no blanks at line ends, no invisible characters but those that
// change their neighbours. A separator becomes a line end or a blank, so that no two words are joined.
inline std::string normalize_layout(const unsigned char* at, const unsigned char* end) {
    std::string out, blanks;  // blanks: those behind the last character that is not, within its line
    out.reserve(size_t(end - at));
    size_t newlines = 0;
    auto add = [&](std::string& target, const unsigned char* from, const unsigned char* to) {
        target.append(reinterpret_cast<const char*>(from), size_t(to - from));
    };
    while (at < end) {
        const unsigned char* start = at;
        uint32_t code = text::next(at);
        if (text::ends_line(code)) {
            if (code == '\r' && at < end && *at == '\n') ++at;
            blanks.clear();
            ++newlines;
        } else if (code == 0x1f) {  // unit separator
            blanks.push_back(' ');
        } else if (text::class_of(code) & text::SPACE) {
            add(blanks, start, at);
        } else if (!text::is_invisible(code) || text::changes_neighbours(code)) {
            while (at < end && *at > ' ' && *at < 0x7f) ++at;
            if (!out.empty()) out.append(newlines < 3 ? newlines : 2, '\n');
            newlines = 0;
            out += blanks;
            blanks.clear();
            add(out, start, at);
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

// How often two code points stand together that UTF-8 read as Latin-1 or Windows-1252 gives (Ã©, â€™, ä¸­), and how many
// C1 controls there are that quotation marks, bullets and dashes of Windows-1252 read as Latin-1 are.
inline size_t mojibake_pairs(const unsigned char* at, const unsigned char* end) {
    size_t pairs = 0;
    uint32_t before = 0;
    for (; at < end; ) {
        uint32_t code = text::next(at);
        bool continuation = (code >= 0x80 && code < 0xc0) || (code >= 0x2010 && code <= 0x203a) || code == 0x20ac ||
                            code == 0x2122 || code == 0x0152 || code == 0x0153 || code == 0x02c6 || code == 0x02dc;
        pairs += (before >= 0xc2 && before <= 0xf4 && continuation) || (code >= 0x91 && code <= 0x97);
        before = code;
    }
    return pairs;
}

// The text without what follows the first `most` (one or more) of a row of code points of a set, which are U+0300 or
// above; empty where nothing goes.
class Rows {
public:
    Rows(const std::vector<uint32_t>& codes, size_t most) : most_(most) {
        for (uint32_t code : codes) {
            if (code >= has_.size()) has_.resize(code + 1);
            has_[code] = true;
        }
    }

    std::string cut(const unsigned char* at, const unsigned char* end) const {
        std::string out;
        if (!can_have_one(at, end)) return out;
        const unsigned char* copied = at;
        size_t row = 0;
        while (at < end) {
            if (*at < 0xcc) {  // the first byte of U+0300
                row = 0;
                at += *at < 0x80 ? 1 : 2;
                continue;
            }
            const unsigned char* start = at;
            uint32_t code = text::next(at);
            row = code < has_.size() && has_[code] ? row + 1 : 0;
            if (row > most_) {
                out.append(reinterpret_cast<const char*>(copied), size_t(start - copied));
                copied = at;
            }
        }
        if (!out.empty()) out.append(reinterpret_cast<const char*>(copied), size_t(end - copied));
        return out;
    }

private:
    // A row that is too long has at least so many bytes, so it has one of every so many.
    bool can_have_one(const unsigned char* begin, const unsigned char* end) const {
        size_t step = 2 * (most_ + 1), size = size_t(end - begin);
        for (size_t place = step - 1; place < size; place += step) {
            const unsigned char* at = begin + place;
            while ((*at & 0xc0) == 0x80) --at;
            if (*at < 0xcc) continue;
            uint32_t code = text::next(at);
            if (code < has_.size() && has_[code]) return true;
        }
        return false;
    }

    std::vector<uint8_t> has_;
    size_t most_;
};

}  // namespace clean

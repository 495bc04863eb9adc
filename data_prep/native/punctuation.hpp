// English marks that were typed for Chinese and Japanese ones, as the full-width marks that they stand for.
#pragma once

#include "layout.hpp"

namespace punctuation {

using text::class_of;

inline bool is_wide(uint32_t code) { return text::stands_alone(code, class_of(code)); }  // Han characters and kana
inline bool is_before_mark(uint32_t code) { return is_wide(code) || layout::one_of(code, U"”’》」』）？！"); }
inline bool is_after_mark(uint32_t code) { return is_wide(code) || layout::one_of(code, U"“‘《「『（"); }

// The full-width mark that a character stands for by its neighbours in the line (0: none), 0 if it stands for none.
// `numbered`: all before it in the line are Chinese numerals, as in the heading 一.
inline uint32_t full_width(uint32_t before, uint32_t code, uint32_t after, bool numbered) {
    bool inside = is_before_mark(before);
    // between Latin letters or digits and Han characters or kana: 98%,优于
    bool joins = is_after_mark(after) && (layout::is_name(before) || layout::one_of(before, U"%)\"]"));
    switch (code) {
        case ',': return inside || joins ? 0xff0c : 0;
        case ';': return inside || joins ? 0xff1b : 0;
        case '?': return inside || joins ? 0xff1f : 0;
        case '!': return inside || joins ? 0xff01 : 0;
        case ':': return inside ? 0xff1a : 0;
        case '.': {
            bool ends = layout::is_blank(after) || is_after_mark(after) || layout::one_of(after, U"”’」』）)\"");
            bool after_number = layout::one_of(before, U"%)") && is_after_mark(after);
            return (inside && ends && !numbered) || after_number ? 0x3002 : 0;
        }
        default: return 0;
    }
}

inline void append(std::string& out, uint32_t code) {  // of three bytes
    out.push_back(char(0xe0 | code >> 12));
    out.push_back(char(0x80 | (code >> 6 & 0x3f)));
    out.push_back(char(0x80 | (code & 0x3f)));
}

// The text with the marks of its prose widened; one blank behind a widened mark goes. `widened` counts them.
class Widener {
public:
    std::string widen(const unsigned char* at, const unsigned char* end, size_t& widened) {
        out_.clear();
        copied_ = at;
        widened_ = widened = 0;
        if (!can_have_one(at, end)) return out_;
        for (const layout::Line& line : layout_.scan(at, end))
            if (line.kind == layout::PROSE) widen(line);
        out_.append(reinterpret_cast<const char*>(copied_), size_t(end - copied_));
        widened = widened_;
        return out_;
    }

private:
    // Whether a mark stands right behind or before a character that is not ASCII.
    static bool can_have_one(const unsigned char* at, const unsigned char* end) {
        for (const unsigned char* place = at; place < end; ++place) {
            if (*place >= 0x80 || !layout::one_of(*place, U",.;:?!")) continue;
            if ((place > at && place[-1] >= 0x80) || (place + 1 < end && place[1] >= 0x80)) return true;
        }
        return false;
    }

    void widen(const layout::Line& line) {
        uint32_t before = 0, code = 0;
        const unsigned char *start = line.begin, *stop = line.begin;
        bool numbered = true;
        auto take = [&](uint32_t after, const unsigned char* after_stop) {
            numbered &= before == 0 || layout::one_of(before, U"一二三四五六七八九十");
            uint32_t wide = code < 0x80 ? full_width(before, code, after, numbered) : 0;
            if (wide) {
                out_.append(reinterpret_cast<const char*>(copied_), size_t(start - copied_));
                append(out_, wide);
                copied_ = after == ' ' ? after_stop : stop;
                ++widened_;
                code = wide;
            }
            before = code;
        };
        layout::each_character(line.begin, line.end,
                               [&](uint32_t following, const unsigned char* from, const unsigned char* to) {
            if (code) take(following ? following : '`', to);
            code = following ? following : '`';
            start = from;
            stop = to;
        });
        if (code) take(0, line.end);
    }

    layout::Layout layout_;
    std::string out_;
    const unsigned char* copied_ = nullptr;
    size_t widened_ = 0;
};

}  // namespace punctuation

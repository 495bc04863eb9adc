// Where the sentences of a text start, in any language that marks their ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "characters.hpp"

namespace sentences {

// Marks that end a sentence whatever follows: 。！？；｡, Arabic ؟ and ۔, danda.
inline bool always_ends(uint32_t code) {
    return code == 0x3002 || code == 0xff01 || code == 0xff1f || code == 0xff1b || code == 0xff61 || code == 0x061f ||
           code == 0x06d4 || code == 0x0964 || code == 0x0965;
}

// Marks that also stand elsewhere: in numbers, abbreviations and addresses.
inline bool may_end(uint32_t code) { return code == '.' || code == '!' || code == '?' || code == 0x2026; }

// Quotation marks and brackets behind the end of a sentence belong to it.
inline bool closes(uint32_t code) {
    switch (code) {
        case '"': case '\'': case ')': case ']': case 0x201d: case 0x2019: case 0x300d: case 0x300f: case 0xff09: case 0x3011:
        case 0x300b: case 0xbb: return true;
        default: return false;
    }
}

// A small letter of a script that has capitals (Latin, Greek, Cyrillic, Armenian): a sentence does not start with it.
inline bool is_small(uint32_t code, uint8_t kind) {
    return (kind & text::LETTER) && !(kind & text::UPPER) && (code < 0x590 || (code >= 0x1e00 && code < 0x2000));
}

// A stop behind "Dr", "J" or "3" is no end.
class Word {
   public:
    void add(uint32_t code, uint8_t kind) {
        if (!(kind & text::WORD) || text::stands_alone(code, kind)) { length_ = 0; return; }
        if (!length_++) short_form_ = kind & (text::UPPER | text::NUMBER);
    }
    void end() { length_ = 0; }
    bool is_short_form() const { return length_ && length_ <= 3 && short_form_; }

   private:
    size_t length_ = 0;
    bool short_form_ = false;
};

// The first visible character of each sentence, counted in characters. A sentence ends at a line end, at 。！？； and the
// like, and at . ! ? … before a blank and something else than a small letter, or before a Chinese or Japanese character.
inline std::vector<uint32_t> starts(const unsigned char* at, const unsigned char* end) {
    enum { NONE, PERHAPS, SURE } border = SURE;
    std::vector<uint32_t> found;
    Word word;
    bool in_marks = false, blank = false;  // since the border: only marks, some blank
    for (uint32_t place = 0; at < end; ++place) {
        uint32_t code = text::next(at);
        uint8_t kind = text::class_of(code);
        if (text::is_invisible(code)) continue;
        if (text::ends_line(code) || (kind & text::SPACE)) {
            if (text::ends_line(code)) border = SURE;
            in_marks = false, blank = true;
            word.end();
            continue;
        }
        if (in_marks && (always_ends(code) || may_end(code) || closes(code))) {
            if (always_ends(code)) border = SURE;
            continue;
        }
        bool opens = blank ? !is_small(code, kind) : text::stands_alone(code, kind);
        if (border == SURE || (border == PERHAPS && opens)) found.push_back(place);
        border = always_ends(code) ? SURE : may_end(code) && !(code == '.' && word.is_short_form()) ? PERHAPS : NONE;
        in_marks = border != NONE;
        blank = false;
        word.add(code, kind);
    }
    return found;
}

}  // namespace sentences

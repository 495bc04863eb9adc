// Passages of a text by script: Chinese and Japanese by their characters, the others in phrases of several words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "characters.hpp"

namespace passages {

// One passage: characters of Chinese and Japanese, or a phrase of other words.
struct Passage {
    bool east_asian;
    size_t line, sentence, start, stop, letters;  // start and stop in characters
};

struct Scan {
    std::vector<Passage> found;
    size_t sentences = 0;           // that hold a passage
    size_t lines = 0, rows = 0;     // lines with letters; those that begin with a few words of one script, then have the other
};

struct Limits {
    size_t words;          // fewest of a phrase
    double letter_share;   // smallest of its visible characters
    size_t term_words, term_characters;  // most of a term at the start of a row
};

inline bool is_mark_of_code(uint32_t code) {
    switch (code) {
        case '_': case '/': case '\\': case '@': case '=': case '<': case '>': case '{': case '}': case '[': case ']':
        case '$': case '#': case '*': case '~': case '^': return true;
        default: return false;
    }
}

inline bool ends_sentence(uint32_t code) {
    return code == 0x3002 || code == 0xff01 || code == 0xff1f || code == '|' || code == 0xff5c;
}

inline bool closes(uint32_t code) {  // what may stand behind the end of a sentence
    return code == '"' || code == '\'' || code == ')' || code == ']' || code == 0x201d || code == 0x2019 || code == 0x300d ||
           code == 0x300f || code == 0xff09;
}

class Scanner {
   public:
    Scanner(const unsigned char* at, const unsigned char* end, Limits limits) : limits_(limits) {
        while (at < end) codes_.push_back(text::next(at));
    }

    Scan scan() {
        size_t start = 0;
        while (start < codes_.size()) {
            size_t stop = start;
            while (stop < codes_.size() && codes_[stop] != '\n') ++stop;
            if (!is_code(start, stop)) line(start, stop);
            ++line_;
            start = stop + 1;
        }
        return scan_;
    }

   private:
    static bool is_east_asian(uint32_t code) { return code >= 0x3040 && text::stands_alone(code, text::class_of(code)); }
    static bool is_letter(uint32_t code) { return text::class_of(code) & text::LETTER; }
    static bool is_space(uint32_t code) { return text::class_of(code) & text::SPACE; }
    bool is_at(size_t at, size_t stop, const char* word) const {
        for (; *word; ++word, ++at) if (at >= stop || codes_[at] != uint32_t(*word)) return false;
        return true;
    }

    // Whether a line is code by its fence, its margin or the mark of a comment or prompt.
    bool is_code(size_t start, size_t stop) {
        size_t first = start;
        while (first < stop && is_space(codes_[first])) ++first;
        if (is_at(first, stop, "```") || is_at(first, stop, "~~~")) {
            if (!fence_ || fence_ == codes_[first]) fence_ = fence_ ? 0 : codes_[first];
            return true;
        }
        if (fence_) return true;
        bool margin = is_at(start, stop, "    ") || is_at(start, stop, "\t");
        bool mark = is_at(first, stop, "#") || is_at(first, stop, "//") || is_at(first, stop, ">>>") ||
                    is_at(first, stop, "$ ") || is_at(first, stop, "/*");
        if (!margin && !mark) return false;
        for (size_t at = first; at < stop; ++at) if (is_east_asian(codes_[at])) return false;
        return true;
    }

    // Where a code span in backticks or a tag that starts here ends; `at` where none does.
    size_t behind_span(size_t at, size_t stop) const {
        uint32_t close = codes_[at] == '`' ? '`' : codes_[at] == '<' ? '>' : 0;
        if (!close) return at;
        for (size_t ahead = at + 1; ahead < stop && (close == '`' || ahead <= at + 200); ++ahead) {
            if (codes_[ahead] == close) return ahead + 1;
            if (close == '>' && codes_[ahead] == '<') break;
        }
        return at;
    }

    void line(size_t start, size_t stop) {
        own_ = 0;
        phrase_ = {};
        in_sentence_ = false;
        first_ = {}, second_ = {};
        for (size_t at = start; at < stop;) {
            size_t behind = behind_span(at, stop);
            if (behind > at) {
                at = behind;
            } else if (is_east_asian(codes_[at])) {
                at = east_asian(at, stop);
            } else if (is_space(codes_[at])) {
                if (codes_[at] == '\t') end_sentence();
                ++at;
            } else {
                at = token(at, stop);
            }
        }
        end_sentence();
        count_line();
    }

    size_t east_asian(size_t at, size_t stop) {
        close_phrase();
        size_t start = at;
        while (at < stop && is_east_asian(codes_[at])) ++at;
        if (!own_) own_start_ = start;
        own_ += at - start;
        own_stop_ = at;
        count(true, at - start);
        return at;
    }

    // Characters up to a blank, an East Asian character or code: a word, or part of a name in code.
    size_t token(size_t at, size_t stop) {
        size_t start = at, letters = 0;
        bool code = false, ends = false, number = false;
        for (; at < stop && !is_space(codes_[at]) && !is_east_asian(codes_[at]) && (at == start || behind_span(at, stop) == at); ++at) {
            uint32_t c = codes_[at], before = at > start ? codes_[at - 1] : 0, after = at + 1 < stop ? codes_[at + 1] : 0;
            letters += is_letter(c);
            number |= (text::class_of(c) & text::NUMBER) != 0;
            bool camel = c >= 'A' && c <= 'Z' && before >= 'a' && before <= 'z';
            bool joined = (c == '.' || c == ':' || c == '(') && is_letter(before) && (is_letter(after) || after == ')');
            code |= is_mark_of_code(c) || camel || joined;
            if (ends_sentence(c)) ends = true;
        }
        size_t last = at;
        while (last > start && closes(codes_[last - 1])) --last;
        if (last > start) ends |= codes_[last - 1] == '.' || codes_[last - 1] == '!' || codes_[last - 1] == '?';
        bool word = letters && !code && !number;
        if (word && !phrase_.words) phrase_.start = start;
        if (word) phrase_.stop = at;
        phrase_.words += word;
        phrase_.letters += word ? letters : 0;
        phrase_.visible += at - start;
        if (letters) count(false, 1);
        if (ends) end_sentence();
        return at;
    }

    void close_phrase() {
        if (phrase_.words >= limits_.words && double(phrase_.letters) >= limits_.letter_share * double(phrase_.visible)) {
            emit_own();
            open_sentence();
            scan_.found.push_back({false, line_, scan_.sentences, phrase_.start, phrase_.stop, phrase_.letters});
        }
        phrase_ = {};
    }

    void emit_own() {
        if (!own_) return;
        open_sentence();
        scan_.found.push_back({true, line_, scan_.sentences, own_start_, own_stop_, own_});
        own_ = 0;
    }

    void open_sentence() {
        if (!in_sentence_) ++scan_.sentences;
        in_sentence_ = true;
    }

    void end_sentence() {
        close_phrase();
        emit_own();
        in_sentence_ = false;
    }

    // The first two stretches of the line: its letters of one script, then those of the other.
    void count(bool east_asian, size_t size) {
        if (!first_.size || (first_.east_asian == east_asian && !second_.size)) {
            first_.east_asian = east_asian;
            first_.size += size;
        } else {
            second_.size += size;
        }
    }

    bool is_short(bool east_asian, size_t size) const {
        return size && size <= (east_asian ? limits_.term_characters : limits_.term_words);
    }

    void count_line() {
        if (!first_.size) return;
        ++scan_.lines;
        bool brief = is_short(first_.east_asian, first_.size), whole = !second_.size;
        if (brief && !whole) {
            ++scan_.rows;
            waiting_ = {};
        } else if (whole && waiting_.size && waiting_.east_asian != first_.east_asian) {
            scan_.rows += 2;
            waiting_ = {};
        } else {
            waiting_ = whole && brief ? first_ : Stretch{};
        }
    }

    struct Phrase { size_t words = 0, letters = 0, visible = 0, start = 0, stop = 0; };
    struct Stretch { bool east_asian = false; size_t size = 0; };

    Limits limits_;
    std::vector<uint32_t> codes_;
    Scan scan_;
    uint32_t fence_ = 0;  // that is open, by its character
    size_t line_ = 0, own_ = 0, own_start_ = 0, own_stop_ = 0;
    Phrase phrase_;
    bool in_sentence_ = false;
    Stretch first_, second_, waiting_;  // of the line; the line before, while it may be a term
};

}  // namespace passages

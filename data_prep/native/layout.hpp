// How a text is laid out: which of its lines are prose, code or a table; its prose alone; and what tells verse and
// dialogue from other prose.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "characters.hpp"

namespace layout {

using text::class_of;
using text::next;

enum Kind : uint8_t { BLANK, PROSE, CODE, TABLE };

struct Line {
    const unsigned char *begin, *end;
    Kind kind;
    uint32_t first;        // character that is not blank, 0 if none
    size_t words, signs;   // signs: of code
    size_t visible;        // characters that are not blank, with those of addresses
};

constexpr size_t WORDS_PER_SIGN = 3;  // a line with no more words for each sign is code
constexpr size_t WORDS_PER_CELL = 6;  // a row with as many is sentences side by side
constexpr size_t MAX_HAN = 20;        // a line of code has no more: it quotes some, or explains itself in a few
constexpr size_t FEW_WORDS = 4;       // so few between lines of code are code: `else:`, `return x`

inline bool one_of(uint32_t code, const char32_t* set) {
    for (; *set; ++set) if (uint32_t(*set) == code) return true;
    return false;
}
inline bool is_letter(uint32_t code) { return (code | 32) >= 'a' && (code | 32) <= 'z'; }
inline bool is_digit(uint32_t code) { return code >= '0' && code <= '9'; }
inline bool is_name(uint32_t code) { return is_letter(code) || is_digit(code) || code == '_'; }
inline bool is_blank(uint32_t code) { return code == 0 || (class_of(code) & text::SPACE); }

// Whether a character is a sign of code, by its neighbours in the line (0: none).
inline bool is_sign(uint32_t before, uint32_t code, uint32_t after) {
    switch (code) {
        case '{': case '}': case '=': case '\\': return true;
        case '(': case '[': return is_name(before) || before == ')' || before == ']';
        case '_': return is_name(before) && is_name(after);
        case ':': return (after == ':' || after == '=') && before != ':';
        case '>': return one_of(before, U"-=/>");
        case '<': return is_letter(after) || one_of(after, U"/!<");
        case '$': return before == 0 || is_letter(after) || after == '{' || after == '(';
        case '&': case '|': return after == code;
        case '.': return before >= 'a' && before <= 'z' && is_letter(after);
        case '/': return before == '/' || before == '*' || after == '*';
        case '-': return is_blank(before) && (after == '-' || is_letter(after));
        case '#': case '@': return before == 0 && is_letter(after);
        case ';': return after == 0 && (is_name(before) || one_of(before, U")]}\"'"));
        default: return false;
    }
}

// Behind the web address that starts at `at`, `at` itself if none does. Chinese follows an address without a blank.
inline const unsigned char* behind_address(const unsigned char* at, const unsigned char* end) {
    for (const char* start : {"http://", "https://", "www."}) {
        const unsigned char* place = at;
        const char* expected = start;
        while (*expected && place < end && *place == uint8_t(*expected)) { ++expected; ++place; }
        if (*expected) continue;
        while (place < end && *place > ' ' && *place < 0x7f) ++place;
        return place;
    }
    return at;
}

// Behind the `code` in backquotes that starts at `at`, `at` itself if none does.
inline const unsigned char* behind_quoted_code(const unsigned char* at, const unsigned char* end) {
    const unsigned char* open = at;
    while (open < end && *open == '`') ++open;
    for (const unsigned char* place = open; place < end;) {
        while (place < end && *place != '`') ++place;
        const unsigned char* close = place;
        while (close < end && *close == '`') ++close;
        if (close > place && close - place == open - at) return close;
        place = close;
    }
    return at;
}

// Call `character(code, start, stop)` for each visible character of a line; an address or code in backquotes is one
// with code 0.
template <typename Character>
inline void each_character(const unsigned char* at, const unsigned char* end, Character character) {
    uint32_t before = 0;
    while (at < end) {
        const unsigned char* start = at;
        if (*at == '`' && before != '`') at = behind_quoted_code(at, end);
        else if ((*at == 'h' || *at == 'w') && !is_name(before)) at = behind_address(at, end);
        bool skipped = at > start;
        uint32_t code = skipped ? 0 : next(at);
        if (!skipped && text::is_invisible(code)) continue;
        character(code, start, at);
        before = code;
    }
}

inline bool is_table_row(const Line& line, size_t pipes, size_t tabs) {
    bool row = (line.first == '|' && pipes >= 2) || pipes >= 3 || tabs >= 2;
    return row && line.words < WORDS_PER_CELL * std::max(pipes, tabs + 1);
}

inline size_t visible(const unsigned char* at, const unsigned char* end) {
    size_t count = 0;
    while (at < end) {
        uint32_t code = next(at);
        count += !is_blank(code) && !text::is_invisible(code);
    }
    return count;
}

// The line from `begin` to `end` by itself.
inline Line measured(const unsigned char* begin, const unsigned char* end) {
    Line line{begin, end, BLANK, 0, 0, 0, 0};
    size_t pipes = 0, tabs = 0, han = 0;
    uint32_t before = 0, code = 0;
    bool inside = false, skipped = false;
    auto take = [&](uint32_t after) {
        if (line.first == 0 && is_blank(code)) return;
        if (line.first == 0) line.first = code;
        uint8_t kind = class_of(code);
        bool alone = text::stands_alone(code, kind), word = (kind & text::WORD) && !alone;
        line.words += alone || (word && !inside);
        line.signs += is_sign(before, code, after);
        han += alone;
        pipes += code == '|';
        tabs += code == '\t';
        inside = word;
        before = code;
    };
    each_character(begin, end, [&](uint32_t following, const unsigned char* start, const unsigned char* stop) {
        skipped |= following == 0;
        line.visible += following ? !is_blank(following) : visible(start, stop);
        take(following ? following : ' ');
        code = following ? following : ' ';
    });
    take(0);
    if (line.first == 0) line.kind = skipped ? CODE : BLANK;
    else if (is_table_row(line, pipes, tabs)) line.kind = TABLE;
    else line.kind = line.words && han <= MAX_HAN && WORDS_PER_SIGN * line.signs >= line.words ? CODE : PROSE;
    return line;
}

// The lines of a text with their kinds, in time linear in its length.
class Layout {
public:
    const std::vector<Line>& scan(const unsigned char* at, const unsigned char* end) {
        lines_.clear();
        while (at < end) {
            const unsigned char* stop = at;
            while (stop < end && *stop != '\n') ++stop;
            lines_.push_back(measured(at, stop));
            at = stop < end ? stop + 1 : stop;
        }
        between();
        fenced();
        return lines_;
    }

private:
    // What stands between lines of code and says little, or has no words and follows one, is code.
    void between() {
        for (size_t i = 1; i < lines_.size(); ++i) {
            Line& line = lines_[i];
            if (line.kind != PROSE || lines_[i - 1].kind != CODE) continue;
            bool inside = i + 1 < lines_.size() && lines_[i + 1].kind == CODE;
            if (!line.words || (inside && (line.words <= FEW_WORDS || line.signs))) line.kind = CODE;
        }
    }

    // Between two lines of ``` or ~~~, the second with nothing else, all is code.
    void fenced() {
        bool closes[2] = {true, true};
        for (size_t i = 0; i < lines_.size(); ++i) {
            int mark = fence(lines_[i], false);
            if (mark < 0 || !closes[mark]) continue;
            size_t close = i + 1;
            while (close < lines_.size() && fence(lines_[close], true) != mark) ++close;
            closes[mark] = close < lines_.size();
            if (!closes[mark]) continue;
            for (; i < close; ++i) lines_[i].kind = CODE;
            lines_[close].kind = CODE;
        }
    }

    // 0 or 1 for the mark of a fence that the line is, -1 for none.
    static int fence(const Line& line, bool alone) {
        const unsigned char* at = line.begin;
        while (at < line.end && (*at == ' ' || *at == '\t')) ++at;
        if (line.end - at < 3 || (*at != '`' && *at != '~') || at[1] != *at || at[2] != *at) return -1;
        const unsigned char mark = *at;
        while (at < line.end && *at == mark) ++at;
        bool clean = std::none_of(at, line.end, [&](unsigned char c) { return alone ? c > ' ' : c == mark; });
        return clean ? mark == '~' : -1;
    }

    std::vector<Line> lines_;
};

// The lines of prose without addresses and code in backquotes; where code or a table stood, an empty line.
inline std::string prose(const std::vector<Line>& lines) {
    std::string out;
    bool empty = true;  // the line before
    for (const Line& line : lines) {
        if (line.kind != PROSE) {
            if (!empty || line.kind == BLANK) out.push_back('\n');
            empty = true;
            continue;
        }
        const unsigned char* copied = line.begin;
        each_character(line.begin, line.end, [&](uint32_t code, const unsigned char* start, const unsigned char* stop) {
            if (code) return;
            out.append(reinterpret_cast<const char*>(copied), size_t(start - copied)).push_back(' ');
            copied = stop;
        });
        out.append(reinterpret_cast<const char*>(copied), size_t(line.end - copied)).push_back('\n');
        empty = false;
    }
    while (!out.empty() && out.back() == '\n') out.pop_back();
    return out;
}

constexpr size_t NAME = 12;  // characters of a speaker or a term before a colon, at most

inline uint32_t last_character(const unsigned char* begin, const unsigned char* end) {
    while (end > begin) {
        const unsigned char* at = end - 1;
        while (at > begin && (*at & 0xc0) == 0x80) --at;
        const unsigned char* start = at;
        uint32_t code = next(at);
        if (!is_blank(code) && !text::is_invisible(code)) return code;
        end = start;
    }
    return 0;
}

// What tells one kind of text from another.
struct Shape {
    size_t visible = 0;    // characters that are not blank
    size_t code = 0;       // of these in lines of code
    size_t lines = 0;      // of prose
    size_t spoken = 0;     // of these begin with a quotation mark
    size_t named = 0;      // begin with a name or a term and a colon, and end as a sentence does
    size_t items = 0;      // begin with a bullet or a number
    size_t verses = 0;     // are short, of letters and marks alone
    size_t ended = 0;      // verses that end with a mark
    size_t even = 0;       // verses of five characters or more that are as long as the verse before
};

constexpr size_t VERSE_WIDTH = 60;  // a Chinese character has 2: six feet of English, 30 characters of Chinese

inline bool is_prose_mark(uint32_t code) {
    return one_of(code, U",.;:!?'\"()-，。；：！？、…—–“”‘’「」『』《》（）·～");
}

// Adds what a line of prose tells; `before` is the length of the verse before it. Of a line too long for verse, only
// its beginning and its end are read.
inline void add_prose(Shape& shape, const Line& line, size_t& before) {
    size_t length = 0, width = 0, colon = 0;
    uint32_t first = 0, second = 0, last = 0;
    bool plain = line.visible <= VERSE_WIDTH;
    const unsigned char* end = line.end;
    if (!plain) {
        last = last_character(line.begin, line.end);
        for (end = line.begin; end < line.end && end - line.begin < 64;) next(end);
    }
    bool whole = plain;
    each_character(line.begin, end, [&](uint32_t code, const unsigned char*, const unsigned char*) {
        uint8_t kind = class_of(code);
        if (first && !second) second = code ? code : ' ';
        if (is_blank(code)) { width += first != 0; plain &= code != 0; return; }
        if (!first) first = code;
        ++length;
        width += text::stands_alone(code, kind) || one_of(code, U"，。；：！？、“”") ? 2 : 1;
        plain &= (kind & (text::LETTER | text::MARK)) != 0 || is_prose_mark(code);
        if (!colon && (code == ':' || code == 0xff1a)) colon = length;
        if (whole) last = code;
    });
    bool ended = one_of(last, U",.;:!?，。；：！？…—\"”’」』)）");
    bool said = one_of(first, U"“「『\"") || (first == 0x2014 && second == 0x2014);
    bool named = colon > 1 && colon <= NAME && line.visible > colon + 1 && one_of(last, U".!?。！？…\"”」");
    bool item = one_of(first, U"•●○◦‣▪▶■□◆·") || (is_blank(second) && one_of(first, U"-*+>–"));
    bool verse = plain && !item && width <= VERSE_WIDTH;
    ++shape.lines;
    shape.spoken += said;
    shape.named += !said && named;
    shape.items += item || is_digit(first);
    shape.verses += verse;
    shape.ended += verse && ended;
    shape.even += verse && length >= 5 && length == before;
    before = verse ? length : 0;
}

inline Shape shape_of(const std::vector<Line>& lines) {
    Shape shape;
    size_t before = 0;
    for (const Line& line : lines) {
        shape.visible += line.visible;
        if (line.kind == CODE) shape.code += line.visible;
        if (line.kind == PROSE) add_prose(shape, line, before);
    }
    return shape;
}

}  // namespace layout

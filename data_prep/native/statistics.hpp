// What the quality rules look at: counts and shares of the prose of one text, in one pass over its words and one over
// its lines. Code, tables and addresses are measured by their share alone.
#pragma once

#include <array>
#include <string>
#include <unordered_set>

#include "layout.hpp"
#include "minhash.hpp"
#include "wording.hpp"

namespace statistics {

using layout::one_of;
using text::class_of;
using text::next;

// Order and names of what `measure` returns, of prose but for prose_share. Shares are of characters unless the name
// says otherwise.
inline const std::vector<std::string> NAMES = {
    "prose_share", "characters", "words", "lines", "sentences", "mean_word_length", "longest_word", "alphabetic_word_share",
    "stop_words", "stop_word_share", "long_numbers_per_word", "separators_per_word", "mixed_word_share",
    "mojibake_per_word", "hash_per_word", "ellipsis_per_word", "newlines_per_word", "bullet_line_share",
    "ellipsis_line_share", "punctuated_line_share", "short_line_share", "duplicate_line_share",
    "duplicate_line_character_share", "duplicate_paragraph_share", "duplicate_paragraph_character_share",
    "top_2gram_share", "top_3gram_share", "top_4gram_share", "duplicate_5gram_share", "duplicate_6gram_share",
    "duplicate_7gram_share", "duplicate_8gram_share", "duplicate_9gram_share", "duplicate_10gram_share",
    "han_share", "letter_share", "number_share", "symbol_share", "upper_share", "curly_brackets",
    "private_or_replacement_share", "traditional_share", "dated_line_share", "duplicate_line_start_share",
    "fragment_character_share", "exclamations_per_sentence", "han_gaps_per_word",
    "odd_pair_share", "name_share", "masked_5gram_share",
};

// Marks that a scan asks for at every character, as bits.
enum Mark : uint8_t { ENDS = 1, CLOSES = 2, SEPARATES = 4, PAUSES = 8, INTRUDES = 16 };

inline uint8_t marks_of(uint32_t code) {
    static const std::vector<uint8_t> table = [] {
        std::vector<uint8_t> bits(0x10000);
        auto set = [&](const char32_t* codes, Mark mark) { for (; *codes; ++codes) bits[*codes] |= mark; };
        set(U".!?。！？…．｡।॥؟۔։።", ENDS);  // Hindi, Arabic, Urdu, Armenian and Amharic too
        set(U"\"'”’）)」』》〉】]", CLOSES);
        set(U"|｜丨/_·•»›>→★☆◆■●【】#", SEPARATES);
        set(U"，；", PAUSES);
        set(U"0123456789@!~|^*%$#?;", INTRUDES);  // between two letters: h@d, Da5hwood, text that was scanned badly
        return bits;
    }();
    return code < table.size() ? table[code] : 0;
}
inline bool ends_sentence(uint32_t code) { return marks_of(code) & ENDS; }
inline bool closes(uint32_t code) { return marks_of(code) & CLOSES; }
// What UTF-8 read as Windows-1252 begins with: Ã©, â€œ, Â with the blank or letter that it stands before.
inline bool is_mojibake(uint32_t before, uint32_t code) {
    return (before == 0xc3 && code >= 0x80 && code < 0xc0) || (before == 0xe2 && code == 0x20ac) ||
           (before == 0xc2 && (code < 'A' || (code > 'Z' && code < 0xc0)));
}
inline bool is_numeral(uint32_t code) { return layout::is_digit(code) || one_of(code, U"一二三四五六七八九十"); }
inline double share(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

// What a line begins with: (1) 一、 ① a) - item.
struct Head {
    static constexpr size_t SIZE = 6;
    uint32_t codes[SIZE] = {};
    size_t length = 0;

    void add(uint32_t code) { if (length < SIZE) codes[length++] = code; }
    uint32_t at(size_t place) const { return place < SIZE ? codes[place] : 0; }

    bool is_bullet() const {
        if (one_of(codes[0], U"•●○◦‣▪▶■□◆·»✓✔➢➤")) return true;
        if (one_of(codes[0], U"-*")) return codes[1] != codes[0];
        return one_of(codes[0], U"+>–") && layout::is_blank(codes[1]);
    }

    bool is_numbered() const {
        if (codes[0] >= 0x2460 && codes[0] <= 0x2473) return true;  // ① to ⑳
        size_t place = one_of(codes[0], U"(（"), start = place;
        while (place < start + 3 && is_numeral(at(place))) ++place;
        bool letter = place == start && layout::is_letter(at(place)) && one_of(at(place + 1), U")）");
        if (letter) return true;
        return place > start && (one_of(at(place), U")）、．") || (at(place) == '.' && !layout::is_digit(at(place + 1))));
    }
};

// Whether numbers are a date or a time of day: 2023-06-11, 6/11/2023, 06-11, 6月11日, 10:01.
class DateFinder {
public:
    // Whether a date or a time ends before this character, or with it where it is 日; 0 ends the line.
    bool ends(uint32_t code) {
        if (layout::is_digit(code)) { ++now_; return false; }
        bool found = now_ && is_date(code);
        if (now_ && one_of(code, U":：-/.月")) {
            lengths_[0] = lengths_[1];
            lengths_[1] = now_;
            joins_[0] = joins_[1];
            joins_[1] = code == 0xff1a ? ':' : code;
        } else {
            lengths_ = {};
            joins_ = {};
        }
        now_ = 0;
        return found;
    }

private:
    static bool is_short(size_t length) { return length == 1 || length == 2; }
    bool is_date(uint32_t code) const {
        if (!is_short(lengths_[1])) return false;
        if (joins_[1] == ':') return now_ == 2;
        if (joins_[1] == 0x6708) return is_short(now_) && code == 0x65e5;  // 月, 日
        if (joins_[1] == '-' && lengths_[1] == 2 && now_ == 2) return true;
        if (joins_[0] != joins_[1]) return false;
        return (lengths_[0] == 4 && is_short(now_)) || (is_short(lengths_[0]) && now_ == 4);
    }

    std::array<size_t, 2> lengths_{};    // digits of the two numbers before
    std::array<uint32_t, 2> joins_{};    // what stands behind each
    size_t now_ = 0;                     // digits of the number that goes on
};

class Meter {
public:
    Meter(std::unordered_set<uint64_t> stop_words, std::unordered_set<uint32_t> traditional,
          const std::vector<wording::WordPair>& odd_pairs)
        : stop_words_(std::move(stop_words)), traditional_(std::move(traditional)), wording_(odd_pairs) {}

    // The numbers of NAMES for one text.
    std::vector<double> measure(const unsigned char* begin, const unsigned char* end) {
        values_.clear();
        std::string prose = layout::prose(layout_.scan(begin, end));
        auto at = reinterpret_cast<const unsigned char*>(prose.data()), stop = at + prose.size();
        words(at, stop);
        lines(at, stop);
        ngrams();
        characters(visible(begin, end));
        return values_;
    }

private:
    struct Span { uint32_t start, stop; };

    static size_t visible(const unsigned char* at, const unsigned char* end) {
        size_t count = 0;
        while (at < end) {
            uint32_t code = next(at);
            count += !(class_of(code) & text::SPACE) && !text::is_invisible(code);
        }
        return count;
    }

    void words(const unsigned char* begin, const unsigned char* end) {
        spans_.clear();
        hashes_.clear();
        seen_stop_words_.clear();
        size_t total = 0, longest = 0, spelled = 0;  // spelled: of letters, not a Chinese character
        stop_words_seen_ = 0;
        wording_.start();
        length_ = text::each_word(begin, end, true, [&](size_t start, size_t stop, uint64_t hash, uint32_t first) {
            spans_.push_back({uint32_t(start), uint32_t(stop)});
            hashes_.push_back(hash);
            if (!text::stands_alone(first, class_of(first))) { ++spelled; total += stop - start; }
            longest = std::max(longest, stop - start);
            bool is_stop_word = stop_words_.count(hash);
            wording_.add(start, stop, hash, first, is_stop_word);
            if (!is_stop_word) return;
            seen_stop_words_.insert(hash);
            ++stop_words_seen_;
        });
        mean_word_ = share(double(total), double(spelled));
        longest_word_ = double(longest);
    }

    // One pass over the characters, line by line; paragraphs are separated by empty lines.
    void lines(const unsigned char* at, const unsigned char* end) {
        counts_ = {};
        line_hashes_.clear();
        start_hashes_.clear();
        paragraph_hashes_.clear();
        line_ = {};
        paragraph_ = {};
        while (at < end) {
            uint32_t code = next(at);
            if (code == '\n') {
                ++counts_.newlines;
                finish_line();
                continue;
            }
            uint8_t kind = class_of(code);
            if (!kind && text::is_invisible(code)) continue;
            bool blank = kind & text::SPACE;
            count(code, kind);
            if (line_.length == 0) {
                if (blank) continue;
                if (paragraph_.length) paragraph_.feed('\n');
            }
            line_.feed(code);
            line_.head.add(code);
            paragraph_.feed(code);
            if (blank) continue;
            line_.last = code;
            if (!closes(code)) line_.last_open = code;
        }
        finish_line();
        finish_paragraph();
    }

    struct Run {
        uint64_t hash = text::TOKEN_START;
        size_t length = 0;
        void feed(uint32_t code) { hash = text::feed(hash, code); ++length; }
    };

    struct Line : Run {
        Head head;
        Run start;                              // the first characters, a number as one
        DateFinder dates;
        bool dated = false;                     // has a date or a time of day
        size_t dots = 0;                        // full stops at the end
        size_t sentences = 0, said = 0;         // sentences that end in the line; what came since the last, as `says`
        size_t heading = 0;                     // “#” that the line begins with
        size_t digits = 0;                      // of the number that goes on
        uint32_t before = 0;                    // blank or not
        uint32_t last = 0, last_open = 0;       // not blank; last_open: before closing quotes and brackets
        bool full_stop = false;                 // the last is one, and what follows tells whether it ends a sentence
        bool paused = false;                    // has a Chinese comma or semicolon
        // what stands since the last blank: has a letter or a digit; a letter; one sign between letters
        bool token = false, token_letter = false, token_mixed = false;
        uint32_t before_last = 0;               // the character before `before`
    };

    void finish_line() {
        finish_token();
        if (line_.length == 0) { line_ = {}; return finish_paragraph(); }
        ++counts_.lines;
        // brackets and rules repeat in any text
        if (line_.length >= 10) line_hashes_.push_back({text::mix(line_.hash), line_.length});
        line_.dated |= line_.dates.ends(0);
        line_.sentences += line_.full_stop;
        bool short_ = line_.length <= 30;  // FineWeb, arXiv 2406.17557
        bool ended = ends_sentence(line_.last_open) || one_of(line_.last_open, U";；:：");
        bool punctuated = ended || line_.sentences || (line_.paused && !short_);
        // a sentence of ten words that the line ends, as a headline or an abstract without its full stop
        line_.sentences += !ends_sentence(line_.last_open) && line_.said >= 10 * SAYS_WORD;
        counts_.sentences += line_.sentences;
        counts_.bullets += line_.head.is_bullet() || (!punctuated && line_.head.is_numbered());
        counts_.ellipsis_lines += line_.last == 0x2026 || line_.dots >= 3;
        counts_.punctuated += punctuated;
        counts_.short_lines += short_;
        counts_.dated += line_.dated && !punctuated;
        if (!punctuated && line_.start.length == LINE_START) start_hashes_.push_back({text::mix(line_.start.hash), LINE_START});
        counts_.in_lines += line_.length;
        counts_.in_fragments += punctuated ? 0 : line_.length;
        line_ = {};
    }

    void finish_paragraph() {
        if (paragraph_.length) paragraph_hashes_.push_back({text::mix(paragraph_.hash), paragraph_.length});
        paragraph_ = {};
    }

    // A token stands between blanks, as words do for Gopher.
    void finish_token() {
        counts_.tokens += line_.token;
        counts_.alphabetic += line_.token_letter;
        counts_.mixed += line_.token_mixed;
        line_.token = line_.token_letter = line_.token_mixed = false;
    }

    void count(uint32_t code, uint8_t kind) {
        const uint8_t marks = marks_of(code);
        bool blank = kind & text::SPACE, han = kind & text::HAN;
        if (han) { ++counts_.han; counts_.traditional += traditional_.count(code); }
        counts_.letters += (kind & text::LETTER) != 0;
        counts_.numbers += (kind & text::NUMBER) != 0;
        counts_.symbols += (kind & text::SYMBOL) != 0;
        counts_.upper += (kind & text::UPPER) != 0;
        counts_.visible += !blank;
        bool heading = code == '#' && line_.length == line_.heading;  // or a comment
        line_.heading += heading;
        counts_.hashes += code == '#' && !heading;
        counts_.curly += code == '{';
        counts_.separators += (marks & SEPARATES) != 0;
        counts_.odd += code == 0xfffd || (code >= 0xe000 && code <= 0xf8ff);
        if (code == '.') {
            if (++line_.dots == 3) ++counts_.ellipses;
        } else if (!blank) {
            line_.dots = 0;
        }
        counts_.ellipses += code == 0x2026;
        counts_.exclamations += code == '!' || code == 0xff01;
        counts_.gaps += han && (class_of(line_.before) & text::SPACE) && (class_of(line_.last) & text::HAN);
        line_.dated |= line_.dates.ends(code);
        if (blank) finish_token();
        else if (line_.start.length < LINE_START) start(code);
        line_.token |= (kind & (text::LETTER | text::NUMBER)) != 0;
        line_.token_letter |= (kind & text::LETTER) != 0;
        line_.digits = layout::is_digit(code) ? line_.digits + 1 : 0;
        counts_.long_numbers += line_.digits == LONG_NUMBER;
        line_.token_mixed |= layout::is_letter(line_.before_last) && layout::is_letter(code) &&
                             (marks_of(line_.before) & INTRUDES);
        counts_.mojibake += is_mojibake(line_.before, code);
        sentence(code, kind, marks, blank, han);
        line_.before_last = line_.before;
        line_.before = code;
    }

    static constexpr size_t LINE_START = 6;  // characters that tell whether lines begin alike
    void start(uint32_t code) {
        if (!layout::is_digit(code)) line_.start.feed(text::lower(code));
        else if (!layout::is_digit(line_.before)) line_.start.feed('0');
    }

    static constexpr size_t SAYS_WORD = 8, SAYS_HAN = 5;  // a word says what 1.6 Chinese characters say
    static constexpr size_t LONG_NUMBER = 7;              // digits, as those of telephones and accounts have

    // A full stop ends a sentence before a blank, a closing mark or Chinese: not in 3.14, nor in the name of a file.
    void sentence(uint32_t code, uint8_t kind, uint8_t marks, bool blank, bool han) {
        if (line_.full_stop && (blank || han || (marks & CLOSES))) { ++line_.sentences; line_.said = 0; }
        bool ends = marks & ENDS;
        line_.full_stop &= ends;
        bool word = (kind & text::WORD) && !han;
        if (han) line_.said += SAYS_HAN;
        else if (word && !(class_of(line_.before) & text::WORD)) line_.said += SAYS_WORD;
        line_.paused |= (marks & PAUSES) != 0;
        if (line_.full_stop || !ends || line_.last == 0 || ends_sentence(line_.last)) return;
        if (one_of(code, U".．")) { line_.full_stop = true; return; }
        ++line_.sentences;
        line_.said = 0;
    }

    void ngrams() {
        top_.clear();
        size_t words = hashes_.size();
        gram_ = hashes_;
        for (size_t n = 2; n <= 10; ++n) {
            size_t grams = words >= n ? words - n + 1 : 0;
            for (size_t i = 0; i < grams; ++i) gram_[i] = (gram_[i] ^ hashes_[i + n - 1] * n) * text::TOKEN_START;
            for (size_t i = 0; i < grams; ++i) gram_[i] ^= gram_[i] >> 29;
            // where no n-gram comes twice, no longer one does
            bool once = !top_.empty() && top_.back() == 0;
            top_.push_back(once ? 0 : n <= 4 ? most_frequent(n, grams) : repeated(n, grams));
        }
    }

    // Characters in the most frequent n-gram, each as long as its last one; the longest of equals; 0 if none comes twice.
    double most_frequent(size_t n, size_t grams) {
        table_.start(grams);
        size_t best = 1, characters = 0;
        for (size_t i = 0; i < grams; ++i) {
            size_t times = table_.add(gram_[i]), long_ = spans_[i + n - 1].stop - spans_[i].start;
            if (times > best || (times == best && times > 1 && long_ * times > characters)) {
                best = times;
                characters = long_ * times;
            }
        }
        return share(double(characters), double(length_));
    }

    // Characters in n-grams that came before, none counted twice: after one, the scan goes on behind it.
    double repeated(size_t n, size_t grams) {
        table_.start(grams);
        size_t characters = 0;
        for (size_t i = 0; i < grams;) {
            if (table_.add(gram_[i]) > 1) {
                characters += spans_[i + n - 1].stop - spans_[i].start;
                i += n;
            } else {
                ++i;
            }
        }
        return share(double(characters), double(length_));
    }

    struct Hashed { uint64_t hash; size_t length; };

    std::array<double, 2> duplicates(const std::vector<Hashed>& parts) {
        table_.start(parts.size());
        size_t count = 0, characters = 0;
        for (const auto& part : parts)
            if (table_.add(part.hash) > 1) { ++count; characters += part.length; }
        return {share(double(count), double(parts.size())), share(double(characters), double(length_))};
    }

    size_t repeats(const std::vector<Hashed>& parts) {
        table_.start(parts.size());
        return size_t(std::count_if(parts.begin(), parts.end(), [&](const Hashed& part) { return table_.add(part.hash) > 1; }));
    }

    void characters(size_t visible_of_all) {
        const auto& c = counts_;
        double words = double(spans_.size()), lines = double(c.lines), visible = double(c.visible);
        auto line = duplicates(line_hashes_), paragraph = duplicates(paragraph_hashes_);
        values_ = {share(visible, double(visible_of_all)), double(length_), words, lines, double(c.sentences),
                   mean_word_, longest_word_, share(double(c.alphabetic), double(c.tokens)),
                   double(seen_stop_words_.size()), share(double(stop_words_seen_), words),
                   share(double(c.long_numbers), words), share(double(c.separators), words),
                   share(double(c.mixed), double(c.tokens)), share(double(c.mojibake), words),
                   share(double(c.hashes), words), share(double(c.ellipses), words),
                   share(double(c.newlines), words), share(double(c.bullets), lines),
                   share(double(c.ellipsis_lines), lines), share(double(c.punctuated), lines),
                   share(double(c.short_lines), lines), line[0], line[1], paragraph[0], paragraph[1]};
        values_.insert(values_.end(), top_.begin(), top_.end());
        for (double value : {share(double(c.han), visible), share(double(c.letters), visible),
                             share(double(c.numbers), visible), share(double(c.symbols), visible),
                             share(double(c.upper), double(c.letters)), double(c.curly),
                             share(double(c.odd), visible), share(double(c.traditional), double(c.han)),
                             share(double(c.dated), lines), share(double(repeats(start_hashes_)), lines),
                             share(double(c.in_fragments), double(c.in_lines)),
                             share(double(c.exclamations), double(c.sentences)), share(double(c.gaps), words),
                             share(double(wording_.odd_pairs()), words), share(double(wording_.repeated_name(table_)), words),
                             share(double(wording_.in_masked_runs(table_)), words)})
            values_.push_back(value);
    }

    struct Counts {
        size_t lines, newlines, bullets, ellipsis_lines, punctuated, short_lines, han, traditional, letters, numbers,
            symbols, upper, visible, hashes, curly, separators, odd, ellipses, sentences, tokens, alphabetic,
            long_numbers, mixed, mojibake, dated, in_lines, in_fragments, exclamations, gaps;
    };

    std::unordered_set<uint64_t> stop_words_, seen_stop_words_;
    std::unordered_set<uint32_t> traditional_;
    std::vector<Span> spans_;
    std::vector<uint64_t> hashes_, gram_;
    std::vector<Hashed> line_hashes_, start_hashes_, paragraph_hashes_;
    std::vector<double> top_, values_;
    CountTable table_;
    Counts counts_{};
    layout::Layout layout_;
    wording::Wording wording_;
    Line line_;
    Run paragraph_;
    size_t length_ = 0, stop_words_seen_ = 0;
    double mean_word_ = 0, longest_word_ = 0;
};

}  // namespace statistics

// What the quality rules look at: counts and shares of one text, in one pass over its words and one over its lines.
#pragma once

#include <array>
#include <string>
#include <unordered_set>

#include "minhash.hpp"

namespace statistics {

using text::class_of;
using text::next;

// Order and names of what `measure` returns. Shares are of characters unless the name says otherwise.
inline const std::vector<std::string> NAMES = {
    "characters", "words", "lines", "sentences", "mean_word_length", "longest_word", "alphabetic_word_share",
    "stop_words", "hash_per_word", "ellipsis_per_word", "newlines_per_word", "bullet_line_share",
    "ellipsis_line_share", "punctuated_line_share", "short_line_share", "duplicate_line_share",
    "duplicate_line_character_share", "duplicate_paragraph_share", "duplicate_paragraph_character_share",
    "top_2gram_share", "top_3gram_share", "top_4gram_share", "duplicate_5gram_share", "duplicate_6gram_share",
    "duplicate_7gram_share", "duplicate_8gram_share", "duplicate_9gram_share", "duplicate_10gram_share",
    "han_share", "letter_share", "number_share", "symbol_share", "upper_share", "curly_brackets",
    "full_width_punctuation_share", "private_or_replacement_share", "traditional_share",
};

// A set of hashes with counts, emptied in time proportional to its use.
class CountTable {
public:
    void start(size_t expected) {
        size_t size = 16;
        while (size < expected * 2) size *= 2;
        if (keys_.size() < size) { keys_.assign(size, 0); counts_.assign(size, 0); }
        else std::fill(counts_.begin(), counts_.begin() + size, 0);
        mask_ = size - 1;
    }
    // How often this hash has come, this time included.
    uint32_t add(uint64_t hash) {
        size_t slot = hash & mask_;
        while (counts_[slot] && keys_[slot] != hash) slot = (slot + 1) & mask_;
        keys_[slot] = hash;
        return ++counts_[slot];
    }

private:
    std::vector<uint64_t> keys_;
    std::vector<uint32_t> counts_;
    size_t mask_ = 0;
};

inline bool one_of(uint32_t code, const char32_t* set) {
    for (; *set; ++set) if (uint32_t(*set) == code) return true;
    return false;
}
inline bool ends_sentence(uint32_t code) { return one_of(code, U".!?。！？…"); }
inline bool closes(uint32_t code) { return one_of(code, U"\"'”’）)」』》〉】]"); }
inline bool is_bullet(uint32_t code) { return one_of(code, U"-*•●○◦‣▪▶■□◆·"); }
inline bool is_full_width_mark(uint32_t code) { return one_of(code, U"，。；：？！、（）《》“”"); }
inline bool is_half_width_mark(uint32_t code) { return one_of(code, U",.;:?!()"); }
inline double share(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

class Meter {
public:
    Meter(std::unordered_set<uint64_t> stop_words, std::unordered_set<uint32_t> traditional)
        : stop_words_(std::move(stop_words)), traditional_(std::move(traditional)) {}

    // The numbers of NAMES for one text.
    std::vector<double> measure(const unsigned char* begin, const unsigned char* end) {
        values_.clear();
        words(begin, end);
        lines(begin, end);
        ngrams();
        characters();
        return values_;
    }

private:
    struct Span { uint32_t start, stop; };

    void words(const unsigned char* begin, const unsigned char* end) {
        spans_.clear();
        hashes_.clear();
        seen_stop_words_.clear();
        size_t total = 0, longest = 0, alphabetic = 0;
        length_ = text::each_word(begin, end, true, [&](size_t start, size_t stop, uint64_t hash, uint32_t first) {
            spans_.push_back({uint32_t(start), uint32_t(stop)});
            hashes_.push_back(hash);
            total += stop - start;
            longest = std::max(longest, stop - start);
            alphabetic += (class_of(first) & text::LETTER) != 0;
            if (stop_words_.count(hash)) seen_stop_words_.insert(hash);
        });
        mean_word_ = share(double(total), double(spans_.size()));
        longest_word_ = double(longest);
        alphabetic_share_ = share(double(alphabetic), double(spans_.size()));
    }

    // One pass over the characters, line by line; paragraphs are separated by empty lines.
    void lines(const unsigned char* at, const unsigned char* end) {
        counts_ = {};
        line_hashes_.clear();
        paragraph_hashes_.clear();
        line_ = paragraph_ = {};
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
                line_.first = code;
                if (paragraph_.length) paragraph_.feed('\n');
            }
            line_.feed(code);
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
        size_t length = 0, dots = 0;               // dots: full stops at the end
        uint32_t first = 0, last = 0, last_open = 0;  // not blank; last_open: before closing quotes and brackets
        void feed(uint32_t code) { hash = text::feed(hash, code); ++length; }
    };

    void finish_line() {
        if (line_.length == 0) return finish_paragraph();
        ++counts_.lines;
        // brackets, fences and table rules repeat in any code
        if (line_.length >= 10) line_hashes_.push_back({text::mix(line_.hash), line_.length});
        counts_.bullets += is_bullet(line_.first);
        counts_.ellipsis_lines += line_.last == 0x2026 || line_.dots >= 3;
        counts_.punctuated += ends_sentence(line_.last_open) || one_of(line_.last_open, U";；:：");
        counts_.short_lines += line_.length <= 30;  // FineWeb, arXiv 2406.17557
        line_ = {};
    }

    void finish_paragraph() {
        if (paragraph_.length) paragraph_hashes_.push_back({text::mix(paragraph_.hash), paragraph_.length});
        paragraph_ = {};
    }

    void count(uint32_t code, uint8_t kind) {
        if (kind & text::HAN) { ++counts_.han; counts_.traditional += traditional_.count(code); }
        counts_.letters += (kind & text::LETTER) != 0;
        counts_.numbers += (kind & text::NUMBER) != 0;
        counts_.symbols += (kind & text::SYMBOL) != 0;
        counts_.upper += (kind & text::UPPER) != 0;
        counts_.visible += !(kind & text::SPACE);
        counts_.hashes += code == '#';
        counts_.curly += code == '{';
        counts_.odd += code == 0xfffd || (code >= 0xe000 && code <= 0xf8ff);
        if (code == '.') {
            if (++line_.dots == 3) ++counts_.ellipses;
        } else if (!(kind & text::SPACE)) {
            line_.dots = 0;
        }
        counts_.ellipses += code == 0x2026;
        if (is_full_width_mark(code)) ++counts_.full_width;
        // an English mark right behind a Han character is one that should be full width
        else if ((class_of(line_.last) & text::HAN) && is_half_width_mark(code)) ++counts_.half_width;
        counts_.sentences += ends_sentence(code) && line_.last != 0 && !ends_sentence(line_.last);
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

    void characters() {
        const auto& c = counts_;
        double words = double(spans_.size()), lines = double(c.lines), visible = double(c.visible);
        auto line = duplicates(line_hashes_), paragraph = duplicates(paragraph_hashes_);
        values_ = {double(length_), words, lines, double(c.sentences), mean_word_, longest_word_, alphabetic_share_,
                   double(seen_stop_words_.size()), share(double(c.hashes), words), share(double(c.ellipses), words),
                   share(double(c.newlines), words), share(double(c.bullets), lines),
                   share(double(c.ellipsis_lines), lines), share(double(c.punctuated), lines),
                   share(double(c.short_lines), lines), line[0], line[1], paragraph[0], paragraph[1]};
        values_.insert(values_.end(), top_.begin(), top_.end());
        for (double value : {share(double(c.han), visible), share(double(c.letters), visible),
                             share(double(c.numbers), visible), share(double(c.symbols), visible),
                             share(double(c.upper), double(c.letters)), double(c.curly),
                             share(double(c.full_width), double(c.full_width + c.half_width)),
                             share(double(c.odd), visible), share(double(c.traditional), double(c.han))})
            values_.push_back(value);
    }

    struct Counts {
        size_t lines, newlines, bullets, ellipsis_lines, punctuated, short_lines, han, traditional, letters,
            numbers, symbols, upper, visible, hashes, curly, odd, ellipses, full_width, half_width, sentences;
    };

    std::unordered_set<uint64_t> stop_words_, seen_stop_words_;
    std::unordered_set<uint32_t> traditional_;
    std::vector<Span> spans_;
    std::vector<uint64_t> hashes_, gram_;
    std::vector<Hashed> line_hashes_, paragraph_hashes_;
    std::vector<double> top_, values_;
    CountTable table_;
    Counts counts_{};
    Run line_, paragraph_;
    size_t length_ = 0;
    double mean_word_ = 0, longest_word_ = 0, alphabetic_share_ = 0;
};

}  // namespace statistics

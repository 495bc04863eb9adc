// Hashed n-grams of characters and of words, and the score of a linear model that weighs them, in one scan each.
#pragma once

#include <stdexcept>

#include "characters.hpp"

namespace ngrams {

constexpr size_t MOST = 7;                          // symbols of an n-gram
constexpr uint64_t BASE = 0xd1342543de82ef95ULL;    // odd, of Steele and Vigna's multipliers (arXiv 2001.05304)
constexpr uint64_t CHARACTERS = 0, WORDS = 1;       // which n-grams: they share the buckets

// Shortest and longest n-gram; none where the longest is 0.
struct Orders {
    size_t least, most;
    Orders(size_t least, size_t most) : least(least), most(most) {
        if (most > MOST || (most && (least < 1 || least > most)))
            throw std::invalid_argument("n-grams have 1 to 7 symbols");
    }
};

// The n-grams of a row of symbols as each one comes: polynomials of the symbols, from those of the whole row so far.
class Window {
public:
    Window(Orders orders, uint64_t kind, unsigned bits) : orders_(orders), shift_(64 - bits) {
        for (size_t n = 0; n <= MOST; ++n) {
            powers_[n] = n ? powers_[n - 1] * BASE : 1;
            salts_[n] = text::mix(kind << 8 | n);
        }
    }

    // Call `take(bucket)` for the n-grams that end with this symbol.
    template <typename Take>
    void push(uint64_t symbol, Take&& take) {
        uint64_t row = rows_[count_ % SLOTS] * BASE + symbol;
        rows_[++count_ % SLOTS] = row;
        for (size_t n = orders_.least; n <= orders_.most && n <= count_; ++n) {
            uint64_t ngram = row - rows_[(count_ - n) % SLOTS] * powers_[n];
            take(uint32_t(text::mix(ngram ^ salts_[n]) >> shift_));
        }
    }

private:
    static constexpr size_t SLOTS = 8;  // more than MOST
    Orders orders_;
    unsigned shift_;
    size_t count_ = 0;
    uint64_t rows_[SLOTS] = {}, powers_[MOST + 1], salts_[MOST + 1];
};

// Call `take(symbol)` for the characters as the n-grams see them: runs of blanks as one blank, or as a line feed where a
// line ends in them, which stands before and behind the text too; digits as 0; without invisible ones.
template <typename Take>
inline void each_character(const unsigned char* at, const unsigned char* end, Take&& take) {
    take('\n');
    uint32_t blank = 0;
    bool begun = false;
    while (at < end) {
        uint32_t code = text::next(at);
        uint8_t kind = text::class_of(code);
        if (kind & text::SPACE) { blank = blank == '\n' || text::ends_line(code) ? '\n' : ' '; continue; }
        if (!kind && text::is_invisible(code)) continue;
        if (blank && begun) take(blank);
        blank = 0;
        begun = true;
        take(kind & text::NUMBER ? '0' : code);
    }
    if (begun) take('\n');
}

// Which n-grams are counted, and in how many buckets.
struct Ngrams {
    Orders characters, words;
    unsigned bits;

    Ngrams(Orders characters, Orders words, unsigned bits) : characters(characters), words(words), bits(bits) {
        if (bits < 1 || bits > 30) throw std::invalid_argument("buckets are 2**1 to 2**30");
    }

    template <typename Take>
    void each_of_characters(const unsigned char* begin, const unsigned char* end, Take take) const {
        Window window(characters, CHARACTERS, bits);
        each_character(begin, end, [&](uint32_t code) { window.push(code, take); });
    }

    template <typename Take>
    void each_of_words(const unsigned char* begin, const unsigned char* end, Take take) const {
        Window window(words, WORDS, bits);
        text::each_word(begin, end, true, [&](size_t, size_t, uint64_t hash, uint32_t) { window.push(hash, take); });
    }

    // The mean weight of the n-grams of characters, and that of the n-grams of words, together.
    double mean_weights(const unsigned char* begin, const unsigned char* end, const float* weights) const {
        double sum = 0, total = 0;
        size_t count = 0;
        auto add = [&](uint32_t bucket) { sum += weights[bucket]; ++count; };
        each_of_characters(begin, end, add);
        if (count) total = sum / double(count);
        sum = 0, count = 0;
        each_of_words(begin, end, add);
        return count ? total + sum / double(count) : total;
    }
};

}  // namespace ngrams

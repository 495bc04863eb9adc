// Hashed n-grams of characters and of words, counted in one scan, and what a linear model makes of them.
#pragma once

#include <cmath>
#include <stdexcept>

#include "characters.hpp"

namespace ngrams {

constexpr size_t MOST = 7;                        // symbols of an n-gram
constexpr uint64_t BASE = 0xd1342543de82ef95ULL;  // odd, from Steele and Vigna (arXiv 2001.05304)
constexpr uint64_t CHARACTERS = 1, WORDS = 2;     // n-grams of both share the buckets

// The n-grams that end with the last symbol of a row, each a polynomial of its symbols. Those that would begin before the
// row are shorter.
class Row {
public:
    Row(size_t least, size_t most, uint64_t kind) : least_(least), most_(most) {
        if (least < 1 || least > most || most > MOST) throw std::invalid_argument("n-grams have 1 to 7 symbols");
        ngrams_[0] = text::mix(kind);
    }

    // Call `take(hash)` for the n-grams that end with this symbol.
    template <typename Take>
    void push(uint64_t symbol, Take&& take) {
        for (size_t n = most_; n > 0; --n) {
            ngrams_[n] = (ngrams_[n - 1] + symbol) * BASE;
            if (n >= least_) take(ngrams_[n]);
        }
    }

private:
    size_t least_, most_;
    uint64_t ngrams_[MOST + 1] = {};
};

// Characters as their n-grams see them: without invisible ones, a run of blanks as one blank, or as a line feed where a
// line ends in it, digits as 0. Words as `text::each_word` has them, in lower case. Both rows begin and end anew with a text.
template <typename Take>
inline void each_ngram(const unsigned char* at, const unsigned char* end, Row characters, Row words, Take&& take) {
    uint64_t word = 0;
    uint32_t blank = 0;
    bool inside = false;
    auto end_word = [&] {
        if (inside) words.push(text::mix(word), take);
        inside = false;
    };
    while (at < end) {
        uint32_t code = text::next(at);
        uint8_t kind = text::class_of(code);
        if (!kind && text::is_invisible(code)) continue;
        if (kind & text::SPACE) {
            blank = blank == '\n' || text::ends_line(code) ? '\n' : ' ';
            end_word();
            continue;
        }
        if (blank) characters.push(blank, take);
        blank = 0;
        characters.push(kind & text::NUMBER ? '0' : code, take);
        bool alone = text::stands_alone(code, kind);
        if ((kind & text::WORD) && !alone) {
            word = text::feed(inside ? word : text::TOKEN_START, text::lower(code));
            inside = true;
            continue;
        }
        end_word();
        if (alone) words.push(text::mix(text::feed(text::TOKEN_START, code)), take);
    }
    end_word();
}

// Counts the n-grams of one text after the other. The value of a bucket is sqrt(its share of the n-grams), so that the
// values of a text have length 1, and a word that fills a text does not speak for all of it.
class Counter {
public:
    using Orders = std::pair<size_t, size_t>;  // the shortest and the longest n-gram

    Counter(Orders characters, Orders words, unsigned bits)
        : characters_(characters.first, characters.second, CHARACTERS), words_(words.first, words.second, WORDS),
          shift_(64 - bits) {
        if (bits < 1 || bits > 30) throw std::invalid_argument("there are 2**1 to 2**30 buckets");
        counts_.resize(size_t(1) << bits);
    }

    size_t buckets() const { return counts_.size(); }

    // Call `take(bucket, value)` once for each bucket, in the order in which they come in the text.
    template <typename Take>
    void each_value(const unsigned char* begin, const unsigned char* end, Take take) {
        size_t total = 0;
        buckets_.clear();
        each_ngram(begin, end, characters_, words_, [&](uint64_t hash) {
            auto bucket = uint32_t((hash ^ hash >> 32) * text::TOKEN_START >> shift_);
            if (counts_[bucket]++ == 0) buckets_.push_back(bucket);
            ++total;
        });
        double scale = 1 / std::sqrt(double(total));
        for (uint32_t bucket : buckets_) {
            take(bucket, float(std::sqrt(double(counts_[bucket])) * scale));
            counts_[bucket] = 0;
        }
    }

    double weigh(const unsigned char* begin, const unsigned char* end, const float* weights) {
        double sum = 0;
        each_value(begin, end, [&](uint32_t bucket, float value) { sum += double(weights[bucket]) * value; });
        return sum;
    }

private:
    Row characters_, words_;
    unsigned shift_;
    std::vector<uint32_t> counts_, buckets_;  // counts are 0 between texts
};

}  // namespace ngrams

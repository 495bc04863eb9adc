// MinHash signatures over word n-grams, and a hash of the normalised text, in one scan of the UTF-8.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "characters.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__ELF__)
#define RECIPE_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define RECIPE_SIMD
#endif

namespace minhash {

constexpr size_t LANES = 16;      // hash functions whose minima stay in registers
constexpr size_t SHINGLES = 2048;  // shingles buffered between updates: 8 KiB, the first-level cache

// minima[i] = min(minima[i], multipliers[i] * x + offsets[i]) over the shingles x, all modulo 2**32.
RECIPE_SIMD inline void update(const uint32_t* shingles, size_t count, const uint32_t* multipliers,
                               const uint32_t* offsets, uint32_t* minima, size_t hashes) {
    for (size_t block = 0; block < hashes; block += LANES) {
        uint32_t least[LANES], a[LANES], b[LANES];
        for (size_t i = 0; i < LANES; ++i) {
            least[i] = minima[block + i];
            a[i] = multipliers[block + i];
            b[i] = offsets[block + i];
        }
        for (size_t s = 0; s < count; ++s) {
            for (size_t i = 0; i < LANES; ++i) {
                uint32_t value = shingles[s] * a[i] + b[i];
                least[i] = value < least[i] ? value : least[i];
            }
        }
        for (size_t i = 0; i < LANES; ++i) minima[block + i] = least[i];
    }
}

// Hash of n consecutive word hashes, the oldest first.
inline uint64_t shingle(const uint64_t* ring, size_t ngram, size_t oldest, size_t size) {
    uint64_t mixed = 0;
    for (size_t i = 0; i < size; ++i) {
        mixed = (mixed ^ ring[(oldest + i) % ngram]) * text::TOKEN_START;
        mixed ^= mixed >> 32;
    }
    return text::mix(mixed);
}

class Signer {
public:
    Signer(size_t ngram, std::vector<uint32_t> multipliers, std::vector<uint32_t> offsets)
        : ngram_(ngram), hashes_(multipliers.size()), multipliers_(std::move(multipliers)), offsets_(std::move(offsets)),
          ring_(ngram) {
        size_t padded = (hashes_ + LANES - 1) / LANES * LANES;
        multipliers_.resize(padded, 1);
        offsets_.resize(padded, 0);
        minima_.resize(padded);
    }

    size_t hashes() const { return hashes_; }
    const uint32_t* minima() const { return minima_.data(); }

    // Call `take(hash)` for the n-grams of the text; for all its words together where it has fewer than n.
    template <typename Take>
    void each_shingle(const unsigned char* begin, const unsigned char* end, Take take) {
        size_t words = each_ngram(begin, end, take);
        if (words > 0 && words < ngram_) take(shingle(ring_.data(), ngram_, 0, words));
    }

    // The minima over the n-grams of the text; of nothing where it has fewer words than n: its words say too little of it.
    void sign(const unsigned char* begin, const unsigned char* end) {
        std::fill(minima_.begin(), minima_.end(), UINT32_MAX);
        uint32_t buffer[SHINGLES];
        size_t filled = 0;
        each_ngram(begin, end, [&](uint64_t hash) {
            buffer[filled++] = uint32_t(hash >> 32);
            if (filled == SHINGLES) { flush(buffer, filled); filled = 0; }
        });
        flush(buffer, filled);
    }

private:
    // Call `take(hash)` for the n-grams of the text; returns how many words it has.
    template <typename Take>
    size_t each_ngram(const unsigned char* begin, const unsigned char* end, Take&& take) {
        size_t words = 0;
        text::each_word(begin, end, false, [&](size_t, size_t, uint64_t hash, uint32_t) {
            ring_[words++ % ngram_] = hash;
            if (words >= ngram_) take(shingle(ring_.data(), ngram_, words % ngram_, ngram_));
        });
        return words;
    }

    void flush(const uint32_t* buffer, size_t count) {
        update(buffer, count, multipliers_.data(), offsets_.data(), minima_.data(), minima_.size());
    }

    size_t ngram_, hashes_;
    std::vector<uint32_t> multipliers_, offsets_, minima_;
    std::vector<uint64_t> ring_;
};

// 128 bits of a text in lower case with every run of blanks as one, without invisible characters; equal for texts that
// differ in those only.
struct ExactHash {
    uint64_t one = 0x243f6a8885a308d3ULL, two = 0x13198a2e03707344ULL;  // of pi
    uint64_t count = 0, pending = 0;  // three code points of 21 bits are mixed in together

    void feed(uint32_t code) {
        pending = pending << 21 | code;
        if (++count % 3 == 0) { mix_in(); pending = 0; }
    }
    std::array<uint64_t, 2> digest() {
        mix_in();
        return {text::mix(one ^ count), text::mix(two + count)};
    }

private:
    void mix_in() {
        one = (one ^ pending) * 0x9fb21c651e98df25ULL;
        one ^= one >> 35;
        two = (two ^ pending) * 0xd6e8feb86659fd93ULL;
        two ^= two >> 32;
    }
};

inline ExactHash exact_hash(const unsigned char* at, const unsigned char* end) {
    ExactHash hash;
    bool blank = false;
    while (at < end) {
        uint32_t code = text::next(at);
        uint8_t kind = text::class_of(code);
        if (kind & text::SPACE) { blank = true; continue; }
        if (!kind && text::is_invisible(code)) continue;
        if (blank && hash.count) hash.feed(' ');
        blank = false;
        hash.feed(text::lower(code));
    }
    return hash;
}

}  // namespace minhash

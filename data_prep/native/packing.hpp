// The order of documents in which sequences cut back to back from them hold whole documents wherever these fit.
//
// As best-fit packing (arXiv 2404.10830), but without padding, and with the rest of a long document behind its beginning.
// There many sequences are open at once; here one is filled after the other, each time with the largest document that
// fits, as first-fit decreasing would. What would be padding is the beginning of a document that goes on in the next
// sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace packing {

constexpr size_t NONE = SIZE_MAX;

// A set of numbers below a bound: a bit for each, and on every further level a bit for each word that is not zero.
class Numbers {
public:
    explicit Numbers(size_t bound) {
        do {
            bound = bound / 64 + 1;
            levels_.emplace_back(bound);
        } while (bound > 1);
    }

    void insert(size_t number) {
        for (auto& level : levels_) {
            level[number / 64] |= uint64_t(1) << number % 64;
            number /= 64;
        }
    }

    void erase(size_t number) {
        for (auto& level : levels_) {
            if (level[number / 64] &= ~(uint64_t(1) << number % 64)) return;
            number /= 64;
        }
    }

    size_t largest_up_to(size_t number) const {
        for (size_t level = 0; level < levels_.size(); ++level) {
            size_t word = number / 64;
            if (uint64_t bits = levels_[level][word] & ~uint64_t(0) >> (63 - number % 64)) {
                number = word * 64 + highest(bits);
                while (level-- > 0) number = number * 64 + highest(levels_[level][number]);
                return number;
            }
            if (word == 0) return NONE;
            number = word - 1;
        }
        return NONE;
    }

    bool has(size_t number) const { return levels_[0][number / 64] >> number % 64 & 1; }

    size_t smallest() const {
        if (!levels_.back()[0]) return NONE;
        size_t number = 0;
        for (size_t level = levels_.size(); level-- > 0;) number = number * 64 + __builtin_ctzll(levels_[level][number]);
        return number;
    }

private:
    static size_t highest(uint64_t bits) { return 63 - __builtin_clzll(bits); }

    std::vector<std::vector<uint64_t>> levels_;
};

// Documents by size, those of one size in their order.
class Stock {
public:
    Stock(size_t largest, std::vector<size_t>& following)
        : sizes_(largest), first_(largest + 1, NONE), following_(following) {}

    // The last document first: it is taken last.
    void add(size_t size, size_t document) {
        following_[document] = first_[size];
        first_[size] = document;
        sizes_.insert(size);
    }

    size_t take(size_t size) {
        size_t document = first_[size];
        first_[size] = following_[document];
        if (first_[size] == NONE) sizes_.erase(size);
        return document;
    }

    size_t largest_up_to(size_t size) const { return sizes_.largest_up_to(size); }
    size_t smallest() const { return sizes_.smallest(); }

    // The larger of two documents that have so many tokens together, as large as there is one.
    size_t largest_of_pair(size_t tokens) const {
        size_t size = sizes_.largest_up_to(tokens - 1);
        for (; size != NONE && 2 * size > tokens; size = sizes_.largest_up_to(size - 1))
            if (sizes_.has(tokens - size)) return size;
        return size != NONE && 2 * size == tokens && following_[first_[size]] != NONE ? size : NONE;
    }

private:
    Numbers sizes_;
    std::vector<size_t> first_;
    std::vector<size_t>& following_;
};

// Documents that fit a sequence are `whole`. A longer one fills whole sequences and a rest, which is its size here: it may
// begin a sequence, or end one that has room for the rest, and is then in as few sequences as it can be.
class Packer {
public:
    Packer(const int32_t* lengths, size_t count, size_t seq_length)
        : lengths_(lengths), count_(count), seq_length_(seq_length), room_(seq_length), following_(count, NONE),
          whole_(seq_length, following_), longer_(seq_length, following_) {
        for (size_t document = count; document-- > 0;) {
            if (lengths[document] < 1) throw std::invalid_argument("a document without tokens");
            size_t length = size_t(lengths[document]);
            (length > seq_length ? longer_ : whole_).add((length - 1) % seq_length + 1, document);
        }
    }

    std::vector<uint64_t> order() {
        std::vector<uint64_t> order(count_);
        for (auto& place : order) {
            size_t document = next();
            place = document;
            size_t filled = (seq_length_ - room_ + size_t(lengths_[document])) % seq_length_;
            room_ = seq_length_ - filled;
        }
        return order;
    }

private:
    size_t next() {
        size_t whole = whole_.largest_up_to(room_), longer = longer_.largest_up_to(room_);
        if (room_ == seq_length_ && longer != NONE && (whole == NONE || longer >= whole)) return longer_.take(longer);
        if (whole != NONE) return whole_.take(filling(whole));
        if (longer != NONE) return longer_.take(longer);
        // Nothing fits: a document is cut that would be in any case, or the shortest.
        size_t cut = longer_.smallest();
        return cut != NONE ? longer_.take(cut) : whole_.take(whole_.smallest());
    }

    // The largest that fits; or one that fills the room with another, where the largest would leave less than any needs.
    size_t filling(size_t largest) const {
        if (largest == room_ || room_ - largest >= whole_.smallest()) return largest;
        size_t size = whole_.largest_of_pair(room_);
        return size == NONE ? largest : size;
    }

    const int32_t* lengths_;
    size_t count_, seq_length_, room_;
    std::vector<size_t> following_;
    Stock whole_, longer_;
};

}  // namespace packing

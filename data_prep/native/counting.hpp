// Counts of hashes, for texts one after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

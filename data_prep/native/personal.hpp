// Where a text can hold personal data; data_prep/curation/personal.py decides whether it does. Full-width forms count as
// the ASCII characters that they stand for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "characters.hpp"

namespace personal {

enum Kind { MAIL, NUMBER, ADDRESS };

struct Span { Kind kind; size_t start, stop; };

enum Role : uint8_t { DIGIT = 1, SEPARATOR = 2, HEX = 4, DOT = 8, COLON = 16, AT = 32 };

// ASCII for full-width forms, blanks and hyphens of other widths; the same table is FOLD in personal.py.
inline uint32_t fold(uint32_t code) {
    if (code < 0x80) return code;
    if (code >= 0xff01 && code <= 0xff5e) return code - 0xfee0;
    if (code == 0xa0 || code == 0x3000) return ' ';
    if ((code >= 0x2010 && code <= 0x2015) || code == 0x2212) return '-';
    return code;
}

inline const std::array<uint8_t, 128>& roles() {
    static const std::array<uint8_t, 128> table = [] {
        std::array<uint8_t, 128> roles{};
        for (int c = '0'; c <= '9'; ++c) roles[c] = DIGIT | HEX;
        for (int c = 'a'; c <= 'f'; ++c) roles[c] = roles[c - 'a' + 'A'] = HEX;
        for (char c : {' ', '-', '(', ')', '+'}) roles[size_t(c)] = SEPARATOR;
        roles['.'] = DOT | SEPARATOR;
        roles[':'] = COLON;
        roles['@'] = AT;
        return roles;
    }();
    return table;
}

// In order of their ends: each @; from the first to the last digit of seven or more that only blanks, hyphens, dots,
// brackets and plus signs divide; from a digit on, runs of hexadecimal digits, dots and colons with four numbers and three
// dots, or with colons as an IPv6 address has them (two in a row, or seven).
class Scan {
public:
    std::vector<Span> run(const unsigned char* at, const unsigned char* end) {
        const auto& table = roles();
        for (place_ = 0; at < end; ++place_) {
            if (!open_ && *at > 0xe3 && *at < 0xef) { at += 3; continue; }  // Han characters, Hangul
            uint32_t code = fold(text::next(at));
            uint8_t role = code < 128 ? table[code] : 0;
            if (!role && !open_) continue;
            number(role);
            address(role);
            open_ = digits_ || address_open_;
            if (role & AT) spans_.push_back({MAIL, place_, place_ + 1});
        }
        number(0);
        address(0);
        return std::move(spans_);
    }

private:
    void number(uint8_t role) {
        if (role & DIGIT) {
            if (!digits_) number_start_ = place_;
            number_stop_ = place_ + 1;
            ++digits_;
        } else if (!(role & SEPARATOR) && digits_) {
            if (digits_ >= 7) spans_.push_back({NUMBER, number_start_, number_stop_});
            digits_ = 0;
        }
    }

    void address(uint8_t role) {
        if (address_open_ ? role & (HEX | DOT | COLON) : role & DIGIT) {
            if (!address_open_) {
                address_open_ = true;
                address_start_ = place_;
                dots_ = colons_ = numerals_ = 0;
                doubled_ = colon_ = false;
            }
            dots_ += (role & DOT) != 0;
            numerals_ += (role & DIGIT) != 0;
            colons_ += (role & COLON) != 0;
            doubled_ |= colon_ && (role & COLON);
            colon_ = role & COLON;
        } else if (address_open_) {
            bool found = (dots_ >= 3 && numerals_ >= 4) || (numerals_ > 0 && (colons_ >= 7 || doubled_));
            if (found) spans_.push_back({ADDRESS, address_start_, place_});
            address_open_ = false;
        }
    }

    std::vector<Span> spans_;
    size_t place_ = 0, number_start_ = 0, number_stop_ = 0, digits_ = 0;
    size_t address_start_ = 0, dots_ = 0, colons_ = 0, numerals_ = 0;
    bool open_ = false, address_open_ = false, doubled_ = false, colon_ = false;
};

}  // namespace personal

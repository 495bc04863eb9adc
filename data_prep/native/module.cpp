// Hot loops of the data jobs; each has a plain Python reference in tests/data_prep/curation/reference.py or packing/reference.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "clean.hpp"
#include "minhash.hpp"
#include "ngrams.hpp"
#include "overlap.hpp"
#include "packing.hpp"
#include "passages.hpp"
#include "personal.hpp"
#include "phrases.hpp"
#include "punctuation.hpp"
#include "sentences.hpp"
#include "statistics.hpp"
#include "winnow.hpp"

namespace py = pybind11;

namespace {

struct Utf8 {
    const unsigned char *begin, *end;
};

// The UTF-8 that CPython keeps with the string. Raises UnicodeEncodeError for lone surrogates.
Utf8 utf8(const py::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!data) throw py::error_already_set();
    auto begin = reinterpret_cast<const unsigned char*>(data);
    return {begin, begin + size};
}

using Uint64s = py::array_t<uint64_t, py::array::c_style>;

template <typename T>
py::array_t<T> array(const T* data, size_t size) { return py::array_t<T>(py::ssize_t(size), data); }

void set_characters(py::array_t<uint8_t> classes, py::array_t<uint32_t> lower) {
    text::table().classes.assign(classes.data(), classes.data() + classes.size());
    text::table().lower.assign(lower.data(), lower.data() + lower.size());
    auto& all = text::table().classes;
    for (uint32_t code = 0; code < all.size(); ++code) if (text::is_invisible(code)) all[code] = 0;
}

uint64_t word_hash(const py::str& word) {
    auto [at, end] = utf8(word);
    uint64_t hash = text::TOKEN_START;
    while (at < end) {
        uint32_t code = text::next(at);
        if (!text::is_invisible(code)) hash = text::feed(hash, text::lower(code));
    }
    return text::mix(hash);
}

// Words that stand between blanks, and Han characters and kana, which are words each.
py::tuple word_counts(const py::str& text) {
    auto [at, end] = utf8(text);
    size_t words = 0, alone = 0;
    text::each_word(at, end, true, [&](size_t, size_t, uint64_t, uint32_t first) {
        ++(text::stands_alone(first, text::class_of(first)) ? alone : words);
    });
    return py::make_tuple(words, alone);
}

// Letters of a text by script: Han, kana, Latin, all.
py::tuple script_counts(const py::str& text) {
    auto [at, end] = utf8(text);
    size_t han = 0, kana = 0, latin = 0, letters = 0;
    while (at < end) {
        uint32_t code = text::next(at);
        uint8_t kind = text::class_of(code);
        letters += (kind & text::LETTER) != 0;
        if (kind & text::HAN) ++han;
        else if (text::stands_alone(code, kind)) ++kana;
        else latin += (kind & text::LETTER) && code < 0x250;
    }
    return py::make_tuple(han, kana, latin, letters);
}

py::list personal_spans(const py::str& text) {
    auto [at, end] = utf8(text);
    py::list spans;
    for (const auto& span : personal::Scan().run(at, end))
        spans.append(py::make_tuple(int(span.kind), span.start, span.stop));
    return spans;
}

// Hashes of the non-empty lines without the blanks around them, with their lengths in characters.
py::tuple line_hashes(const py::str& whole) {
    auto [at, end] = utf8(whole);
    std::vector<uint64_t> hashes;
    std::vector<uint32_t> lengths;
    while (at < end) {
        const unsigned char* stop = at;
        while (stop < end && *stop != '\n') ++stop;
        minhash::ExactHash hash = minhash::exact_hash(at, stop);
        hashes.push_back(hash.count ? hash.digest()[0] : 0);
        lengths.push_back(uint32_t(hash.count));
        at = stop < end ? stop + 1 : stop;
    }
    return py::make_tuple(array(hashes.data(), hashes.size()), array(lengths.data(), lengths.size()));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Hot loops of the data jobs: word hashes, MinHash, text statistics, layout.";
    module.def("set_characters", &set_characters, "Set the class and lower case of every code point.");
    module.def("word_hash", &word_hash, "uint64 hash of a word, as the scans compute it.");
    module.def("word_counts", &word_counts, "Words between blanks; Han characters and kana.");
    module.def("script_counts", &script_counts, "Letters by script: Han, kana, Latin, all.");
    module.def("passages", [](const py::str& text, size_t words, double letter_share, size_t term_words, size_t term_characters) {
        auto [at, end] = utf8(text);
        auto scan = passages::Scanner(at, end, {words, letter_share, term_words, term_characters}).scan();
        py::list found;
        for (const auto& p : scan.found) found.append(py::make_tuple(p.east_asian, p.line, p.sentence, p.start, p.stop, p.letters));
        return py::make_tuple(found, scan.sentences, scan.lines, scan.rows);
    }, py::arg("text"), py::arg("words"), py::arg("letter_share"), py::arg("term_words"), py::arg("term_characters"),
       "(passages, sentences, lines, rows): (Chinese or Japanese, line, sentence, start, stop, letters) of each passage.");
    module.def("personal_spans", &personal_spans, "(kind, start, stop) where an e-mail (0: its @), a phone or identity number (1) or an IP address (2) may be.");
    module.def("line_hashes", &line_hashes, "Per line: uint64 hash (0: blank) and length, blanks and case aside.");
    module.def("anchors", [](const py::str& text, size_t window) {
        auto [at, end] = utf8(text);
        auto found = winnow::anchors(at, end, window);
        return py::make_tuple(array(found.hashes.data(), found.hashes.size()),
                              array(found.checks.data(), found.checks.size()),
                              array(found.places.data(), found.places.size()));
    }, "uint64 hashes, uint32 second hashes and uint32 places of the windows that winnowing keeps.");
    module.def("windows", [](const py::str& text, size_t window) {
        auto [at, end] = utf8(text);
        std::vector<uint64_t> hashes, checks;
        winnow::each_window(at, end, window, [&](size_t, uint64_t hash, uint64_t check) {
            hashes.push_back(hash);
            checks.push_back(check);
        });
        return py::make_tuple(array(hashes.data(), hashes.size()), array(checks.data(), checks.size()));
    }, "uint64 hashes and second hashes of all windows of so many characters.");
    module.def("sentence_starts", [](const py::str& text) {
        auto [at, end] = utf8(text);
        auto found = sentences::starts(at, end);
        return array(found.data(), found.size());
    }, "uint32 place of each sentence's first visible character.");
    module.def("exact_hash", [](const py::str& text) {
        auto [at, end] = utf8(text);
        auto digest = minhash::exact_hash(at, end).digest();
        return array(digest.data(), 2);
    }, "uint64 [2]; equal for texts that differ in case, blanks and invisible characters only.");
    module.def("normalize_layout", [](const py::str& text) {
        auto [at, end] = utf8(text);
        return py::str(clean::normalize_layout(at, end));
    }, "One kind of line end, no invisible characters, no trailing blanks, at most one empty line in a row.");
    module.def("keep_lines", [](const py::str& text, size_t least_words, size_t longest_word) {
        auto [at, end] = utf8(text);
        size_t dropped = 0;
        std::string kept = clean::keep_lines(at, end, least_words, longest_word, dropped);
        return py::make_tuple(py::str(kept), dropped);
    }, "Text without its lines of too few words or an overlong word, and how many lines went.");
    module.def("prose", [](const py::str& text) {
        auto [at, end] = utf8(text);
        return py::str(layout::prose(layout::Layout().scan(at, end)));
    }, "The lines of prose, without addresses and code in backquotes.");
    module.def("shape", [](const py::str& text) {
        auto [at, end] = utf8(text);
        layout::Shape shape = layout::shape_of(layout::Layout().scan(at, end));
        return py::make_tuple(shape.visible, shape.code, shape.lines, shape.spoken, shape.named, shape.items,
                              shape.verses, shape.ended, shape.even);
    }, "Counts that tell kinds of text, in the order of layout::Shape.");
    module.def("widen_punctuation", [](const py::str& text) {
        auto [at, end] = utf8(text);
        size_t widened = 0;
        std::string wide = punctuation::Widener().widen(at, end, widened);
        return py::make_tuple(widened ? py::str(wide) : text, widened);
    }, "The text with English marks among Chinese as full-width ones, and how many these are.");
    module.def("packed_order", [](py::array_t<int32_t, py::array::c_style> lengths, size_t seq_length) {
        if (seq_length == 0) throw std::invalid_argument("seq_length is 0");
        auto order = packing::Packer(lengths.data(), size_t(lengths.size()), seq_length).order();
        return array(order.data(), order.size());
    }, py::arg("lengths"), py::arg("seq_length"),
       "uint64 order of documents of so many tokens in which sequences cut back to back hold whole ones where these fit.");
    module.def("mojibake_pairs", [](const py::str& text) {
        auto [at, end] = utf8(text);
        return clean::mojibake_pairs(at, end);
    }, "Pairs of characters that UTF-8 read as Latin-1 gives, and C1 controls that are marks of Windows-1252.");

    py::class_<clean::Rows>(module, "Rows")
        .def(py::init<std::vector<uint32_t>, size_t>(), py::arg("codes"), py::arg("most"))
        .def("cut", [](const clean::Rows& self, const py::str& text) {
            auto [at, end] = utf8(text);
            std::string cut = self.cut(at, end);
            return cut.empty() ? text : py::str(cut);
        }, "Text with at most so many of the code points in a row; the same object where it has no more.");

    py::class_<minhash::Signer>(module, "Signer")
        .def(py::init<size_t, std::vector<uint32_t>, std::vector<uint32_t>>(), py::arg("ngram"),
             py::arg("multipliers"), py::arg("offsets"))
        .def("sign", [](minhash::Signer& self, const py::str& text) {
            auto [at, end] = utf8(text);
            self.sign(at, end);
            return array(self.minima(), self.hashes());
        }, "uint32 [hashes]: the minimum of each hash function over the text's n-grams.")
        .def("shingles", [](minhash::Signer& self, const py::str& text) {
            auto [at, end] = utf8(text);
            std::vector<uint64_t> found;
            self.each_shingle(at, end, [&](uint64_t hash) { found.push_back(hash); });
            return array(found.data(), found.size());
        }, "uint64: hash of every n-gram in order.");

    py::class_<overlap::Words>(module, "WordSequences")
        .def(py::init<std::vector<uint32_t>>(), py::arg("fold"))
        .def("hashes", [](overlap::Words& self, const py::str& text, size_t length) {
            auto [at, end] = utf8(text);
            self.read(at, end);
            std::vector<uint64_t> hashes;
            const uint64_t power = overlap::power_of(length);
            for (size_t first = 0; first + length <= self.size(); ++first)
                hashes.push_back(self.hash(first, length, power));
            return array(hashes.data(), hashes.size());
        }, py::arg("text"), py::arg("length"), "uint64: hash of every sequence of so many words, in order.")
        .def("count", [](overlap::Words& self, const py::str& text) {
            auto [at, end] = utf8(text);
            self.read(at, end);
            return self.size();
        }, "How many words the text has.");

    py::class_<overlap::Overlap>(module, "Overlap")
        .def(py::init<std::vector<uint32_t>>(), py::arg("fold"))
        .def("add_ngrams", [](overlap::Overlap& self, size_t length, const Uint64s& hashes) {
            self.add_ngrams(length, hashes.data(), size_t(hashes.size()));
        }, py::arg("length"), py::arg("hashes"), "Look for these sequences of `length` words: one more group.")
        .def("add_wholes", [](overlap::Overlap& self, size_t prefix, const Uint64s& prefixes, const Uint64s& lengths,
                              const Uint64s& hashes) {
            std::vector<overlap::Whole> wholes;
            for (py::ssize_t i = 0; i < hashes.size(); ++i)
                wholes.push_back({prefixes.at(i), size_t(lengths.at(i)), hashes.at(i)});
            self.add_wholes(prefix, std::move(wholes));
        }, py::arg("prefix"), py::arg("prefixes"), py::arg("lengths"), py::arg("hashes"),
           "Look for sequences of several lengths, at least `prefix`, with the hashes of so many first words: one more group.")
        .def("find", [](overlap::Overlap& self, const py::str& text) {
            auto [at, end] = utf8(text);
            std::vector<std::tuple<uint32_t, uint64_t, uint32_t, uint32_t>> found;
            for (const auto& match : self.find(at, end))
                found.emplace_back(match.group, match.hash, match.start, match.stop);
            return found;
        }, "(group, hash, start, stop) of every sequence that the text has, in characters, by group and start.");

    py::class_<phrases::Phrases>(module, "Phrases")
        .def(py::init([](const std::vector<py::str>& list, bool whole_words) {
            phrases::Phrases phrases(whole_words);
            for (const auto& phrase : list) {
                auto [at, end] = utf8(phrase);
                phrases.add(at, end);
            }
            phrases.finish();
            return phrases;
        }), py::arg("phrases"), py::arg("whole_words"))
        .def("find", [](phrases::Phrases& self, const py::str& text) {
            auto [at, end] = utf8(text);
            return self.find(at, end);
        }, "(start, stop) of every match in characters, by stop; matches overlap.");

    py::class_<ngrams::Counter>(module, "NgramCounter")
        .def(py::init<ngrams::Counter::Orders, ngrams::Counter::Orders, unsigned>(), py::arg("characters"),
             py::arg("words"), py::arg("bits"))
        .def("values", [](ngrams::Counter& self, const py::str& text) {
            auto [at, end] = utf8(text);
            std::vector<uint32_t> buckets;
            std::vector<float> values;
            self.each_value(at, end, [&](uint32_t bucket, float value) {
                buckets.push_back(bucket);
                values.push_back(value);
            });
            return py::make_tuple(array(buckets.data(), buckets.size()), array(values.data(), values.size()));
        }, "uint32 and float32: buckets of the text's n-grams, each once, and sqrt(share of the n-grams) of each.")
        .def("weigh", [](ngrams::Counter& self, const py::str& text, py::array_t<float, py::array::c_style> weights) {
            if (size_t(weights.size()) != self.buckets()) throw std::invalid_argument("give a weight for each bucket");
            auto [at, end] = utf8(text);
            return self.weigh(at, end, weights.data());
        }, "The sum of the values of a text, each times the weight of its bucket.");

    module.attr("STATISTICS") = statistics::NAMES;
    py::class_<statistics::Meter>(module, "Meter")
        .def(py::init<std::unordered_set<uint64_t>, std::unordered_set<uint32_t>, std::vector<wording::WordPair>>(),
             py::arg("stop_words"), py::arg("traditional"), py::arg("odd_pairs") = std::vector<wording::WordPair>{})
        .def("measure", [](statistics::Meter& self, const py::str& text) {
            auto [at, end] = utf8(text);
            return self.measure(at, end);
        }, "list of float in the order of STATISTICS.");
}

"""What curation kept of each configured language, and a sentence where that is nothing or next to nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from data_prep.core.reasons import sentence
from data_prep.core.tally import by

# Of the documents of a language. Not 1%: English rules keep 2.9% of a German manual, which German ones keep 75% of, and so
# few are as good as none.
LEAST_KEPT = 0.05


def language_warnings(
    languages: Collection[str], groups: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Any]
) -> list[str]:
    """One sentence for each configured language of which no document came in, or under `LEAST_KEPT` stayed.

    Args:
        groups: language -> source -> counts, as a `Tally` has them.
        parameters: of the job, with the thresholds that the reasons name.
    """
    counts = by(groups, "language")
    warnings = []
    for language in languages:
        count = counts.get(language, {"in": 0, "out": 0, "dropped": {}})
        if count["in"] == 0:
            warnings.append(
                f"no document was identified as '{language}', which `languages` names; see which languages came in with "
                "data_prep/check_languages.py"
            )
        elif count["out"] < LEAST_KEPT * count["in"]:
            reason, dropped = max(count["dropped"].items(), key=lambda item: (item[1], item[0]))
            warnings.append(
                f"{count['out']:,} of {count['in']:,} documents in '{language}' were kept; {dropped:,} were dropped as {reason}: "
                f"{sentence(reason, parameters, [language])}; see whether its rules fit it with data_prep/check_languages.py"
            )
    return warnings

"""The configuration of the training of a quality model."""

from __future__ import annotations

from pydantic import Field

from data_prep.curation.language import LANGUAGES
from data_prep.documents.fields import Fields
from data_prep.quality.model import Ngrams
from recipe.base.strict import Section


class Threshold(Section):
    """What the threshold of each language must reach; one of them."""

    precision: float | None = Field(None, gt=0, le=1)
    keep_share: float | None = Field(None, gt=0, le=1)
    score: float | None = Field(None, ge=0, le=1)

    def has_one_goal(self) -> bool:
        return [self.precision, self.keep_share, self.score].count(None) == 2


class TrainQualityConfig(Section):
    fields: Fields = Fields()
    label: str = Field("keep", min_length=1)
    languages: list[str] = Field(min_length=1)
    min_documents: int = Field(100, gt=0)
    max_documents: int = Field(200_000, gt=0)
    held_out_share: float = Field(0.2, gt=0, lt=1)
    threshold: Threshold
    ngrams: Ngrams
    epochs: int = Field(10, gt=0)
    learning_rate: float = Field(0.3, gt=0)

    def problems(self) -> list[str]:
        unknown = sorted(set(self.languages) - LANGUAGES)
        known = f"name some of {', '.join(sorted(LANGUAGES))}"
        return [
            *(f"languages: '{name}' is none that documents are identified as; {known}" for name in unknown),
            *([] if len(set(self.languages)) == len(self.languages) else ["languages names one twice; name each once"]),
            *([] if self.threshold.has_one_goal() else ["threshold has one of precision, keep_share, score"]),
            *self.ngrams.problems(),
        ]

"""The settings of decontamination."""

from __future__ import annotations

from pydantic import Field

from recipe.base.strict import Section


class DecontaminateConfig(Section):
    ngram_words: int = Field(13, gt=1)
    ngram_characters: int = Field(20, gt=1)
    min_item_words: int = Field(5, gt=0)
    min_item_characters: int = Field(8, gt=0)
    template_items: int = Field(10, gt=1)
    max_corpus_documents: int | None = Field(10, gt=0)
    max_shared: int = Field(0, ge=0)
    ignored_fields: list[str] = []

    def problems(self) -> list[str]:
        return [
            f"min_item_{script} is {self.least(script)} and ngram_{script} {self.length(script)}: an item as long as an n-gram is "
            f"looked for by it; lower min_item_{script}"
            for script in ("words", "characters")
            if self.least(script) > self.length(script)
        ]

    def length(self, script: str) -> int:
        """Of an n-gram; `script` is what is counted: words or characters."""
        return {"words": self.ngram_words, "characters": self.ngram_characters}[script]

    def least(self, script: str) -> int:
        """The length of the shortest item that is looked for."""
        return {"words": self.min_item_words, "characters": self.min_item_characters}[script]

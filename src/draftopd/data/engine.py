"""`texts=engine`: the target's texts from servers of vLLM or SGLang, token ids in and token ids out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from draftopd.console import progress
from draftopd.data import storage
from draftopd.data.first_texts import FirstTexts
from draftopd.data.journal import Journal
from draftopd.data.servers import Job, Served, Server, ask_all
from draftopd.data.writers import Elsewhere, TextSet, require_response, sampling_parameters
from draftopd.errors import DraftError
from draftopd.values.checked import checked
from draftopd.values.types import Count, Name, Natural, NonNegative, Positive, Urls

WRITTEN_BY = "written_by.json"
"""beside the texts: what their servers said of themselves"""


@checked
@dataclass(frozen=True, kw_only=True)
class Engine(Elsewhere):
    """Servers with OpenAI's completions interface that take `return_token_ids` (vLLM 0.10.2, SGLang of July 2026).

    A text is stored as soon as it is there, so that whatever is killed costs only the requests under way.

    Args:
        urls: of servers that run the same model in the same engine; they share the texts.
        model: as served; None = the first that a server names.
        concurrency: requests at a time to each server.
        timeout: seconds for one text.
        patience: seconds without an answer from any server after which the run ends.
        check: texts of each server, after each of its starts, that are held against the target here.
        tie: see `FirstTexts`.
    """

    urls: Urls
    model: Name | None = None
    concurrency: Count = 64
    timeout: Positive = 1800.0
    patience: NonNegative = 600.0
    check: Natural = 8
    tie: NonNegative | None = None

    def recipe(self) -> dict[str, Any]:
        """Not the server's: stored texts are read when it is gone."""
        return {"writer": "engine"}

    def prepare(self, texts: TextSet, shards: Sequence[int], title: str) -> None:
        """Asks for the texts that are not stored; one process does, the others wait for it.

        Raises:
            DraftError: a server is another than before, runs another model, or returns no token ids.
        """
        journal = Journal(texts)
        with FileLock(texts.folder.parent / f"{texts.folder.name}-ids.lock"):
            missing = journal.missing(shards)
            if not missing:
                return
            with progress(title, len(missing)) as on_done:
                for index, ids in self._ask(texts, missing):
                    journal.add(index, ids)
                    on_done(1)

    def ids(self, texts: TextSet, shard: int) -> list[list[int]]:
        known = Journal(texts).read(shard)
        return [known[i] for i in texts.shard(shard)]

    def _ask(self, texts: TextSet, index: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        length = max(len(texts.prompts[i]) for i in index) + texts.decoding.max_new_tokens
        limits = (length, self.timeout, self.patience, self.concurrency)
        servers = [Server(url, self.model, *limits) for url in dict.fromkeys(self.urls)]
        jobs: Iterator[Job] = (
            (i, {"prompt": list(texts.prompts[i]), "return_token_ids": True, **sampling_parameters(texts, i)})
            for i in index
        )
        first, known = FirstTexts(texts, self.check, self.tie), set[Served]()
        for i, answer, served in ask_all(servers, jobs, self.concurrency):
            if served not in known:
                _require_same(texts.folder, served)
                known.add(served)
            ids = response_ids(answer, texts.prompts[i], served.name)
            remedy = "the server must return it up to its stop token (vLLM: serve with --generation-config vllm)"
            require_response(ids, texts, f"{served.name}: text {i}", remedy)
            first.check(i, ids, served)
            yield i, ids


def response_ids(answer: Mapping[str, Any], prompt: Sequence[int], name: str) -> list[int]:
    """The token ids of a completions response; raises DraftError where it has none, or is of another prompt."""
    choices = answer.get("choices") or [{}]
    ids, read = choices[0].get("token_ids"), choices[0].get("prompt_token_ids")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise DraftError(
            f"{name} returns no token ids: it must know return_token_ids in /v1/completions, as vLLM from 0.10.2 and "
            "SGLang from July 2026 do; text alone would have to be tokenised again, often into other tokens"
        )
    if read is not None and list(read) != list(prompt):
        raise DraftError(f"{name} read another prompt than it was given: it must take token ids as they are")
    return ids


def _require_same(folder: Path, served: Served) -> None:
    """Notes down who writes; raises DraftError where someone else wrote the texts before."""
    path = folder / WRITTEN_BY
    if not path.exists():
        with storage.replacing(path, "set cache_dir to another folder") as part:
            part.write_text(json.dumps(dict(served.facts), indent=1))
    before = json.loads(path.read_text())
    if before != served.facts:
        raise DraftError(
            f"{served.name} says {json.dumps(dict(served.facts))}, and the texts in {folder} were written by "
            f"{json.dumps(before)}: serve the same as before, or set cache_dir to another folder"
        )

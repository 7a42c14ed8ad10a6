"""`/v1/rerank` in the words of Jina, Cohere, llama.cpp's server and Text Embeddings Inference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.embedding import MINILM, TEXTS, Head, needs_minilm, write_reranker
from tests.support import Daemon, post, running, write_config

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_minilm]

QUERY = "what is hello"
DOCUMENTS = TEXTS[:5]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("rerank")
    write_reranker(folder / "reranker.gguf", Head())
    models = f"""
[models.reranker]
source = "reranker.gguf"
[models.minilm]
source = "{MINILM}"
"""
    async with running(write_config(folder, models)) as daemon:
        yield daemon


async def rank(daemon: Daemon, path: str = "/v1/rerank", **body: Any) -> tuple[int, Any]:
    status, answer, _ = await post(daemon.url + path, {"query": QUERY, **body})
    return status, answer


async def test_the_best_document_comes_first(daemon: Daemon) -> None:
    status, answer = await rank(daemon, documents=DOCUMENTS, model="reranker")
    assert status == 200
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(DOCUMENTS)
    assert sorted(one["index"] for one in answer["results"]) == list(range(len(DOCUMENTS)))
    assert set(answer["results"][0]) == {"index", "relevance_score"}
    assert (answer["object"], answer["model"]) == ("list", "reranker")


async def test_a_document_has_the_same_score_alone(daemon: Daemon) -> None:
    _, together = await rank(daemon, documents=DOCUMENTS)
    for one in together["results"]:
        _, alone = await rank(daemon, documents=[DOCUMENTS[one["index"]]])
        score = alone["results"][0]["relevance_score"]
        assert score == pytest.approx(one["relevance_score"], abs=0.05)


@pytest.mark.parametrize(("top_n", "count"), [(None, 5), (2, 2), (5, 5), (99, 5)])
async def test_no_more_than_top_n_come_back(daemon: Daemon, top_n: int | None, count: int) -> None:
    _, answer = await rank(daemon, documents=DOCUMENTS, top_n=top_n)
    assert len(answer["results"]) == count


async def test_documents_may_be_objects_and_come_back_when_asked_for(daemon: Daemon) -> None:
    documents = [{"text": text, "source": "elsewhere"} for text in DOCUMENTS]
    _, answer = await rank(daemon, documents=documents, return_documents=True, top_n=2)
    for one in answer["results"]:
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}


async def test_usage_counts_the_tokens_of_all_pairs(daemon: Daemon) -> None:
    _, answer = await rank(daemon, documents=["A machine", "Learning is"])
    # Three of the query, two of each document, three special tokens of each pair.
    assert answer["usage"] == {"prompt_tokens": 16, "total_tokens": 16}


async def test_texts_get_the_answer_of_text_embeddings_inference(daemon: Daemon) -> None:
    _, answer = await rank(daemon, "/rerank", texts=DOCUMENTS, return_text=True, top_n=3)
    scores = [one["score"] for one in answer]
    assert scores == sorted(scores, reverse=True)
    assert [one["text"] for one in answer] == [DOCUMENTS[one["index"]] for one in answer]


@pytest.mark.parametrize("path", ["/v2/rerank", "/rerank", "/api/v1/rerank"])
async def test_it_is_there_under_the_names_that_clients_use(daemon: Daemon, path: str) -> None:
    status, answer = await rank(daemon, path, documents=DOCUMENTS)
    assert (status, len(answer["results"])) == (200, 5)


BAD = {
    "no documents": ({"documents": []}, "documents"),
    "null documents": ({"documents": None}, "documents"),
    "a number": ({"documents": 123}, "documents"),
    "numbers": ({"documents": [1, 2, 3]}, "documents"),
    "an object without text": ({"documents": [{"title": "x"}]}, "documents"),
    "too many": ({"documents": ["x"] * 2049}, "documents"),
    "a document that is too long": ({"documents": ["x", "word " * 600]}, "documents"),
    "a megabyte": ({"documents": ["word " * 200_000]}, "documents"),
    "no query": ({"documents": ["x"], "query": None}, "query"),
    "none at the top": ({"documents": ["x"], "top_n": 0}, "top_n"),
    "a model that embeds": ({"documents": ["x"], "model": "minilm"}, "model"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_call_is_a_400_that_names_what_is_wrong(daemon: Daemon, name: str) -> None:
    body, param = BAD[name]
    status, answer = await rank(daemon, **body)
    assert (status, answer["error"]["param"]) == (400, param)
    status, _ = await rank(daemon, documents=["x"])
    assert status == 200


async def test_a_reranker_asked_for_vectors_says_what_it_does(daemon: Daemon) -> None:
    body = {"input": "x", "model": "reranker"}
    status, answer, _ = await post(daemon.url + "/v1/embeddings", body)
    assert (status, answer["error"]["code"]) == (400, "unsupported_by_model")
    assert "minilm can" in answer["error"]["message"]

"""The benchmarks' own parts: what they synthesize, count, sum up and send."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path

import pytest

from hxd.gguf import read_header
from scripts.bench import balance, failover, gates, gateway, report
from scripts.bench.readings import Metric, Reading
from scripts.bench.serving import serving
from scripts.bench.stats import gaps, percentile, ratio
from scripts.bench.synthesis import SHAPES, synthesize

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    synthesize(TINY, path)
    return path


def test_a_seed_always_gives_the_same_file_and_another_seed_another(
    tiny: Path, tmp_path: Path
) -> None:
    synthesize(TINY, tmp_path / "again.gguf")
    synthesize(TINY, tmp_path / "other.gguf", seed=1)
    assert (tmp_path / "again.gguf").read_bytes() == tiny.read_bytes()
    assert (tmp_path / "other.gguf").read_bytes() != tiny.read_bytes()


def test_a_synthetic_model_reads_any_text_and_answers_with_text_to_the_limit(tiny: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    assert read_header(tiny).architecture == "llama"
    model = llama_cpp.Llama(str(tiny), n_ctx=TINY.context, n_threads=1, verbose=False)
    text = "Hello, wörld! 日本 {x}\n"
    assert model.detokenize(model.tokenize(text.encode())).decode() == text
    answer = model(text, max_tokens=40, temperature=0)
    model.close()
    assert answer["usage"]["completion_tokens"] == 40
    assert answer["choices"][0]["finish_reason"] == "length"
    text = answer["choices"][0]["text"]
    assert text.isprintable()
    # In circles it would flatter a server that guesses ahead.
    pairs = [text[at : at + 8] for at in range(len(text) - 8)]
    assert len(set(pairs)) > 0.9 * len(pairs)


def test_a_prompt_has_the_wanted_tokens_and_its_seed_tells_it_apart(tiny: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from scripts.bench.prompts import Prompts

    prompts = Prompts(tiny)
    one, other = prompts.text(100, "one"), prompts.text(100, "other")
    counts = [prompts.count(one), prompts.count(other)]
    again = prompts.text(100, "one")
    prompts.close()
    assert again == one != other
    assert all(90 <= count <= 100 for count in counts)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7
    assert math.isnan(percentile([], 50))
    assert gaps([1.0, 1.5, 3.0]) == [0.5, 1.5]
    assert ratio(3, 2) == 1.5
    assert math.isnan(ratio(1, 0))


def test_a_report_has_medians_and_no_number_where_there_is_none() -> None:
    results = report.Results(["hxd", "peer"])
    for value in (1.0, 9.0, 2.0):
        results.add("hxd", [Reading("8 clients", Metric.DECODE, value)])
    results.add("hxd", [Reading("8 clients", Metric.GAP, math.nan)])
    results.fail("peer", "clients", "it left")
    rows = json.loads(report.as_json(results, {}))["rows"]
    assert rows[0]["median"] == {"hxd": 2.0}
    assert rows[1]["median"] == {"hxd": None}
    assert report.table(results, "title").row_count == 2


async def test_the_load_generator_counts_calls_and_streams_of_the_bare_gateway() -> None:
    async with serving(gates.bare()) as running:
        calls = await gateway.ordered(running, None, "echo", order="calls", clients=4, seconds=0.2)
        assert calls["per_second"] > 0
        assert all(seconds > 0 for seconds in calls["latencies"])
        streams = await gateway.ordered(
            running, None, "paced", order="streams", clients=3, tokens=5, rate=gates.RATE
        )
        assert 0 <= streams["kept"] <= 3
        assert len(streams["longest"]) == 3


def test_a_pause_of_a_killed_stream_is_the_longest_gap_after_the_kill() -> None:
    # Read from the pipe after the kill, then nothing for 0.3 s, then the other worker's.
    progress = [9.0, 9.1, 10.01, 10.31, 10.32]
    seen = failover.Seen(kills=1, pauses=[failover.pause_after(progress, 10.0) or 0.0])
    assert seen.pauses == [pytest.approx(0.91)]
    assert failover.pause_after(progress[:2], 10.0) is None
    shown = failover.table({"hxd": seen})
    assert shown.row_count == 11


async def test_the_bare_supervisor_starts_its_command_again_and_ends_with_it(
    tmp_path: Path,
) -> None:
    """The command counts its starts in a file, and ends itself twice."""
    starts = tmp_path / "starts"
    command = f'echo x >> {starts}; [ "$(wc -l < {starts})" -gt 2 ] && exec sleep 60'
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(failover.RESTARTING), "sh", "-c", command)
    )
    try:
        async with asyncio.timeout(30):
            while True:
                if starts.exists() and starts.read_text().count("x") == 3:
                    break
                await asyncio.sleep(0.01)
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_policy_is_compared_with_the_first_one() -> None:
    rows = {
        "pack": {4: balance.Seen(200.0, 0.01, 0.02)},
        "least_busy": {4: balance.Seen(100.0, 0.02, 0.03)},
    }
    shown = balance.table(rows)
    assert list(shown.columns[-1].cells) == ["2.00x"]

"""llama-server's flags, as far as the benchmark uses them, for the server inside xllamacpp.

Runs in the peers' environment, where nothing of hxd's or of this folder can be imported.
"""

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    for number in ("--port", "--threads", "--parallel", "--ctx-size"):
        parser.add_argument(number, type=int, required=True)
    parser.add_argument("--embeddings", action="store_true")
    given = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames = [given.host]
    params.port = given.port
    params.n_parallel = given.parallel
    params.n_ctx = given.ctx_size
    params.embedding = given.embeddings
    params.cpuparams.n_threads = given.threads
    params.cpuparams_batch.n_threads = given.threads
    # As llama-server does when the number of slots is given.
    params.kv_unified = False
    # Blocked, so that sigwait gets it; the library's threads inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM})
    del server


if __name__ == "__main__":
    main()
